"""Hyperbrowser's processes through its unmodified Python SDK, synchronous and asynchronous."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hyperbrowser import AsyncHyperbrowser, Hyperbrowser
from hyperbrowser.client.managers.async_manager.sandbox import SandboxHandle as AsyncSandboxHandle
from hyperbrowser.client.managers.sync_manager.sandbox import SandboxHandle
from hyperbrowser.exceptions import HyperbrowserError
from hyperbrowser.models import SandboxExecParams

from tests.waiting import until_sync

DEADLINE_S = 30.0
LINES = "for i in $(seq 1 300); do echo out-$i; echo err-$i >&2; done"


@pytest.fixture(scope="module")
def sandbox(hyperbrowser: Hyperbrowser, hyperbrowser_sandbox_id: str) -> SandboxHandle:
    """The sandbox of this module."""
    return hyperbrowser.sandboxes.get(hyperbrowser_sandbox_id)


@pytest_asyncio.fixture
async def asandbox(ahyperbrowser: AsyncHyperbrowser, hyperbrowser_sandbox_id: str) -> AsyncSandboxHandle:
    """The same, asynchronously."""
    return await ahyperbrowser.sandboxes.get(hyperbrowser_sandbox_id)


def refused(call: Callable[[], Any]) -> tuple[int | None, str | None]:
    """Status and code of the error that a call ends in."""
    with pytest.raises(HyperbrowserError) as caught:
        call()
    return caught.value.status_code, caught.value.code


def raw(sandbox: SandboxHandle, method: str, path: str, **how: Any) -> httpx.Response:
    """One request to the sandbox's own API, without the SDK."""
    detail = sandbox.refresh().to_dict()
    headers = {"Authorization": f"Bearer {detail['token']}", **how.pop("headers", {})}
    return httpx.request(method, f"{detail['runtime']['base_url']}{path}", headers=headers, timeout=60, **how)


def test_a_command_gives_its_output_and_exit_code(sandbox: SandboxHandle) -> None:
    """stdout and stderr apart, characters whole, a failure is a result."""
    result = sandbox.exec("echo out é€😀; echo err >&2; exit 7")
    assert (result.exit_code, result.stdout, result.stderr) == (7, "out é€😀\n", "err\n")
    assert (result.status, result.error, result.output_truncated) == ("exited", None, False)
    assert result.started_at <= result.completed_at
    params = SandboxExecParams(command="printf", args=["%s", "a b"], cwd="/tmp", env={"X": "1"})
    assert sandbox.processes.exec(params).stdout == "a b"
    assert sandbox.exec("pwd; echo $X", cwd="/tmp", env={"X": "y"}).stdout == "/tmp\ny\n"
    assert sandbox.exec("id -un").stdout == "user\n"
    assert sandbox.exec("id -un", run_as="root").stdout == "root\n"


async def test_the_same_asynchronously(asandbox: AsyncSandboxHandle) -> None:
    """exec, start, stream, stdin, signal, kill, list, get, disconnect."""
    assert (await asandbox.exec("echo out")).stdout == "out\n"
    assert (await asandbox.processes.exec("echo out")).stdout == "out\n"
    process = await asandbox.processes.start("read line; echo got:$line")
    assert process.id in [item.id for item in (await asandbox.processes.list(limit=5)).data]
    await process.write_stdin("typed\n", eof=True)
    assert (await process.wait()).stdout == (await process.result()).stdout == "got:typed\n"
    assert [event.type async for event in process.stream()] == ["stdout", "exit"]
    again = await asandbox.get_process(process.id)
    assert (await again.refresh()).status == (await asandbox.processes.get(process.id)).status == "exited"
    assert [event.type async for event in again.stream()] == ["stdout", "exit"]
    sleeper = await asandbox.processes.start("sleep 1000")
    await sleeper.signal("TERM")
    assert (await sleeper.wait()).exit_code == 143
    assert (await (await asandbox.processes.start("sleep 1000")).kill()).status == "killed"
    left = await asandbox.processes.start("sleep 1000")
    await left.disconnect()
    assert (await left.refresh()).status == "running"
    assert (await (await asandbox.get_process(left.id)).kill()).status == "killed"


