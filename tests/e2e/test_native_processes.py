"""Processes over the native dialect: start, list, look, signal, resize, wait."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sandpty.wire.frames import FrameType
from tests.e2e.native import Box, sandbox
from tests.server_fixture import RunningServer
from tests.waiting import until


@pytest_asyncio.fixture(scope="module")
async def box(server: RunningServer) -> AsyncIterator[Box]:
    """One sandbox for this file; every test starts processes of its own."""
    async with sandbox(server, limits={"memory_mb": 2048}) as made:
        yield made


async def said(box: Box, *argv: str, **wanted: object) -> bytes:
    """What a command prints, to its end."""
    async with box.attach(await box.start(*argv, **wanted)) as terminal:
        await terminal.until_exit()
        return bytes(terminal.data)


async def running(box: Box, command: str) -> int:
    """How many processes of the sandbox run exactly this, as its /proc has it."""
    listed = await said(box, "sh", "-c", "for i in /proc/[0-9]*; do tr '\\0' ' ' < $i/cmdline; echo; done 2>/dev/null")
    return sum(line.strip() == command.encode() for line in listed.splitlines())


async def test_a_process_is_what_was_asked_for(box: Box) -> None:
    """Arguments, environment, directory, user and tag arrive, and are shown by GET and in the list."""
    process = await box.start("sleep", "1000", env={"K": "v=1 ä"}, cwd="/tmp", tag="mine")
    found = await box.process(process)
    assert found["argv"] == ["sleep", "1000"]
    assert found["env"]["K"] == "v=1 ä"
    assert (found["cwd"], found["tag"], found["user"]) == ("/tmp", "mine", "user")
    assert (found["pty"], found["running"], found["stdin_open"], found["exit"]) == (False, True, True, None)
    assert (found["log_start"], found["log_end"], found["attachments"]) == (0, 0, 0)
    assert found["started_at"].endswith("Z")
    assert found["ended_at"] is None
    listed = (await box.api.get(f"{box.path}/processes")).json()["processes"]
    assert found in listed
    assert found == await box.process("tag:mine") == await box.process(f"pid:{found['pid']}")


@pytest.mark.parametrize(
    ("user", "expected"),
    [("user", b"1000 user /home/user"), ("root", b"0 root /root"), ("1000", b"1000 user /home/user")],
)
async def test_a_process_runs_as_the_user_that_was_named(box: Box, user: str, expected: bytes) -> None:
    """By name or by number: uid, name and home."""
    out = await said(box, "sh", "-c", 'printf "%s %s %s" $(id -u) "$USER" "$HOME"', user=user)
    assert out == expected


@pytest.mark.parametrize(
    ("cwd", "expected"), [("", b"/home/user"), ("/usr", b"/usr"), ("~", b"/home/user"), (".", b"/home/user")]
)
async def test_a_process_starts_in_the_directory_that_was_named(box: Box, cwd: str, expected: bytes) -> None:
    """Empty is home, `~` is home, relative is under home."""
    assert (await said(box, "pwd", cwd=cwd)).strip() == expected


async def test_pipes_and_terminals_are_what_they_say(box: Box) -> None:
    """isatty, the size before the program's first instruction, TERM; no tty for pipes."""
    assert (await said(box, "sh", "-c", "test -t 0 || test -t 1 || printf pipes")) == b"pipes"
    process = await box.terminal("sh", "-c", "test -t 0 && stty size && echo $TERM", pty={"cols": 101, "rows": 7})
    async with box.attach(process) as terminal:
        await terminal.until_exit()
        assert terminal.data == b"7 101\r\nxterm-256color\r\n"


async def test_without_stdin_a_command_reads_the_end_at_once(box: Box) -> None:
    """stdin=false is /dev/null."""
    process = await box.start("cat", stdin=False)
    assert (await box.wait(process))["code"] == 0


