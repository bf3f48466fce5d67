"""Hyperbrowser's terminals through its unmodified Python SDK, synchronous and asynchronous."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hyperbrowser import AsyncHyperbrowser, Hyperbrowser
from hyperbrowser.client.managers.async_manager.sandbox import SandboxHandle as AsyncSandboxHandle
from hyperbrowser.client.managers.sync_manager.sandbox import SandboxHandle
from hyperbrowser.client.managers.sync_manager.sandboxes.sandbox_terminal import (
    SandboxTerminalConnection,
    SandboxTerminalHandle,
)
from hyperbrowser.exceptions import HyperbrowserError
from hyperbrowser.models import SandboxTerminalCreateParams

from tests.server_fixture import running_server
from tests.waiting import until_sync

DEADLINE_S = 30.0
WAIT_MS = 30_000


@pytest.fixture(scope="module")
def sandbox(hyperbrowser: Hyperbrowser, hyperbrowser_sandbox_id: str) -> SandboxHandle:
    """The sandbox of this module."""
    return hyperbrowser.sandboxes.get(hyperbrowser_sandbox_id)


@pytest_asyncio.fixture
async def asandbox(ahyperbrowser: AsyncHyperbrowser, hyperbrowser_sandbox_id: str) -> AsyncSandboxHandle:
    """The same, asynchronously."""
    return await ahyperbrowser.sandboxes.get(hyperbrowser_sandbox_id)


def shell(sandbox: SandboxHandle, line: str, **params: Any) -> SandboxTerminalHandle:
    """A terminal in which bash runs one line."""
    return sandbox.terminal.create(SandboxTerminalCreateParams(command="bash", args=["-c", line], **params))


def interactive(sandbox: SandboxHandle) -> SandboxTerminalHandle:
    """A terminal with a shell for a person."""
    return sandbox.terminal.create(SandboxTerminalCreateParams(command="bash", args=["-l"]))


def output(status: Any) -> bytes:
    """All that the status says of its output."""
    return b"".join(chunk.raw for chunk in status.output or [])


def read(connection: SandboxTerminalConnection) -> tuple[bytes, Any]:
    """Everything up to the exit, and the status of it."""
    data = b""
    for event in connection.events():
        if event.type == "exit":
            return data, event.status
        data += event.raw
    raise AssertionError(f"the stream ended without its exit frame, after {data[-200:]!r}")


def read_until(connection: SandboxTerminalConnection, text: bytes) -> tuple[bytes, int]:
    """Output until `text` came, and the seq of its last chunk."""
    data = b""
    for event in connection.events():
        assert event.type == "output", data
        data += event.raw
        if text in data:
            return data, event.seq
    raise AssertionError(f"the stream ended before {text!r}: {data[-200:]!r}")


def refused(call: Callable[[], Any]) -> tuple[int | None, str | None]:
    """Status and code of the error that a call ends in."""
    with pytest.raises(HyperbrowserError) as caught:
        call()
    return caught.value.status_code, caught.value.code


def test_a_terminal_is_created_typed_into_and_exits(sandbox: SandboxHandle) -> None:
    """Text and bytes are typed; the exit is the last event; the terminal stays readable."""
    assert sandbox.pty is sandbox.terminal
    terminal = sandbox.terminal.create(
        SandboxTerminalCreateParams(command="bash", args=["-l"], rows=30, cols=90, cwd="/tmp", env={"WHO": "pérson"})
    )
    assert (terminal.current.rows, terminal.current.cols, terminal.current.cwd) == (30, 90, "/tmp")
    assert terminal.current.running
    assert terminal.to_dict()["id"] == terminal.to_json()["id"] == terminal.id
    connection = terminal.attach()
    connection.write("pwd; stty size; echo $WHO; echo typed-$((1+1))\n")
    connection.write(b"exit 3\n")
    data, status = read(connection)
    assert list(connection.events()) == []
    connection.close()
    text = data.decode()
    for answer in ("/tmp\r\n", "30 90\r\n", "pérson\r\n", "typed-2\r\n"):  # the echo of `exit` may fall between them
        assert answer in text
    assert (status.exit_code, status.running, status.timed_out) == (3, False, False)
    again = sandbox.terminal.get(terminal.id, include_output=True)
    assert output(again.current) == data
    assert terminal.refresh().current.output is None
    assert read(terminal.attach())[0] == data
    assert terminal.wait(timeout_ms=1000).exit_code == 3


async def test_the_same_asynchronously(asandbox: AsyncSandboxHandle) -> None:
    """Create, get, attach, write, resize, wait, signal, kill."""
    params = SandboxTerminalCreateParams(command="bash", args=["-l"])
    terminal = await asandbox.terminal.create(params)
    connection = await terminal.attach()
    await connection.resize(31, 101)
    assert (await terminal.refresh()).current.rows == 31
    await connection.write("stty size; exit 4\n")
    data = b""
    async for event in connection.events():
        if event.type == "exit":
            assert event.status.exit_code == 4
            break
        data += event.raw
    await connection.close()
    assert b"31 101" in data
    assert (await terminal.wait(timeout_ms=WAIT_MS, include_output=True)).exit_code == 4
    assert output((await asandbox.terminal.get(terminal.id, include_output=True)).current) == data
    sleeper = await asandbox.pty.create(SandboxTerminalCreateParams(command="sleep", args=["100"]))
    assert (await sleeper.resize(20, 60)).cols == 60
    await sleeper.signal("TERM")
    assert (await sleeper.wait(timeout_ms=WAIT_MS)).exit_code == 143
    assert not (await (await asandbox.terminal.create(params)).kill()).running


def test_output_is_asked_for_or_left_out(sandbox: SandboxHandle) -> None:
    """A terminal that has only just begun to say something is given a moment, so that the first look is not in vain."""
    terminal = shell(sandbox, "sleep 0.3; echo late; sleep 1000")
    assert terminal.current.output is None
    assert sandbox.terminal.get(terminal.id).current.output is None
    assert output(sandbox.terminal.get(terminal.id, include_output=True).current) == b"late\r\n"
    assert output(terminal.refresh(include_output=True).current) == b"late\r\n"
    terminal.kill()
    assert output(terminal.wait(include_output=True)) == b"late\r\n"
    silent = shell(sandbox, "sleep 1000")
    assert output(silent.refresh(include_output=True).current) == b""
    silent.kill()


def test_waiting_has_an_end(sandbox: SandboxHandle) -> None:
    """408 when it does not exit in time; its time limit ends it and says so."""
    terminal = shell(sandbox, "sleep 1000")
    with pytest.raises(HyperbrowserError, match="timed out") as caught:
        terminal.wait(timeout_ms=50)
    assert (caught.value.status_code, caught.value.retryable, caught.value.service) == (408, False, "runtime")
    terminal.kill()
    limited = shell(sandbox, "sleep 1000", timeout_ms=200)
    status = limited.wait(timeout_ms=WAIT_MS)
    assert (status.running, status.timed_out) == (False, True)


@pytest.mark.parametrize(
    ("name", "code"), [("TERM", 143), ("SIGTERM", 143), ("INT", 130), ("KILL", 137), ("HUP", 129), ("USR1", 138)]
)
def test_a_signal_by_any_name_ends_what_runs(sandbox: SandboxHandle, name: str, code: int) -> None:
    """With and without SIG; the exit code says by which."""
    terminal = sandbox.terminal.create(SandboxTerminalCreateParams(command="sleep", args=["1000"]))
    terminal.signal(name)
    assert terminal.wait(timeout_ms=WAIT_MS).exit_code == code


def test_a_signal_goes_to_what_runs_in_front(sandbox: SandboxHandle) -> None:
    """INT interrupts the program and leaves the shell; without a name all is killed; what has ended is left alone."""
    terminal = interactive(sandbox)
    connection = terminal.attach()
    connection.write("echo begin; sleep 1000\n")
    read_until(connection, b"begin\r\n")
    until_sync(lambda: "sleep" in sandbox.exec("ps -t pts/* -o comm= || ps -e -o comm=").stdout, DEADLINE_S)
    terminal.signal("INT")
    connection.write("echo code=$?\n")
    read_until(connection, b"code=130\r\n")
    assert terminal.signal("TERM").running
    status = terminal.kill()
    assert (status.running, status.exit_code) == (False, 137)
    assert read(connection)[1].exit_code == 137
    assert terminal.signal("TERM").exit_code == 137
    assert not terminal.kill("TERM", timeout_ms=1000).running


def test_a_resize_is_seen_by_the_next_question(sandbox: SandboxHandle) -> None:
    """Through the connection or without one; silly sizes are refused, and cost the connection nothing."""
    terminal = interactive(sandbox)
    connection = terminal.attach()
    for rows in range(20, 40):
        connection.resize(rows, rows * 3)
        assert (terminal.refresh().current.rows, terminal.current.cols) == (rows, rows * 3)
    assert terminal.resize(50, 132).rows == 50
    connection.resize(0, 0)
    assert refused(lambda: terminal.resize(0, 10)) == (400, "bad_request")
    connection.write("stty size; exit\n")
    assert b"50 132" in read(connection)[0]


def test_a_cursor_goes_on_exactly_where_it_was(sandbox: SandboxHandle) -> None:
    """From any seq, 0 is everything; characters are whole; what is to come follows."""
    terminal = shell(sandbox, "stty raw -echo; seq 1 200 | sed 's/$/ é€😀/'; read -r go; echo done")
    first, seq = read_until(terminal.attach(), "200 é€😀\n".encode())
    assert seq == len(first)
    whole, _ = read_until(terminal.attach(0), "200 é€😀\n".encode())
    assert whole == first
    for cursor in (1, 100, seq - 20):
        part, _ = read_until(terminal.attach(cursor), b"\x80\n")
        assert first[cursor:].startswith(part)
    connection = terminal.attach(seq)
    connection.write("x\r")
    connection.write("\n")
    rest, _ = read(connection)
    assert rest == b"done\n"
    assert all(chunk.data.encode() == chunk.raw for chunk in terminal.refresh(include_output=True).current.output)
    assert refused(lambda: terminal.attach(10**9)) == (400, "bad_argument")


def test_a_cursor_from_before_what_is_kept_is_refused(sandbox: SandboxHandle) -> None:
    """410 with the vendor's code; without a cursor the oldest that is kept comes first."""
    terminal = shell(sandbox, "stty raw; head -c 12000000 /dev/zero | tr '\\0' x; echo end")
    assert terminal.wait(timeout_ms=WAIT_MS).exit_code == 0
    assert refused(lambda: terminal.attach(0)) == (410, "replay_window_expired")
    data, status = read(terminal.attach())
    assert data.endswith(b"xend\n")
    assert len(data) == 8 * 1024 * 1024
    assert status.exit_code == 0


