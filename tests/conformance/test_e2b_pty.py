"""Terminals through E2B's unmodified Python SDK."""

from __future__ import annotations

import re

import pytest
from e2b import AsyncSandbox, PtySize, Sandbox
from e2b.exceptions import InvalidArgumentException, NotFoundException, SandboxException, TimeoutException
from e2b.sandbox.commands.command_handle import CommandExitException

from tests.server_fixture import running_server
from tests.waiting import until, until_sync

SIZE = PtySize(rows=24, cols=80)


class Screen:
    """Collects a terminal's output; `said` waits for a marker."""

    def __init__(self) -> None:
        self.data = b""

    def __call__(self, data: bytes) -> None:
        """The SDK's `on_data`."""
        self.data += data

    async def said(self, marker: bytes, timeout_s: float = 10) -> None:
        """Wait until `marker` was output."""
        await until(lambda: marker in self.data, timeout_s, f"{marker!r} in {self.data!r}")


def _plain(data: bytes) -> bytes:
    """Without escape sequences: bash's bracketed paste and colours are not the matter here."""
    return re.sub(rb"\x1b\[[?0-9;]*[a-zA-Z]|\x1b\][^\x07]*\x07", b"", data)


def test_a_terminal_runs_what_is_typed_and_ends_with_its_shell(sandbox: Sandbox) -> None:
    """Environment and cwd as given; input typed before anybody reads is not lost; exit code 0."""
    terminal = sandbox.pty.create(SIZE, envs={"ABC": "123"}, cwd="/")
    sandbox.pty.send_stdin(terminal.pid, b"pwd; echo A${ABC}B; exit\n")
    output: list[bytes] = []
    result = terminal.wait(on_pty=output.append)
    assert result.exit_code == 0
    assert result.error is None
    assert b"A123B" in b"".join(output)
    assert b"\r/\r\n" in _plain(b"".join(output))


async def test_output_arrives_while_the_terminal_runs(asandbox: AsyncSandbox) -> None:
    """The callback is called as bytes come, not at the end."""
    screen = Screen()
    terminal = await asandbox.pty.create(SIZE, screen)
    await asandbox.pty.send_stdin(terminal.pid, b"echo one$((1+1))three\n")
    await screen.said(b"one2three")
    assert await terminal.kill()


async def test_a_terminal_is_a_terminal_of_its_size(asandbox: AsyncSandbox) -> None:
    """TERM, a tty on all three descriptors, the size given and the size resized to."""
    screen = Screen()
    terminal = await asandbox.pty.create(PtySize(rows=30, cols=100), screen)
    await asandbox.pty.send_stdin(terminal.pid, b"test -t 0 -a -t 1 -a -t 2 && echo tty:$TERM; stty size | tr ' ' x\n")
    await screen.said(b"tty:xterm-256color")
    await screen.said(b"30x100")
    await asandbox.pty.resize(terminal.pid, PtySize(rows=40, cols=120))
    await asandbox.pty.send_stdin(terminal.pid, b"stty size | tr ' ' x\n")
    await screen.said(b"40x120")
    await terminal.kill()


async def test_a_program_is_told_of_a_resize(asandbox: AsyncSandbox) -> None:
    """SIGWINCH reaches the foreground."""
    screen = Screen()
    terminal = await asandbox.pty.create(SIZE, screen)
    program = rb"""bash -c "trap 'echo now:\$(stty size)' WINCH; echo rea''dy; while :; do sleep 0.05; done" """ + b"\n"
    await asandbox.pty.send_stdin(terminal.pid, program)
    await screen.said(b"ready")
    await asandbox.pty.resize(terminal.pid, PtySize(rows=33, cols=77))
    await screen.said(b"now:33 77")
    await terminal.kill()


@pytest.mark.parametrize(("rows", "cols"), [(0, 80), (24, 0), (10001, 80), (24, 2**31)])
def test_a_size_that_cannot_be_is_refused_and_changes_nothing(sandbox: Sandbox, rows: int, cols: int) -> None:
    """Invalid argument; the terminal goes on with the size it has."""
    terminal = sandbox.pty.create(SIZE)
    with pytest.raises(InvalidArgumentException):
        sandbox.pty.resize(terminal.pid, PtySize(rows=rows, cols=cols))
    sandbox.pty.send_stdin(terminal.pid, b"stty size | tr ' ' x; exit\n")
    output: list[bytes] = []
    terminal.wait(on_pty=output.append)
    assert b"24x80" in b"".join(output)