async def test_closing_stdin_is_end_of_file(box: Box) -> None:
    """CLOSE_STDIN ends cat after everything typed; typing after it is stdin_closed."""
    process = await box.start("cat")
    async with box.attach(process) as terminal:
        await terminal.type(b"all of this")
        await terminal.send(FrameType.CLOSE_STDIN)
        await terminal.until_exit()
        assert terminal.data == b"all of this"


async def test_typing_into_a_closed_pipe_is_answered(box: Box) -> None:
    """A process that closed its stdin: ERROR stdin_closed or silence, never a lost attachment."""
    process = await box.start("sh", "-c", "exec <&-; printf ready; sleep 1000")
    async with box.attach(process) as terminal:
        await terminal.until(b"ready")
        await terminal.type(b"into the void")
        await terminal.type(b"into the void")
        await terminal.round_trip()
    process = await box.start("sh", "-c", "printf ready; sleep 1000")
    async with box.attach(process) as terminal:
        await terminal.until(b"ready")
        await terminal.send(FrameType.CLOSE_STDIN)
        await terminal.send(FrameType.CLOSE_STDIN)
        await terminal.type(b"too late")
        await terminal.round_trip()
        assert [error.code for error in terminal.errors] == [9]


async def test_exit_codes_and_signals_are_told_apart(box: Box) -> None:
    """Code, signal and reason for every way to end."""
    for code in (0, 1, 127, 255):
        process = await box.start("sh", "-c", f"exit {code}")
        assert await box.wait(process) == {
            "code": code,
            "signal": None,
            "reason": "exited",
            "core_dumped": False,
            "end": 0,
        }
    process = await box.start("sh", "-c", "kill -SEGV $$")
    exit_ = await box.wait(process)
    assert (exit_["code"], exit_["signal"], exit_["reason"]) == (None, 11, "signalled")
    process = await box.start("sleep", "1000", deadline_s=0.2)
    exit_ = await box.wait(process)
    assert (exit_["signal"], exit_["reason"]) == (9, "deadline")
    process = await box.start("sleep", "1000")
    assert (await box.signal(process, "KILL")).status_code == 204
    exit_ = await box.wait(process)
    assert (exit_["signal"], exit_["reason"]) == (9, "killed")


@pytest.mark.parametrize("name", ["TERM", "SIGTERM", "term", "sigterm", 15])
async def test_a_signal_has_many_names(box: Box, name: str | int) -> None:
    """With or without SIG, in either case, by number."""
    process = await box.start("sleep", "1000")
    assert (await box.signal(process, name, "leader")).status_code == 204
    assert (await box.wait(process))["signal"] == 15


async def test_kill_is_complete(box: Box) -> None:
    """Law 9: after 204 for KILL of a tree nothing of it lives, not even what called setsid or was orphaned."""
    script = (
        "for i in 1 2 3; do setsid sleep 98765 & (sleep 98765 &) ; (setsid sh -c 'sleep 98765; :' &) ; done;"
        " printf ready; wait; sleep 98765"
    )
    process = await box.start("sh", "-c", script)
    async with box.attach(process) as terminal:
        await terminal.until(b"ready")
    assert (await box.signal(process, "KILL", "tree")).status_code == 204
    left = await said(
        box, "sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'sleep 9876[5]'; :"
    )
    assert left == b""


async def test_a_dead_process_cannot_be_signalled_or_resized(box: Box) -> None:
    """409 exited; its exit status stays."""
    process = await box.terminal("true")
    await box.wait(process)
    answer = await box.signal(process, "TERM")
    assert (answer.status_code, answer.json()["error"]["reason"]) == (409, "exited")
    answer = await box.api.post(f"{box.path}/processes/{process}/resize", json={"cols": 80, "rows": 24})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (409, "exited")
    assert (await box.wait(process))["code"] == 0