def test_several_clients_see_and_type_the_same(sandbox: SandboxHandle) -> None:
    """Each is told of the exit; what one types the other sees."""
    terminal = interactive(sandbox)
    first, second = terminal.attach(), terminal.attach()
    first.write("echo from-first-$((1+1))\n")
    assert read_until(second, b"from-first-2\r\n")
    second.write("echo from-second-$((1+1)); exit 5\n")
    data, status = read(first)
    assert b"from-second-2" in data
    assert (status.exit_code, read(second)[1].exit_code) == (5, 5)


def test_what_was_typed_before_closing_is_still_typed(sandbox: SandboxHandle) -> None:
    """However the client goes: by closing properly, or by dropping its socket with everything in it."""
    for drop in (False, True):
        terminal = interactive(sandbox)
        connection = terminal.attach()
        for number in range(200):
            connection.write(f"echo line-{number} >> /tmp/typed-{drop}\n")
        connection.write("exit 6\n")
        if drop:
            connection._websocket.socket.shutdown(socket.SHUT_WR)
        else:
            connection.close()
        assert terminal.wait(timeout_ms=WAIT_MS).exit_code == 6
        lines = sandbox.exec(f"cat /tmp/typed-{drop}").stdout.splitlines()
        assert lines == [f"line-{number}" for number in range(200)]


