"""`pip install sandpty` without its extra `server` is a client: SDK and command line work, and say what is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from sandpty.cli.main import SERVER_PACKAGES
from tests.e2e.cli_fixture import Cli
from tests.unit.test_cli_elsewhere import ELSEWHERE

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {"dnspython": "dns"}
# What an installation without the extra is: the extra's packages cannot be imported.
WITHOUT = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(SERVER_PACKAGES)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
PROGRAM = """
from sandpty import AsyncSandbox, Sandbox
import asyncio
with Sandbox() as sandbox:
    sandbox.files.write("a", "1")
    print(sandbox.commands.run("cat a").stdout)
async def main():
    async with await AsyncSandbox.create() as sandbox:
        async with await sandbox.files.watch_dir(".") as watch:
            await sandbox.files.write("a", "2")
            print(bool(await watch.get_new_events()), await sandbox.files.read("a"))
asyncio.run(main())
"""


def names(requirements: list[str]) -> set[str]:
    """What they are imported as."""
    found = {re.split(r"[<>=!~;\[ ]", each)[0] for each in requirements}
    return {IMPORTED_AS.get(each, each) for each in found}


def run(cli: Cli, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A program of a client's, with words."""
    command = [sys.executable, "-c", WITHOUT + program, *words]
    env = {**os.environ, **cli.server.env}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)


def command(cli: Cli, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of a client's."""
    return run(cli, "from sandpty.cli.main import main; main()", *words)


def test_the_extra_is_what_only_servers_need() -> None:
    """A package that is added to one of the lists is in the right one; the message knows all of the extra."""
    assert names(PROJECT["optional-dependencies"]["server"]) == SERVER_PACKAGES
    assert names(PROJECT["dependencies"]) == {"click", "h11", "httpx", "rich"}


def test_the_sdk_works_without_a_servers_packages(cli: Cli) -> None:
    """Both flavours, with commands, files and a watch."""
    done = run(cli, PROGRAM)
    assert (done.stdout, done.stderr) == ("1\nTrue 2\n", "")


def test_the_command_line_works_without_a_servers_packages(cli: Cli, box: str, tmp_path: Path) -> None:
    """What a client does; what only a server's machine does is one line that says what to install."""
    assert box in command(cli, "ls").stdout
    assert command(cli, "exec", box, "echo", "hello").stdout == "hello\n"
    assert command(cli, "cp", f"{box}:/etc/hostname", str(tmp_path / "x")).returncode == 0
    assert (tmp_path / "x").exists()
    for words in (("serve", "--port", "0", "--data-dir", str(tmp_path / "d")), ("down",), ("keys", "list")):
        done = command(cli, *words)
        assert (done.returncode, done.stderr.count("\n")) == (69, 1), done.stderr
        assert "pip install 'sandpty[server]'" in done.stderr


def elsewhere(cli: Cli, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A command of ours where POSIX's modules, signals and calls are not."""
    program = ELSEWHERE + "from sandpty.cli.main import main; main()"
    env = {**os.environ, **cli.server.env}
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, check=False, timeout=60)


def test_a_client_on_windows_runs_commands_and_copies_files(cli: Cli, box: str, tmp_path: Path) -> None:
    """`exec` with its streams and status, `ls`, `ps`, `cp` both ways with directories: none needs what POSIX has."""
    done = elsewhere(cli, "exec", box, "--", "sh", "-c", "cat; echo no >&2; exit 7", stdin="typed\n")
    assert (done.stdout, done.stderr, done.returncode) == ("typed\n", "no\n", 7)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("content")
    for words in (
        ("cp", "-qr", str(tmp_path / "tree"), f"{box}:"),
        ("cp", "-qr", f"{box}:tree", str(tmp_path / "back")),
    ):
        copied = elsewhere(cli, *words)
        assert (copied.returncode, copied.stderr) == (0, "")
    assert (tmp_path / "back" / "file").read_text() == "content"
    assert box in elsewhere(cli, "ls").stdout
    assert elsewhere(cli, "ps", box).returncode == 0