async def test_a_reconnecting_client_misses_nothing_and_reads_nothing_twice(asandbox: AsyncSandbox) -> None:
    """Ten reconnects to a program that answers each line, also while nobody listens: every answer exactly once.

    (What a client has received but not yet read when it disconnects is its own: the test reads it first.)
    """
    screen = Screen()
    terminal = await asandbox.pty.create(SIZE, screen, timeout=0)
    await asandbox.pty.send_stdin(terminal.pid, b"stty -echo; while read n; do echo line-$n-; done\n")
    handle, number = terminal, 0
    for _ in range(10):
        for listening in (True, False):
            for _ in range(5):
                await asandbox.pty.send_stdin(terminal.pid, f"{number}\n".encode())
                number += 1
            if listening:
                await screen.said(f"line-{number - 1}-\r\n".encode())
                await handle.disconnect()
        handle = await asandbox.pty.connect(terminal.pid, screen, timeout=0)
        await screen.said(f"line-{number - 1}-\r\n".encode())
    assert [int(found) for found in re.findall(rb"line-(\d+)-\r\n", screen.data)] == list(range(number))
    await handle.kill()


async def test_what_was_said_while_nobody_listened_is_delivered_to_the_next_client(asandbox: AsyncSandbox) -> None:
    """E2B throws it away."""
    first, second = Screen(), Screen()
    terminal = await asandbox.pty.create(SIZE, first, timeout=0)
    await asandbox.pty.send_stdin(terminal.pid, b"echo rea''dy\n")
    await first.said(b"ready")
    await terminal.disconnect()
    await asandbox.pty.send_stdin(terminal.pid, b"echo alo''ne > /tmp/mark; echo unhea''rd; touch /tmp/said\n")
    await until(lambda: _exists(asandbox, "/tmp/said"))
    again = await asandbox.pty.connect(terminal.pid, second, timeout=0)
    await second.said(b"unheard")
    assert second.data.count(b"unheard") == 1
    assert b"ready" not in second.data
    await again.kill()


async def _exists(sandbox: AsyncSandbox, path: str) -> bool:
    return (await sandbox.commands.run(f"test -e {path} && echo yes || echo no")).stdout == "yes\n"


async def test_a_shell_keeps_its_state_between_clients(asandbox: AsyncSandbox) -> None:
    """Another client object, another connection, the same shell."""
    first, second = Screen(), Screen()
    terminal = await asandbox.pty.create(SIZE, first)
    await asandbox.pty.send_stdin(terminal.pid, b"FOO=bar; cd /tmp; echo rea''dy\n")
    await first.said(b"ready")
    await terminal.disconnect()
    other = await AsyncSandbox.connect(asandbox.sandbox_id)
    again = await other.pty.connect(terminal.pid, second)
    await other.pty.send_stdin(terminal.pid, b"echo $FOO-$PWD; exit\n")
    assert (await again.wait()).exit_code == 0
    assert b"bar-/tmp" in second.data


async def test_two_clients_see_the_same_terminal(asandbox: AsyncSandbox) -> None:
    """The second starts live; what follows comes to both."""
    first, second = Screen(), Screen()
    terminal = await asandbox.pty.create(SIZE, first)
    await asandbox.pty.send_stdin(terminal.pid, b"echo bef''ore\n")
    await first.said(b"before")
    again = await asandbox.pty.connect(terminal.pid, second)
    await asandbox.pty.send_stdin(terminal.pid, b"echo af''ter\n")
    await first.said(b"after")
    await second.said(b"after")
    assert b"before" not in second.data
    await asandbox.pty.send_stdin(terminal.pid, b"exit\n")
    assert (await terminal.wait()).exit_code == 0
    assert (await again.wait()).exit_code == 0


def test_killing_a_terminal_kills_everything_in_it(sandbox: Sandbox) -> None:
    """True once, the whole tree gone before the answer; False for what is not there."""
    terminal = sandbox.pty.create(SIZE)
    sandbox.pty.send_stdin(terminal.pid, b"sleep 4242 & setsid sleep 4243 & (sleep 4244 &) ; touch /tmp/up\n")
    sandbox.commands.run("until test -e /tmp/up; do sleep 0.02; done; rm /tmp/up")
    assert sandbox.pty.kill(terminal.pid) is True
    # Gone when kill() returned: one look, no waiting.
    left = sandbox.commands.run("ps -eo args | grep -c '^sleep 424[234]' || true").stdout
    assert left == "0\n"
    with pytest.raises(CommandExitException):
        sandbox.commands.run(f"kill -0 {terminal.pid}")
    assert sandbox.pty.kill(terminal.pid) is False
    assert sandbox.pty.kill(999_999) is False
    with pytest.raises(CommandExitException) as caught:
        terminal.wait()
    assert caught.value.exit_code == -1
    assert caught.value.error == "signal: killed"


