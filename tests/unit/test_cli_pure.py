"""The pure parts of the command line: escape keys, screen modes, options, what is printed."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import click
import pytest

from sandpty.cli import main, remembered
from sandpty.cli.connection import Duration, Pair, find_server, server_url
from sandpty.cli.env import exports
from sandpty.cli.escape import Action, EscapeKeys
from sandpty.cli.examination import cgroup_mode
from sandpty.cli.sandboxes import _span, printable
from sandpty.cli.screen_modes import ScreenModes
from sandpty.cli.serve import is_loopback
from sandpty.config import DataDir
from sandpty.sdk.errors import from_close, from_response
from sandpty.sdk.values import exit_status
from sandpty.wire.errors import REASONS, SandptyError
from sandpty.wire.frames import Exit, ExitReason


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        (b"~.", [Action.DETACH]),
        (b"ls\r~.", [b"ls\r", Action.DETACH]),
        (b"ls\n~.rest", [b"ls\n", Action.DETACH]),
        (b"a~.", [b"a~."]),
        (b"~~", [b"~"]),
        (b"~~.", [b"~."]),
        (b"~/bin\r", [b"~/bin\r"]),
        (b"\r~\r~.", [b"\r~\r", Action.DETACH]),
        (b"\r~\x1als", [b"\r", Action.SUSPEND, b"ls"]),
        (b"\r~?ls\r", [b"\r", Action.HELP, b"ls\r"]),
        (b"\r~?~.", [b"\r", Action.HELP, Action.DETACH]),
        (bytes(range(256)), [bytes(range(256))]),
    ],
)
def test_escape_keys_count_only_after_enter(typed: bytes, sent: list[bytes | Action]) -> None:
    """As with ssh: everything else that is typed reaches the program byte for byte."""
    assert EscapeKeys().feed(typed) == sent
    keys, parts = EscapeKeys(), []
    for key in typed:
        parts += keys.feed(bytes([key]))
        if Action.DETACH in parts:
            break
    joined: list[bytes | Action] = []
    for part in parts:
        if isinstance(part, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += part
        else:
            joined.append(part)
    assert joined == sent, "one key at a time means the same as all at once"


def test_leaving_a_full_screen_program_undoes_its_modes_and_nothing_else() -> None:
    """After detaching from vim the local terminal shows the shell again, with a cursor and no mouse reports."""
    modes = ScreenModes()
    for byte in b"\x1b[?1049h\x1b[?1h\x1b=\x1b[?2004h\x1b[?25l\x1b[?1000;1006h text \x1b[?2004l":
        modes.feed(bytes([byte]))
    assert modes.alternate_screen
    undo = modes.leaving()
    for sequence in (b"\x1b[?1049l", b"\x1b[?1l", b"\x1b>", b"\x1b[?25h", b"\x1b[?1000l", b"\x1b[?1006l"):
        assert sequence in undo
    assert b"2004" not in undo
    untouched = ScreenModes()
    untouched.feed(b"plain text \x1b[31mred\x1b[0m\r\n")
    assert not untouched.alternate_screen
    assert untouched.leaving() == b"\x1b[0m"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1.5h", 5400), ("1d", 86400)]
)
def test_durations_are_written_as_people_write_them(text: str, seconds: float) -> None:
    """Seconds, or a unit."""
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1w", "h", "1e3", "nan", "10 m"])
def test_a_bad_duration_is_a_usage_error(text: str) -> None:
    """Not a zero, not a crash."""
    with pytest.raises(click.BadParameter, match="is not a duration"):
        Duration().convert(text, None, None)


def test_pairs_keep_everything_behind_the_first_equals_sign() -> None:
    """NAME=VALUE, where VALUE is anything."""
    assert Pair().convert("a=b=c", None, None) == ("a", "b=c")
    assert Pair().convert("a=", None, None) == ("a", "")
    for bad in ("a", "=b", ""):
        with pytest.raises(click.BadParameter):
            Pair().convert(bad, None, None)


def test_env_lines_survive_a_hostile_address_in_every_shell(tmp_path: Path) -> None:
    """What `eval` sees is quoted: nothing in an address or a key is executed."""
    url = "http://127.0.0.1:1/';touch${IFS}x;'`id`"
    script = "\n".join(exports(url, "k'e\"y$HOME")) + '\nprintf "%s\\n%s" "$E2B_API_URL" "$E2B_API_KEY"'
    for shell in ("sh", "bash"):
        said = subprocess.run([shell, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        assert said == f"{url}\nk'e\"y$HOME"
    assert list(tmp_path.iterdir()) == []


def test_hyperbrowser_is_given_a_name_and_the_others_an_address() -> None:
    """Its Node client makes host names out of the address; an IP address cannot carry a prefix."""
    lines = dict(shlex.split(line)[1].split("=", 1) for line in exports("http://127.0.0.1:3980", "k")[:-1])
    assert lines["HYPERBROWSER_BASE_URL"] == "http://localhost:3980"
    assert lines["E2B_API_URL"] == lines["NOVITA_API_URL"] == lines["SANDPTY_URL"] == "http://127.0.0.1:3980"


def test_the_server_is_found_by_option_then_data_directory_then_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said on the command line counts for more than what is exported."""
    (tmp_path / "server.json").write_text('{"url": "http://0.0.0.0:4000"}')
    (tmp_path / "api_key").write_text("e2b_file\n")
    monkeypatch.setenv("SANDPTY_URL", "http://exported:1")
    monkeypatch.setenv("SANDPTY_API_KEY", "e2b_exported")
    assert find_server(None, None).url == "http://exported:1"
    assert find_server(None, None).api_key == "e2b_exported"
    assert find_server("http://said:2/", None).url == "http://said:2"
    assert find_server(None, tmp_path).url == "http://127.0.0.1:4000"
    assert find_server(None, tmp_path).api_key == "e2b_file"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"url": 5}'])