def test_closing_a_connection_leaves_the_terminal_alone(sandbox: SandboxHandle) -> None:
    """What it says meanwhile is there for the cursor."""
    terminal = interactive(sandbox)
    connection = terminal.attach()
    connection.write("sleep 0.5; echo while-away\n")
    _, seq = read_until(connection, b"while-away\r\n")
    connection.close()
    connection = terminal.attach(seq)
    data, _ = read_until(connection, b"while-away\r\n")
    assert data.count(b"while-away") == 1
    assert terminal.kill().exit_code == 137


def test_every_byte_comes_through(sandbox: SandboxHandle) -> None:
    """Half characters, NUL and what is no text at all: `raw` is what the program said."""
    every = 'for i in $(seq 0 255); do printf "\\x$(printf %x $i)"; done'
    line = f"stty raw; {every}; printf '\\303'; sleep 0.2; printf '\\251'"
    data, _ = read(shell(sandbox, line).attach())
    assert data == bytes(range(256)) + "é".encode()


def test_an_expired_token_does_not_end_what_is_open(sandbox: SandboxHandle, hyperbrowser: Hyperbrowser) -> None:
    """A stream outlives its token; the next request gets a new one; an attach does too."""
    terminal = interactive(sandbox)
    connection = terminal.attach()
    other = hyperbrowser.sandboxes.get(sandbox.id)
    other._runtime_session.token = "expired"
    assert other.terminal.get(terminal.id).id == terminal.id
    connection.write("echo still-$((1+1)); exit\n")
    assert b"still-2" in read(connection)[0]


