"""E2B's unmodified command line, `@e2b/cli`, with a key of a team of its own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.conftest import VENDOR_JS
from tests.e2e.tmux import Tmux, tmux
from tests.server_fixture import RunningServer, sandpty
from tests.waiting import until_sync

WAIT_S = 60.0  # a Node starts slowly on a busy machine


@dataclass(frozen=True)
class E2bCli:
    """The command with its environment, and a home directory without a configuration."""

    home: Path
    env: dict[str, str]

    @property
    def program(self) -> str:
        """The installed command."""
        return str(VENDOR_JS / "node_modules" / ".bin" / "e2b")

    def run(self, *words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """A command, to its end."""
        return subprocess.run(
            [self.program, *words],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            env=self.env,
            capture_output=True,
            check=False,
            timeout=WAIT_S,
        )

    def out(self, *words: str) -> str:
        """What it prints without escape sequences; it must end well."""
        done = self.run(*words)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode()).strip()

    def sandboxes(self, *words: str) -> list[str]:
        """The ids that `list` shows."""
        return [item["sandboxId"] for item in json.loads(self.out("sandbox", "list", "-f", "json", *words))]


@pytest.fixture(scope="module")
def cli(server: RunningServer) -> Iterator[E2bCli]:
    """The command for a team in which nobody else works: `kill --all` means all of them."""
    command = sandpty("keys", "add", "--data-dir", str(server.data_dir), "--team", "command-line")
    key = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT_S).stdout.strip()
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as home:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("E2B_", "SANDPTY_"))}
        env = {**kept, **server.env, "E2B_API_KEY": key, "HOME": home, "NO_UPDATE_NOTIFIER": "1"}
        running = E2bCli(Path(home), env)
        yield running
        running.run("sandbox", "kill", "--all")


@pytest.fixture(scope="module")
def sandbox(cli: E2bCli) -> str:
    """A sandbox for all tests that leave it as it was."""
    made = cli.out("sandbox", "create", "--detach", "--timeout", "600")
    assert re.fullmatch(r"i[a-z0-9]{20}", made)
    return made


def test_list_and_info(cli: E2bCli, sandbox: str) -> None:
    """As a table, as JSON, one in full."""
    assert sandbox in cli.sandboxes()
    assert sandbox in cli.out("sandbox", "list")
    info = cli.out("sandbox", "info", sandbox)
    assert f"Sandbox ID: {sandbox}" in info
    assert "State: running" in info


def test_exec_gives_output_errors_and_exit_codes(cli: E2bCli, sandbox: str) -> None:
    """User, directory and environment as asked for."""
    done = cli.run("sandbox", "exec", "-u", "root", "-c", "/tmp", "-e", "WHO=me", sandbox, "id -un; pwd; echo $WHO")
    assert (done.returncode, done.stdout) == (0, b"root\n/tmp\nme\n")
    done = cli.run("sandbox", "exec", sandbox, "echo oops >&2; exit 42")
    assert done.returncode == 42
    assert b"oops" in done.stderr


def test_exec_takes_piped_input_to_its_end(cli: E2bCli, sandbox: str) -> None:
    """More than one chunk of it; the end of the pipe is the end of stdin."""
    text = b"".join(b"line %d\n" % number for number in range(20_000))
    done = cli.run("sandbox", "exec", sandbox, "sha256sum; echo end", stdin=text)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == f"{hashlib.sha256(text).hexdigest()}  -\nend\n"


def test_exec_in_the_background_and_ctrl_c_in_the_foreground(cli: E2bCli, sandbox: str) -> None:
    """The first goes on by itself; the second takes its command with it."""
    done = cli.run("sandbox", "exec", "--background", sandbox, "echo $$ > /tmp/pid; exec sleep 611")
    assert (done.returncode, done.stderr.strip().isdigit()) == (0, True)
    until_sync(lambda: _running(cli, sandbox, "sleep 611"), WAIT_S, "it runs")
    running = subprocess.Popen(
        [cli.program, "sandbox", "exec", sandbox, "echo up; exec sleep 612"],
        env=cli.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    running.send_signal(signal.SIGINT)
    assert running.wait(WAIT_S) != 0
    running.stdout.close()
    assert not _running(cli, sandbox, "sleep 612")
    assert _running(cli, sandbox, "sleep 611")


def _running(cli: E2bCli, sandbox: str, command: str) -> bool:
    listed = cli.run("sandbox", "exec", sandbox, "ps -eo args").stdout.decode().splitlines()
    return command in listed


def test_pause_resume_and_snapshots(cli: E2bCli, sandbox: str) -> None:
    """A paused sandbox is in the other list; a snapshot has a name and goes again."""
    assert "has been paused" in cli.out("sandbox", "pause", sandbox)
    assert "already paused" in cli.out("sandbox", "pause", sandbox)
    assert sandbox not in cli.sandboxes()
    assert sandbox in cli.sandboxes("--state", "paused")
    assert "has been resumed" in cli.out("sandbox", "resume", sandbox)
    assert sandbox in cli.sandboxes()
    assert "Created snapshot" in cli.out("sandbox", "snapshot", "create", sandbox, "--name", "kept")
    (listed,) = json.loads(cli.out("sandbox", "snapshot", "list", "-f", "json"))
    assert "kept" in listed["snapshotId"]
    assert "has been deleted" in cli.out("sandbox", "snapshot", "delete", listed["snapshotId"])
    assert "No snapshots" in cli.out("sandbox", "snapshot", "list")


def test_metrics_and_templates(cli: E2bCli, sandbox: str) -> None:
    """Lines that make sense; `base` is there."""
    lines = [json.loads(line) for line in cli.out("sandbox", "metrics", sandbox, "--format", "json").splitlines()]
    assert all(0 < line["memUsed"] < line["memTotal"] for line in lines if "memUsed" in line)
    assert any("memUsed" in line for line in lines)
    assert re.search(r"Memory: +\d+ / 1024 ", cli.out("sandbox", "metrics", sandbox))
    listed = json.loads(cli.out("template", "list", "-f", "json"))
    assert any("base" in template["aliases"] for template in listed)


def test_templates_are_built_published_and_deleted(cli: E2bCli, tmp_path: Path) -> None:
    """From a Dockerfile and the files beside it."""
    (tmp_path / "file.txt").write_text("copied")
    (tmp_path / "e2b.Dockerfile").write_text("FROM e2bdev/base\nCOPY file.txt /srv/file.txt\nRUN echo built\n")
    done = cli.run("template", "create", "from-file", "--path", str(tmp_path), "--cpu-count", "1")
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    (made,) = [each for each in json.loads(cli.out("template", "list", "-f", "json")) if "from-file" in each["aliases"]]
    assert (made["cpuCount"], made["buildStatus"], made["public"]) == (1, "ready", False)
    sandbox = cli.out("sandbox", "create", "from-file", "--detach", "--timeout", "60")
    assert cli.run("sandbox", "exec", sandbox, "cat /srv/file.txt").stdout == b"copied"
    cli.out("template", "publish", made["templateID"], "-y")
    (made,) = [each for each in json.loads(cli.out("template", "list", "-f", "json")) if "from-file" in each["aliases"]]
    assert made["public"]
    cli.out("template", "delete", made["templateID"], "-y")
    listed = json.loads(cli.out("template", "list", "-f", "json"))
    assert not [each for each in listed if "from-file" in each["aliases"]]


def test_logs_follow_a_sandbox_to_its_end(cli: E2bCli) -> None:
    """What starts meanwhile is shown; the command ends when the sandbox does."""
    made = cli.out("sandbox", "create", "--detach", "--timeout", "600")
    following = subprocess.Popen(
        [cli.program, "sandbox", "logs", "--follow", made],
        env=cli.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert following.stdout is not None
    seen = b""
    while b"sandbox created" not in seen:
        seen += (line := following.stdout.readline())
        assert line, seen
    cli.run("sandbox", "exec", made, "echo of-this")
    while b"echo of-this" not in seen:
        seen += (line := following.stdout.readline())
        assert line, seen
    assert "has been killed" in cli.out("sandbox", "kill", made)
    rest, _ = following.communicate(timeout=WAIT_S)
    assert following.returncode == 0
    assert b"closed" in rest
    assert "sandbox ended: killed" in cli.out("sandbox", "logs", made)


@pytest.fixture(scope="module")
def person(cli: E2bCli) -> Iterator[Tmux]:
    """Somebody at a terminal."""
    with tmux(cols=100, rows=30, env=cli.env) as at_a_terminal:
        yield at_a_terminal


def test_create_is_a_terminal_of_the_windows_size(cli: E2bCli, person: Tmux) -> None:
    """A prompt, the size, also after the window was dragged; `exit` ends it, and soon the sandbox."""
    before = set(cli.sandboxes())
    person.type(f"{cli.program} sandbox create")
    person.wait_for("user@", WAIT_S)
    (made,) = set(cli.sandboxes()) - before
    person.type("stty size")
    person.wait_for("30 100", WAIT_S)
    person.resize(120, 40)
    until_sync(lambda: _size_is(person, "40 120"), WAIT_S, "the new size")
    person.type("exit")
    person.wait_for("Closing terminal connection", WAIT_S)
    until_sync(lambda: made not in cli.sandboxes(), WAIT_S, "the sandbox ends with its terminal")
    person.resize(100, 30)
    person.clear()


def _size_is(person: Tmux, size: str) -> bool:
    person.type("stty size")
    return size in person.screen()


def test_connect_is_a_terminal_in_a_running_sandbox(cli: E2bCli, person: Tmux, sandbox: str) -> None:
    """Ctrl-C is the program's; what was typed is echoed once; the sandbox lives on."""
    person.type(f"{cli.program} sandbox connect {sandbox}")
    person.wait_for("user@", WAIT_S)
    person.type("sleep 613")
    until_sync(lambda: _running(cli, sandbox, "sleep 613"), WAIT_S, "the program runs")
    person.keys("C-c")
    person.type("echo af''ter")
    person.wait(lambda screen: re.search(r"^after$", screen, re.M), WAIT_S)
    assert not _running(cli, sandbox, "sleep 613")
    person.type("exit")
    person.wait_for("Closing terminal connection", WAIT_S)
    assert sandbox in cli.sandboxes()


def test_kill_all(cli: E2bCli, sandbox: str) -> None:
    """Of this team, and no other's. (The last test: it ends the sandbox of all tests.)"""
    assert cli.run("sandbox", "kill", "i00000000000000000000").returncode == 0
    assert "Killed" in cli.out("sandbox", "kill", "--all")
    assert cli.sandboxes() == []
