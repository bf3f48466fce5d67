"""`sandpty config`: where settings come from, and the file that keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sandpty.cli import main, settings_file
from sandpty.cli.connection import Server, find_server
from sandpty.cli.settings_file import NamedServer, Settings
from sandpty.wire.errors import SandptyError

FAR, NEAR = "https://far.example.com", "http://127.0.0.1:1"
KEY = "e2b_" + "1a" * 20
Sandpty = Callable[..., Result]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory in which a server has run."""
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / "server.json").write_text('{"url": "http://127.0.0.1:2"}')
    (directory / "api_key").write_text("e2b_local\n")
    return directory


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but the test's own."""
    for name in list(os.environ):
        if name.startswith("SANDPTY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SANDPTY_CONFIG", str(tmp_path / "config" / "sandpty.json"))


@pytest.fixture
def sandpty() -> Sandpty:
    """Run a command in this process, as the console script does."""

    def run(*words: str, stdin: str = "") -> Result:
        return CliRunner().invoke(main.cli, words, input=stdin, catch_exceptions=True)

    return run


def test_what_is_set_is_got_and_used(sandpty: Sandpty) -> None:
    """The first server that is set is the one that is used; keys are shown in full only when asked for."""
    assert sandpty("config", "set", "url", FAR + "/").exit_code == 0
    assert sandpty("config", "set", "key", stdin=f"{KEY}\n").exit_code == 0
    assert sandpty("config", "get", "url").output == f"{FAR}\n"
    assert sandpty("config", "get", "key").output == f"{KEY}\n"
    assert find_server(None, None) == Server(FAR, KEY)
    for shown in (sandpty("config").output, sandpty("config", "servers").output):
        assert KEY not in shown
        assert KEY[:8] in shown
    found = json.loads(sandpty("config", "--json").output)
    assert found["url"] == {"value": FAR, "source": f"'default' in {settings_file.path()}"}
    assert sandpty("config", "unset", "key").exit_code == 0
    with pytest.raises(SandptyError, match="no key"):
        find_server(None, None)
    assert "has no key" in sandpty("config").output
    assert sandpty("config", "unset", "url").exit_code == 0
    assert settings_file.read() == Settings(None, {})


def test_named_servers_are_chosen_listed_and_removed(sandpty: Sandpty) -> None:
    """By `use`, by --server for once, by SANDPTY_SERVER."""
    for name, url in (("far", FAR), ("near", NEAR)):
        sandpty("config", "set", "url", url, "--name", name)
        sandpty("config", "set", "key", f"key-of-{name}", "--name", name)
    assert find_server(None, None) == Server(FAR, "key-of-far")
    assert sandpty("config", "use", "near").exit_code == 0
    assert find_server(None, None) == Server(NEAR, "key-of-near")
    assert "* near" in sandpty("config", "servers").output
    listed = json.loads(sandpty("config", "servers", "--json").output)
    assert listed[1] == {"name": "near", "url": NEAR, "has_key": True, "used": True}
    assert f"url     {FAR}" in sandpty("config", "--server", "far").output
    assert sandpty("config", "use", "nobody").exit_code != 0
    assert sandpty("config", "use", "--none").exit_code == 0
    assert settings_file.read().used is None
    assert sandpty("config", "use", "near").exit_code == 0
    assert sandpty("config", "remove", "near").exit_code == 0
    assert settings_file.read() == Settings(None, {"far": NamedServer(FAR, "key-of-far")})


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, sandpty: Sandpty
) -> None:
    """Each says in words where it comes from; a key of the file goes to no other address."""
    settings_file.write(Settings("far", {"far": NamedServer(FAR, KEY), "near": NamedServer(NEAR, "key-of-near")}))
    assert find_server(None, None) == Server(FAR, KEY)
    assert find_server(None, data_dir) == Server("http://127.0.0.1:2", "e2b_local")
    assert find_server(NEAR, None) == Server(NEAR, "key-of-near")
    monkeypatch.setenv("SANDPTY_SERVER", "near")
    assert find_server(None, None) == Server(NEAR, "key-of-near")
    monkeypatch.delenv("SANDPTY_SERVER")
    monkeypatch.setenv("SANDPTY_DATA_DIR", str(data_dir))
    assert find_server(None, None) == Server("http://127.0.0.1:2", "e2b_local")
    assert find_server("http://127.0.0.1:3", None) == Server("http://127.0.0.1:3", "e2b_local")
    monkeypatch.setenv("SANDPTY_API_KEY", "from-the-environment")
    monkeypatch.setenv("SANDPTY_URL", NEAR)
    assert find_server(None, None) == Server(NEAR, "from-the-environment")
    found = json.loads(sandpty("config", "--json").output)
    assert (found["url"]["source"], found["key"]["source"]) == ("SANDPTY_URL", "SANDPTY_API_KEY")
    found = json.loads(sandpty("config", "--json", "--server", "far").output)
    assert (found["url"]["value"], found["server"]["value"]) == (FAR, "far")
    assert found["key"]["source"].startswith("'far' in ")
    assert sandpty("config", "--server", "far", "--url", NEAR).exit_code != 0


def test_a_key_is_forgotten_when_its_server_moves(sandpty: Sandpty) -> None:
    """Another address does not get it by accident."""
    sandpty("config", "set", "url", FAR)
    sandpty("config", "set", "key", KEY)
    assert "set it anew" in sandpty("config", "set", "url", NEAR).output
    assert settings_file.read().servers == {"default": NamedServer(NEAR, None)}


def test_the_file_is_the_users_alone_and_never_half_written(sandpty: Sandpty, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode 0600; replaced in one step, also behind a symlink; a failure leaves the old one and nothing beside it."""
    sandpty("config", "set", "key", KEY)
    file = settings_file.path()
    assert file.stat().st_mode & 0o777 == 0o600
    moved = file.with_name("elsewhere.json")
    file.rename(moved)
    file.symlink_to(moved)
    sandpty("config", "set", "url", FAR)
    assert file.is_symlink()
    before = moved.read_bytes()

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    failed = sandpty("config", "set", "url", NEAR)
    assert isinstance(failed.exception, SandptyError)
    assert "No space left" in failed.exception.message
    assert moved.read_bytes() == before
    assert sorted(each.name for each in file.parent.iterdir()) == ["elsewhere.json", "sandpty.json"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"servers": []}', b'{"servers": {"a": 1}}', b'{"used": 1}', b"[" * 100_000, b"\xff"]
)
def test_a_broken_file_is_named(content: bytes) -> None:
    """Not overwritten, not ignored."""
    settings_file.path().parent.mkdir()
    settings_file.path().write_bytes(content)
    with pytest.raises(SandptyError, match="mend or remove it"):
        find_server(None, None)


@pytest.mark.parametrize(
    "words",
    [
        ("set", "url", "ftp://x"),
        ("set", "url"),
        ("set", "key", "with space"),
        ("set", "key", "ключ"),
        ("set", "key", ""),
        ("set", "url", FAR, "--name", "../x"),
        ("set", "colour", "red"),
        ("get", "url"),
        ("unset", "url"),
        ("use",),
        ("use", "--none", "near"),
        ("remove", "near"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused(sandpty: Sandpty, words: tuple[str, ...]) -> None:
    """And nothing is written."""
    assert sandpty("config", *words).exit_code != 0
    assert not settings_file.path().exists()