def test_connecting_to_a_terminal_that_is_not_there_is_not_found(sandbox: Sandbox) -> None:
    """Also typing into it and resizing it."""
    with pytest.raises(NotFoundException, match="process with pid 999999 not found"):
        sandbox.pty.connect(999_999)
    with pytest.raises(NotFoundException, match="process with pid 999999 not found"):
        sandbox.pty.send_stdin(999_999, b"x")
    with pytest.raises(NotFoundException, match="process with pid 999999 not found"):
        sandbox.pty.resize(999_999, SIZE)


def test_a_terminal_that_ended_unheard_still_tells_its_last_words(sandbox: Sandbox) -> None:
    """Connecting after the end gives what was not delivered, and the exit code."""
    terminal = sandbox.pty.create(SIZE)
    terminal.disconnect()
    sandbox.pty.send_stdin(terminal.pid, b"echo last''words; exit 7\n")
    sandbox.commands.run(f"while kill -0 {terminal.pid} 2>/dev/null; do sleep 0.02; done")
    again = sandbox.pty.connect(terminal.pid)
    output: list[bytes] = []
    with pytest.raises(CommandExitException) as caught:
        again.wait(on_pty=output.append)
    assert caught.value.exit_code == 7
    assert b"lastwords" in b"".join(output)


def test_a_terminal_is_killed_at_its_timeout(sandbox: Sandbox) -> None:
    """The client gets a timeout error; the shell and its children are gone."""
    terminal = sandbox.pty.create(SIZE, timeout=1)
    sandbox.pty.send_stdin(terminal.pid, b"sleep 4245\n")
    with pytest.raises(TimeoutException):
        terminal.wait()
    # The SDK keeps the deadline too, so it may be a moment ahead of the server.
    until_sync(lambda: terminal.pid not in [process.pid for process in sandbox.commands.list()])
    assert sandbox.commands.run("ps -eo args | grep -c '^sleep 4245' || true").stdout == "0\n"


def test_a_timeout_on_connect_ends_only_the_stream(sandbox: Sandbox) -> None:
    """The terminal lives on."""
    terminal = sandbox.pty.create(SIZE, timeout=0)
    again = sandbox.pty.connect(terminal.pid, timeout=1)
    with pytest.raises(TimeoutException):
        again.wait()
    assert terminal.pid in [process.pid for process in sandbox.commands.list()]
    assert terminal.kill()


def test_a_terminal_without_a_timeout_outlives_the_default(sandbox: Sandbox) -> None:
    """timeout=0 starts it without a deadline; after a while it still answers."""
    terminal = sandbox.pty.create(SIZE, timeout=0)
    short = sandbox.pty.create(SIZE, timeout=1)
    with pytest.raises(TimeoutException):
        short.wait()
    sandbox.pty.send_stdin(terminal.pid, b"exit\n")
    assert terminal.wait().exit_code == 0


def test_a_terminal_runs_as_the_user_asked_for(sandbox: Sandbox) -> None:
    """root by name; a user that is not there is refused."""
    terminal = sandbox.pty.create(SIZE, user="root")
    sandbox.pty.send_stdin(terminal.pid, b"echo uid:$(id -u):; exit\n")
    output: list[bytes] = []
    terminal.wait(on_pty=output.append)
    assert b"uid:0:" in b"".join(output)


def test_every_byte_value_passes_a_terminal_unharmed(sandbox: Sandbox) -> None:
    """Raw mode, all 256 values in and out."""
    terminal = sandbox.pty.create(SIZE)
    sandbox.pty.send_stdin(
        terminal.pid, b"stty raw -echo; echo rea''dy; head -c 512 | od -An -v -tx1 | tr -d ' \\n'; exit\n"
    )
    seen = b""
    for _, _, data in terminal:
        seen += data or b""
        if seen.endswith(b"ready\n"):
            sandbox.pty.send_stdin(terminal.pid, bytes(range(256)) * 2)
    assert (bytes(range(256)) * 2).hex().encode() in seen


async def _stream_to(sandbox: AsyncSandbox, pid: int) -> None:
    handle = sandbox.pty.stream_input(pid)
    await handle.send(b"x")
    await handle.close()


async def test_input_streamed_to_nowhere_is_not_found(asandbox: AsyncSandbox) -> None:
    """The error comes while the request's body is still open."""
    with pytest.raises(NotFoundException, match="process with pid 999999 not found"):
        await _stream_to(asandbox, 999_999)