def test_numbers_have_no_gaps_and_are_the_same_for_everybody(sandbox: SandboxHandle) -> None:
    """From 1, +1 for each event of either stream; a second reader gets the same events under the same numbers."""
    process = sandbox.processes.start(LINES)
    result = process.wait()
    first = [event for event in process.stream() if event.type != "exit"]
    assert [event.seq for event in first] == list(range(1, len(first) + 1))
    assert result.last_seq == len(first)
    assert result.stdout == "".join(f"out-{i}\n" for i in range(1, 301))
    assert result.stderr == "".join(f"err-{i}\n" for i in range(1, 301))
    again = [event for event in sandbox.get_process(process.id).stream() if event.type != "exit"]
    assert [(event.seq, event.type, event.data) for event in again] == [
        (event.seq, event.type, event.data) for event in first
    ]
    for number in (1, 2, len(first) // 2, len(first)):
        part = [event.seq for event in sandbox.get_process(process.id).stream(number) if event.type != "exit"]
        assert part == list(range(number, len(first) + 1))
    assert [event.type for event in sandbox.get_process(process.id).stream(len(first) + 1)] == ["exit"]


def test_a_stream_follows_a_process_that_runs(sandbox: SandboxHandle) -> None:
    """From what is kept to what is to come, then the exit with everything."""
    process = sandbox.processes.start("echo before; read line; echo after")
    until_sync(lambda: process._output.events, DEADLINE_S)
    events = sandbox.get_process(process.id).stream()
    assert next(events).data == "before\n"
    process.write_stdin(b"go\n")
    rest = list(events)
    assert [event.type for event in rest] == ["stdout", "exit"]
    assert rest[1].result.stdout == "before\nafter\n"
    assert rest[1].result.exit_code == 0


def test_bytes_and_characters_come_through(sandbox: SandboxHandle) -> None:
    """A character whose bytes come apart, and text that other libraries take for line ends."""
    assert sandbox.exec("printf '\\303'; sleep 0.2; printf '\\251'").stdout == "é"
    odd = 'a\u2028b\u0085c\x0bd\x0ce\x1cf"g\\h'
    line = f"printf %s {json.dumps(odd, ensure_ascii=False)!r}"
    process = sandbox.processes.start(f"cat <<'EOF'\n{odd}\nEOF")
    assert process.wait().stdout == odd + "\n", line
    assert [event.data for event in sandbox.get_process(process.id).stream() if event.type == "stdout"] == [odd + "\n"]
    assert sandbox.get_process(process.id).wait().stdout == odd + "\n"


def test_megabytes_come_whole_and_old_numbers_are_gone(sandbox: SandboxHandle) -> None:
    """8 MB to whoever started it and to whoever asks later; from number 1 the window is gone."""
    process = sandbox.processes.start("seq -f '%063.0f' 130000")
    whole = "".join(f"{number:063d}\n" for number in range(1, 130_001))
    assert process.wait().stdout == whole
    later = sandbox.get_process(process.id)
    assert later.wait().stdout == whole
    with pytest.raises(HyperbrowserError, match="Replay window expired") as caught:
        list(later.stream(1))
    assert (caught.value.status_code, caught.value.code) == (410, "replay_window_expired")


def test_an_output_limit_is_the_clients_own(sandbox: SandboxHandle) -> None:
    """Beyond it the client stops; the command goes on."""
    assert refused(lambda: sandbox.exec("seq 100000", max_output_bytes=1000))[1] == "output_limit_exceeded"
    assert sandbox.exec("echo fine").stdout == "fine\n"


def test_stdin_as_text_bytes_and_its_end(sandbox: SandboxHandle) -> None:
    """409 for one that has ended."""
    process = sandbox.processes.start("cat | od -An -tx1")
    process.write_stdin("té")
    process.write_stdin(b"\x00\xff")
    process.write_stdin({"data": "IQ==", "encoding": "base64"})
    process.write_stdin(eof=True)
    assert process.wait().stdout.split() == ["74", "c3", "a9", "00", "ff", "21"]
    assert refused(lambda: process.write_stdin("late"))[0] == 409


def test_a_command_is_signalled_killed_or_reaches_its_limit(sandbox: SandboxHandle) -> None:
    """With everything it has started."""
    marker = f"9{uuid.uuid4().int % 10**8}"
    process = sandbox.processes.start(f"sleep {marker} & sleep {marker}; true")
    until_sync(lambda: sandbox.exec(f"pgrep -cx -f 'sleep {marker}' || true").stdout == "2\n", DEADLINE_S)
    process.signal("TERM")
    assert process.wait().exit_code == 143
    process = sandbox.processes.start(f"setsid sleep {marker} & sleep {marker}; true")
    until_sync(lambda: sandbox.exec(f"pgrep -cx -f 'sleep {marker}' || true").stdout == "2\n", DEADLINE_S)
    assert process.kill().status == "killed"
    assert sandbox.exec(f"pgrep -cx -f 'sleep {marker}' || true").stdout == "0\n"
    limited = sandbox.exec("sleep 1000", timeout_ms=200)
    assert (limited.status, limited.exit_code) == ("timed_out", 137)
    assert sandbox.exec("sleep 1000", timeout_sec=1).status == "timed_out"


def test_waiting_has_an_end(sandbox: SandboxHandle) -> None:
    """408 from the server, TimeoutError from a handle that collects; a default is applied."""
    process = sandbox.processes.start("sleep 1000")
    with pytest.raises(TimeoutError):
        process.wait(timeout_ms=50)
    with pytest.raises(HyperbrowserError, match="timed out") as caught:
        sandbox.get_process(process.id).wait(timeout_ms=50)
    assert (caught.value.status_code, caught.value.retryable) == (408, False)
    process.kill()


def test_processes_are_listed_newest_first(hyperbrowser: Hyperbrowser) -> None:
    """Page by page, by status, by time; ended ones too; terminals are not among them."""
    sandbox = hyperbrowser.sandboxes.create({"image_name": "base"})
    ended = [sandbox.processes.start(f"exit {code}") for code in range(3)]
    assert [process.wait().exit_code for process in ended] == [0, 1, 2]
    running = sandbox.processes.start("sleep 1000")
    sandbox.terminal.create({"command": "sleep", "args": ["1000"]})
    newest_first = [running.id, *(process.id for process in ended[::-1])]
    listed = sandbox.processes.list()
    assert [item.id for item in listed.data] == newest_first
    assert listed.next_cursor is None
    found, cursor = [], None
    for _ in newest_first:
        page = sandbox.processes.list(limit=1, cursor=cursor)
        found += [item.id for item in page.data]
        cursor = page.next_cursor
    assert (found, cursor) == (newest_first, None)
    assert [item.id for item in sandbox.processes.list(status="running").data] == newest_first[:1]
    assert len(sandbox.processes.list(status=["running", "exited"]).data) == 4
    started = listed.data[0].started_at
    assert sandbox.processes.list(created_after=started + 1).data == []
    assert len(sandbox.processes.list(created_before=started).data) == 4
    assert refused(lambda: sandbox.processes.list(status="dancing"))[0] == 400
    sandbox.stop()


def test_what_does_not_exist_or_cannot_start_is_said(sandbox: SandboxHandle) -> None:
    """404 not found; 400 for a directory or user that is not there, never 401, which would cost a second try."""
    for missing in ("proc_missing", "proc_0123456789abcdef", "pty_0123456789abcdef"):
        assert refused(lambda missing=missing: sandbox.get_process(missing)) == (404, "not_found")
    assert refused(lambda: sandbox.exec("true", cwd="/no/such")) == (400, "bad_cwd")
    assert refused(lambda: sandbox.exec("true", run_as="nobody-at-all")) == (400, "no_such_user")


def test_a_sandbox_that_stops_ends_its_streams_with_a_reason(hyperbrowser: Hyperbrowser) -> None:
    """An error event, so that nothing passes for the whole output."""
    sandbox = hyperbrowser.sandboxes.create({"image_name": "base"})
    process = sandbox.processes.start("echo begun; sleep 1000")
    until_sync(lambda: process._output.events, DEADLINE_S)
    sandbox.stop()
    with pytest.raises(HyperbrowserError):
        process.wait()


def test_the_wire_of_a_streaming_start(sandbox: SandboxHandle) -> None:
    """started, output, done: ASCII lines, and heartbeats are comments."""
    answer = raw(sandbox, "POST", "/processes", json={"command": "echo é"}, headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.content.isascii()
    events = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    assert [lines[0] for lines in events] == ["event: started", "event: output", "event: done"]
    said = json.loads(events[1][1].removeprefix("data: "))
    assert (said["seq"], said["stream"], said["encoding"], said["data"]) == (1, "stdout", "base64", "w6kK")
    done = json.loads(events[2][1].removeprefix("data: "))
    assert (done["last_seq"], done["output_truncated"], done["exit_code"]) == (1, False, 0)


def test_exec_in_one_answer_as_node_asks_for_it(sandbox: SandboxHandle) -> None:
    """All of stdout however much it is, stderr, and the end; nothing to read on stdin."""
    answer = raw(sandbox, "POST", "/exec", json={"command": "cat; seq 300000; echo oops >&2; exit 3"}).json()["result"]
    assert answer["stdout"] == "".join(f"{number}\n" for number in range(1, 300_001))
    assert (answer["stderr"], answer["exit_code"], answer["status"]) == ("oops\n", 3, "exited")
    plain = raw(sandbox, "POST", "/processes", json={"command": "echo later"}).json()["process"]
    assert plain["status"] in ("running", "exited")
    ended = raw(sandbox, "POST", f"/processes/{plain['id']}/wait", json={}).json()["result"]
    assert (ended["stdout"], ended["output_truncated"]) == ("later\n", False)
