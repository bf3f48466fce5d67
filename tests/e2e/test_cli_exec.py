"""`sandpty exec` and the commands that look at a sandbox, as a script uses them."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cli_fixture import Cli
from tests.server_fixture import RunningServer, sandpty
from tests.waiting import until_sync


@pytest.fixture(scope="module")
def cli(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command line, with a home of its own."""
    return Cli(server, Path(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def box(cli: Cli) -> Iterator[str]:
    """One sandbox for this file."""
    with cli.sandbox() as made:
        yield made


def test_streams_and_the_exit_status_are_the_commands_own(cli: Cli, box: str) -> None:
    """stdout to stdout, stderr to stderr, 7 is 7, a signal is 128 + its number."""
    done = cli.run("exec", box, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)
    assert cli.run("exec", box, "--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    assert cli.run("exec", box, "true").returncode == 0


def test_options_of_the_command_are_the_commands(cli: Cli, box: str) -> None:
    """Whatever follows the ID is not ours, with `--` or without."""
    assert cli.out("exec", box, "echo", "--json", "-e", "x") == "--json -e x"
    assert cli.out("exec", "-e", "A=1", "--env", "B=2 3", box, "--", "sh", "-c", 'echo "$A $B"') == "1 2 3"
    assert cli.out("exec", "--user", "root", "--cwd", "/tmp", box, "sh", "-c", "id -un; pwd") == "root\n/tmp"


def test_input_is_passed_to_its_end(cli: Cli, box: str) -> None:
    """As in a pipe: the command sees the end of what is piped in; --no-stdin is empty at once."""
    text = "".join(f"{number:07d}\n" for number in range(60_000))
    assert cli.out("exec", box, "sha256sum", stdin=text).split()[0] == hashlib.sha256(text.encode()).hexdigest()
    assert cli.out("exec", "--no-stdin", box, "wc", "-c", stdin="not this") == "0"


def test_output_arrives_whole(cli: Cli, box: str) -> None:
    """Megabytes, and bytes that are no text."""
    done = subprocess.run(
        sandpty("exec", box, "--", "sh", "-c", "seq 1 500000; printf '\\377\\000'"),
        env=cli.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == b"".join(b"%d\n" % number for number in range(1, 500_001)) + b"\xff\x00"


def test_ctrl_c_interrupts_the_command_and_not_only_us(cli: Cli, box: str) -> None:
    """It may clean up and choose its status."""
    line = "trap 'echo cleaned; exit 9' INT; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen(
        sandpty("exec", box, "--", "bash", "-c", line), env=cli.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"cleaned\n"
        assert process.wait(30) == 9


def test_a_command_is_killed_at_its_timeout(cli: Cli, box: str) -> None:
    """Status 124, as of timeout(1); nothing of it is left."""
    assert cli.run("exec", "--timeout", "1s", box, "sleep", "4321").returncode == 124
    assert "4321" not in cli.out("exec", box, "ps", "ax")


def test_errors_are_one_line_each(cli: Cli, box: str) -> None:
    """With the status of their kind."""
    for words, status in (
        (("exec", "i00000000000000000000", "true"), 1),
        (("exec", box, "no-such-program"), 127),
        (("exec", "--user", "nobody-of-that-name", box, "true"), 2),
        (("exec", box), 2),
    ):
        done = cli.run(*words)
        assert done.returncode == status, done.stderr
        assert done.stderr.startswith("sandpty: ")
        assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_ends_the_command_quietly(cli: Cli, box: str) -> None:
    """As in `yes | head -1`."""
    line = f"{cli.line('exec', box, 'yes')} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line],
        env=cli.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines()[0] == "y"
    assert "Traceback" not in done.stderr


def test_what_there_is_to_know_is_shown_and_machine_readable(cli: Cli, box: str) -> None:
    """info, ps, logs, metrics: for people, and with --json for programs."""
    assert box in cli.out("info", box)
    assert json.loads(cli.out("info", "--json", box))["id"] == box
    process = subprocess.Popen(sandpty("exec", box, "sleep", "1234"), env=cli.env, stdin=subprocess.DEVNULL)
    try:
        until_sync(lambda: "sleep 1234" in cli.out("ps", box), 30)
        running = json.loads(cli.out("ps", "--json", box))
        assert ["sleep", "1234"] in [each["argv"] for each in running]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert "exit 143" in cli.out("ps", "--all", box)
    assert json.loads(cli.out("logs", "--json", box))
    assert cli.out("logs", box)
    assert json.loads(cli.out("metrics", "--json", box))[0]["processes"] >= 0
    assert "MiB" in cli.out("metrics", box)