async def test_streamed_input_is_typed_in_order_as_it_comes(asandbox: AsyncSandbox) -> None:
    """One long-lived input stream; the terminal answers before it is closed."""
    screen = Screen()
    terminal = await asandbox.pty.create(SIZE, screen)
    handle = asandbox.pty.stream_input(terminal.pid)
    await handle.send(b"echo fi''rst\n")
    await screen.said(b"first")
    for number in range(50):
        await handle.send(f"echo n{number}''-\n".encode())
    await screen.said(b"n49-")
    await handle.close()
    assert [int(n) for n in re.findall(rb"n(\d+)-\r", screen.data)] == list(range(50))
    await terminal.kill()


def test_streamed_input_of_the_sync_sdk_ends_with_its_iterator(sandbox: Sandbox) -> None:
    """Chunks in order, success at the end."""
    terminal = sandbox.pty.create(SIZE)
    sandbox.pty.stream_input(terminal.pid, [b"echo one; ", b"echo two; ", b"exit\n"])
    output: list[bytes] = []
    assert terminal.wait(on_pty=output.append).exit_code == 0
    assert re.search(rb"one\r\ntwo\r\n", _plain(b"".join(output)))


def test_a_stuck_viewer_gets_a_clear_error_and_can_continue(sandbox: Sandbox) -> None:
    """Nobody reads this terminal while a second client does: the reader is not held back, and sees everything."""
    stuck = sandbox.pty.create(SIZE, timeout=0)
    reader = sandbox.pty.connect(stuck.pid, timeout=60)
    sandbox.pty.send_stdin(stuck.pid, b"head -c 3000000 /dev/zero | tr '\\0' x; echo; exit\n")
    total = sum(len(data or b"") for _, _, data in reader)
    assert total > 3_000_000
    with pytest.raises(SandboxException, match="bytes of output were dropped"):
        stuck.wait()
    assert sandbox.pty.connect(stuck.pid).wait().exit_code == 0


def test_each_chunk_of_a_terminal_is_whole_text(sandbox: Sandbox) -> None:
    """`data.decode()` in a callback, as the documents' samples have it, never meets half a character."""
    terminal = sandbox.pty.create(SIZE)
    sandbox.pty.send_stdin(
        terminal.pid, "for i in $(seq 1 3000); do printf 'aé€😀%.0s' 1 2 3 4 5; done; exit\n".encode()
    )
    text = "".join(data.decode() for _, _, data in terminal if data)
    assert text.count("aé€😀") >= 15_000


def test_half_a_character_is_still_output(sandbox: Sandbox) -> None:
    """It comes a moment later, and at the end at the latest."""
    terminal = sandbox.pty.create(SIZE)
    sandbox.pty.send_stdin(terminal.pid, b"stty -echo; printf 'x\\342'; read x; printf 'y\\303'; exit\n")
    seen = b""
    for _, _, data in terminal:
        seen += data or b""
        if seen.endswith(b"x\xe2"):
            sandbox.pty.send_stdin(terminal.pid, b"\n")
    assert b"x\xe2" in seen
    assert b"y\xc3" in seen


def test_a_terminal_outlives_the_server() -> None:
    """kill -9 of the server: what the shell says meanwhile is there after the restart, and nothing comes twice."""
    with running_server() as own:
        key = {"api_key": own.api_key, "api_url": own.url, "sandbox_url": own.url}
        sandbox = Sandbox.create(timeout=120, **key)
        terminal = sandbox.pty.create(SIZE, timeout=0)
        script = (
            b"stty -echo; V=ke''pt; echo be''fore; until test -e /tmp/dead; do sleep 0.05; done; echo mean''while\n"
        )
        sandbox.pty.send_stdin(terminal.pid, script)
        seen = b""
        events = iter(terminal)
        while b"before\r\n" not in seen:
            seen += next(events)[2] or b""
        # A quiet moment: what TCP has acknowledged only since the server last looked would be said again.
        sandbox.commands.run("sleep 0.5")
        # In a process of its own, so that it happens while the server is dead.
        sandbox.commands.run("(sleep 0.5; touch /tmp/dead) >/dev/null 2>&1 &", timeout=0)
        own.kill()
        with pytest.raises(Exception, match=r".*"):
            next(events)
        own.start()
        again = Sandbox.connect(sandbox.sandbox_id, **key).pty.connect(terminal.pid)
        for _, _, data in again:
            seen += data or b""
            if b"meanwhile" in seen and b"V=kept" not in seen:
                sandbox.pty.send_stdin(terminal.pid, b"echo V=$V; exit\n")
                break
        for _, _, data in again:
            seen += data or b""
    assert seen.count(b"before\r\n") == 1
    assert seen.count(b"meanwhile\r\n") == 1
    assert seen.count(b"V=kept\r\n") == 1