async def test_resize_reaches_the_program(box: Box) -> None:
    """The new size, and SIGWINCH; a pipe process has none: not_a_pty."""
    process = await box.terminal("sh", "-c", "trap 'stty size' WINCH; printf ready; while :; do sleep 0.05; done")
    async with box.attach(process) as terminal:
        await terminal.until(b"ready")
        answer = await box.api.post(f"{box.path}/processes/{process}/resize", json={"cols": 10000, "rows": 1})
        assert answer.status_code == 204
        await terminal.until(b"1 10000\r\n")
    found = await box.process(process)
    assert (found["cols"], found["rows"]) == (10000, 1)
    pipes = await box.start("sleep", "1000")
    answer = await box.api.post(f"{box.path}/processes/{pipes}/resize", json={"cols": 80, "rows": 24})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (409, "not_a_pty")


async def test_wait_gives_up_when_told_to(box: Box) -> None:
    """408 timeout after timeout_s; the process goes on."""
    process = await box.start("sleep", "1000")
    started = time.monotonic()
    answer = await box.api.get(f"{box.path}/processes/{process}/wait?timeout_s=1")
    assert (answer.status_code, answer.json()["error"]["reason"]) == (408, "timeout")
    assert 0.9 < time.monotonic() - started < 5
    answer = await box.api.get(f"{box.path}/processes/{process}/wait?timeout_s=0")
    assert answer.status_code == 408
    assert (await box.process(process))["running"]


async def test_a_deadline_ends_the_whole_tree(box: Box) -> None:
    """Children that ignore signals go too."""
    process = await box.start("sh", "-c", "trap '' TERM HUP; sleep 54321 & wait", deadline_s=0.2)
    assert (await box.wait(process))["reason"] == "deadline"
    left = await said(
        box, "sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'sleep 5432[1]'; :"
    )
    assert left == b""


async def test_signals_are_as_a_fresh_shell_has_them(box: Box) -> None:
    """Law 10: nothing ignored, nothing blocked, only 0, 1 and 2 open, a session of its own."""
    status = (await said(box, "cat", "/proc/self/status")).decode()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    for mask in ("SigBlk", "SigIgn"):
        assert int(fields[mask], 16) == 0, mask
    assert (await said(box, "ls", "/proc/self/fd")).split() == [b"0", b"1", b"2", b"3"]  # 3 is ls's own
    out = await said(box, "sh", "-c", "cut -d' ' -f1,6 /proc/self/stat; printf '%s ' $$")
    assert out != b""


async def test_very_long_arguments_and_environments_pass(box: Box) -> None:
    """A hundred kilobytes in one argument; a thousand variables."""
    long = "x" * 100_000
    assert len(await said(box, "printf", "%s", long)) == 100_000
    env = {f"VARIABLE_{number}": "v" * 50 for number in range(1000)}
    assert int(await said(box, "sh", "-c", "env | grep -c ^VARIABLE_", env=env)) == 1000


async def test_ended_processes_are_listed_until_they_are_forgotten(box: Box) -> None:
    """Running and ended, oldest first."""
    first, second = await box.start("true"), await box.start("sleep", "1000")
    await box.wait(first)
    listed = (await box.api.get(f"{box.path}/processes")).json()["processes"]
    numbers = [item["process"] for item in listed]
    assert numbers == sorted(numbers)
    states = {item["process"]: item["running"] for item in listed}
    assert (states[first], states[second]) == (False, True)


async def test_a_log_may_be_bigger_than_usual(box: Box) -> None:
    """log_bytes up to 64 MiB: four megabytes said to nobody are all there."""
    process = await box.start("sh", "-c", "head -c 4000000 /dev/zero | tr '\\0' b", log_bytes=8 * 1024 * 1024)
    await box.wait(process)
    async with box.attach(process) as terminal:
        await terminal.until_exit()
    assert (len(terminal.data), terminal.gaps) == (4_000_000, [])


async def test_attachments_are_counted(box: Box) -> None:
    """GET says how many look on."""
    process = await box.start("sleep", "1000")

    async def attachments(number: int) -> bool:
        return bool((await box.process(process))["attachments"] == number)

    async with box.attach(process), box.attach(process):
        await until(lambda: attachments(2))
    await until(lambda: attachments(0))