def test_a_broken_server_file_means_the_default_address(tmp_path: Path, content: str) -> None:
    """The file is written while readers read; half of it is no reason to fail."""
    (tmp_path / "server.json").write_text(content)
    assert server_url(DataDir(tmp_path)) == "http://127.0.0.1:3980"


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://", "127.0.0.1:3980"])
def test_an_address_that_is_none_is_refused_readably(url: str) -> None:
    """Before anything is sent anywhere."""
    with pytest.raises(SandptyError, match="is not the address of a server"):
        find_server(url, None)


def test_offsets_are_remembered_per_terminal_and_forgotten_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken or missing state file means: not known."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert remembered.recall("i1", 1) is None
    remembered.remember("i1", 1, 4096)
    remembered.remember("i1", 2, 7)
    assert (remembered.recall("i1", 1), remembered.recall("i1", 2)) == (4096, 7)
    remembered.forget("i1", 1)
    assert remembered.recall("i1", 1) is None
    (remembered.state_dir() / "i1-2.json").write_text('{"offset": "x"}')
    assert remembered.recall("i1", 2) is None
    for number in range(remembered.KEPT_FILES + 20):
        remembered.remember("many", number, number)
    assert len(list(remembered.state_dir().iterdir())) <= remembered.KEPT_FILES


def test_metadata_cannot_steer_the_terminal_it_is_listed_on() -> None:
    """Escape sequences in somebody's metadata are shown as question marks."""
    assert printable("a\x1b[2Jb\r\nc") == "a?[2Jb??c"


@pytest.mark.parametrize(("seconds", "text"), [(-5, "0s"), (59, "59s"), (300, "5m"), (7200, "2h"), (200_000, "2d")])
def test_ages_are_short(seconds: float, text: str) -> None:
    """One number, one unit."""
    assert _span(seconds) == text


def test_exit_statuses_are_those_of_a_shell() -> None:
    """Code, 128 + signal, 124 for a deadline."""
    assert exit_status(Exit(False, 7, ExitReason.EXITED, False, 0)) == 7
    assert exit_status(Exit(True, 9, ExitReason.SIGNALLED, False, 0)) == 137
    assert exit_status(Exit(True, 9, ExitReason.DEADLINE, False, 0)) == 124


def test_every_reason_ends_a_command_with_one_line_and_its_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    """`sandpty: <message> (<hint>)`, whatever goes wrong."""
    for name, reason in REASONS.items():

        def fail(name: str = name) -> None:
            raise SandptyError(name, "two\nlines\x1b[2J")

        assert main.run(fail) == reason.exit_status
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.startswith("sandpty: two lines?[2J")
        assert reason.hint in said


def test_what_nobody_foresaw_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback unless asked for."""

    def fail() -> None:
        raise RuntimeError("strange\nthings")

    assert main.run(fail) == 70
    assert capsys.readouterr().err.startswith("sandpty: internal error: RuntimeError: strange things (")


def test_every_answer_of_a_server_becomes_an_error_of_the_table() -> None:
    """Ours by reason; a proxy's by status; garbage as it is."""
    ours = from_response(404, b'{"error": {"reason": "no_such_sandbox", "message": "gone", "hint": ""}}')
    assert (ours.reason.name, ours.message) == ("no_such_sandbox", "gone")
    assert from_response(401, b"<html>").reason.name == "unauthenticated"
    assert from_response(502, b"").reason.name == "server_unreachable"
    for body in (b"\xff", b"[]", b'{"error": 5}', b'{"error": {"reason": "made_up"}}'):
        assert from_response(500, body).reason.name == "internal"
    assert from_close(4409, "sandbox_paused: it sleeps").reason.name == "sandbox_paused"
    assert from_close(4999, "").reason.name == "internal"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("h", False)],
)
def test_loopback_is_recognised(host: str, loopback: bool) -> None:
    """What decides about warnings, and about serving without isolation."""
    assert is_loopback(host) is loopback


def test_doctor_tells_the_three_cgroup_layouts_apart(tmp_path: Path) -> None:
    """v2, v1 with a v2 tree beside it, v1 alone, nothing."""
    v2, hybrid, v1, nothing = (tmp_path / name for name in ("v2", "hybrid", "v1", "nothing"))
    v2.mkdir()
    (v2 / "cgroup.controllers").write_text("cpu memory pids\n")
    for mount, names in ((hybrid, ("memory", "pids", "unified")), (v1, ("memory", "pids"))):
        for name in names:
            (mount / name).mkdir(parents=True)
            (mount / name / "cgroup.procs").touch()
    assert cgroup_mode(v2) == "v2 (cpu memory pids)"
    assert cgroup_mode(hybrid) == "v1-hybrid (memory, pids)"
    assert cgroup_mode(v1) == "v1 (memory, pids)"
    assert cgroup_mode(nothing).startswith("none mounted")