def test_what_does_not_exist_or_cannot_start_is_said(sandbox: SandboxHandle) -> None:
    """404 not found; 400 for a program or directory that is not there."""
    for missing in ("pty_missing", "pty_0123456789abcdef", "proc_0123456789abcdef", "../x"):
        with pytest.raises(HyperbrowserError, match="not found") as caught:
            sandbox.terminal.get(missing)
        assert (caught.value.status_code, caught.value.retryable) == (404, False)
    nothing = SandboxTerminalCreateParams(command="/no/such/program")
    assert refused(lambda: sandbox.terminal.create(nothing)) == (400, "start_failed")
    assert refused(lambda: shell(sandbox, "true", cwd="/no/such")) == (400, "bad_cwd")
    assert refused(lambda: shell(sandbox, "true").signal("NOTHING")) == (400, "bad_argument")


def test_a_shell_line_when_asked_for(sandbox: SandboxHandle) -> None:
    """`use_shell` makes the command a line of a shell, its arguments words of it."""
    params = SandboxTerminalCreateParams(command="echo $((6*7))", args=["a b", "$HOME"], use_shell=True)
    assert read(sandbox.terminal.create(params).attach())[0] == b"42 a b $HOME\r\n"


def test_a_sandbox_that_stops_ends_its_terminals_streams(hyperbrowser: Hyperbrowser) -> None:
    """With an exit frame that says why."""
    sandbox = hyperbrowser.sandboxes.create({"image_name": "base"})
    connection = interactive(sandbox).attach()
    read_until(connection, b"$ ")
    stopper = threading.Timer(0.1, sandbox.stop)
    stopper.start()
    _, status = read(connection)
    assert not status.running
    assert status.error == "the sandbox is not running"
    stopper.join()


@pytest.fixture
def restarted() -> Iterator[Any]:
    """A server of its own, to be killed."""
    with running_server() as server:
        yield server


def test_a_server_that_is_killed_and_comes_back_costs_nothing(restarted: Any) -> None:
    """Tokens, terminals and cursors outlive it: the flood goes on at the very byte. Stopped sandboxes are remembered.

    A one-time URL ends with the server that made it: nobody else knows whether it was used.
    """
    client = Hyperbrowser(api_key=restarted.api_key, base_url=restarted.url)
    stopped = client.sandboxes.create({"image_name": "base", "cpu": 1, "region": "europe-west"})
    stopped.stop()
    sandbox = client.sandboxes.create({"image_name": "base"})
    once = sandbox.files.upload_url("/tmp/once", one_time=True)
    terminal = shell(sandbox, "stty raw; seq -f '%063.0f' 200000")
    connection = terminal.attach()
    data = b""
    for event in connection.events():
        data += event.raw
        if len(data) > 2_000_000:
            break
    restarted.kill()
    restarted.start()
    deadline = time.monotonic() + DEADLINE_S
    rest, status = read(terminal.attach(len(data)))
    assert time.monotonic() < deadline
    assert data + rest == b"".join(b"%063d\n" % number for number in range(1, 200_001))
    assert status.exit_code == 0
    detail = client.sandboxes.get_detail(stopped.id)
    assert (detail.status, detail.token, detail.close_reason) == ("closed", None, "user_requested")
    assert (detail.cpu, detail.region, detail.disk_mib) == (1, "europe-west", stopped.disk_mib)
    assert [each.id for each in client.sandboxes.list({"status": "closed"}).sandboxes] == [stopped.id]
    assert client.sandboxes.stop(stopped.id).success
    answer = httpx.put(once.url, content=b"x")
    assert (answer.status_code, "ended with the server" in answer.text) == (401, True)
    client.close()
