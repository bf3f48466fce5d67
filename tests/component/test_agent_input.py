"""Input to the agent: order, exactly once, what is not taken waits, windows sizes keep their place."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandpty.wire import frames
from sandpty.wire.frames import AgentError, AgentErrorCode, Done, From, InputAck, ProcessInfo, Resized, Start, Started
from tests.component.agent_peer import PIPES, PTY, SHELL, Agent, PeerClosedError, foreground, running_agent
from tests.waiting import until_sync

SO_SNDBUFFORCE = 32  # Linux; not in the socket module
STDIN = PIPES | frames.StartFlags.STDIN


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """One agent."""
    with Agent() as running:
        yield running


def cpu_ticks(pid: int) -> int:
    """CPU time used, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_numbered_input_sent_again_is_typed_once(agent: Agent) -> None:
    """Law 4: a reconnecting client may resend; bytes below the known offset are ignored."""
    with agent.start("sh", "-c", "stty -echo; echo ready; exec cat") as first:
        first.read_until(b"ready\r\n")
        first.send(frames.encode_input(b"hello\n", 0))
        assert first.until(InputAck).input == 6
    with agent.attach(first.selector) as second:
        assert second.attached.input == 6
        second.send(frames.encode_input(b"hello\nwor", 0))
        assert second.until(InputAck).input == 9
        second.send(frames.encode_input(b"world\n", 6) + frames.encode_input(b"hello\n", 0))
        assert second.until(InputAck).input == 12
        assert second.until(InputAck).input == 12
        second.type(b"\x04")
        second.read_exit()
        assert second.seen.data == b"ready\r\nhello\r\nworld\r\n"


def test_numbered_input_beyond_what_was_taken_is_refused(agent: Agent) -> None:
    """A hole in the input is `bad_argument`; the attachment stays open and usable."""
    with agent.start("sh", "-c", "read x; echo got $x") as attachment:
        attachment.send(frames.encode_input(b"lost", 5))
        assert attachment.until(AgentError).code == AgentErrorCode.BAD_ARGUMENT
        attachment.send(frames.encode_input(b"kept\n", 0))
        attachment.read_until(b"got kept")


def test_unnumbered_input_counts_too(agent: Agent) -> None:
    """The count is per process and counts every attachment's bytes."""
    with agent.start("cat") as one, agent.attach(one.selector) as two:
        one.type(b"ab")
        one.read_until(b"ab")
        two.send(frames.encode_input(b"cd", 2))
        assert two.until(InputAck).input == 4


def test_input_a_program_does_not_read_waits_and_nothing_is_lost_or_reordered(agent: Agent) -> None:
    """Partial writes to the PTY: 300 KB typed ahead of a sleeping program come out whole."""
    text = b"".join(b"%07d\n" % number for number in range(40_000))
    script = "stty raw -echo; echo ready; read go < $0; exec head -c 320000"
    fifo = agent.directory / "go"
    if not fifo.exists():
        os.mkfifo(fifo)
    with agent.start("sh", "-c", script, str(fifo)) as attachment:
        attachment.read_until(b"ready")
        offset = attachment.seen.offset
        attachment.socket.settimeout(0.2)
        sent = 0
        frame = frames.encode_input(text, 0)
        with contextlib.suppress(TimeoutError):  # the agent stops reading us: the socket fills
            while sent < len(frame):
                sent += attachment.socket.send(frame[sent:])
        assert 0 < sent < len(frame)
        before = cpu_ticks(agent.pid)
        with agent.peer() as peer:
            until_sync(lambda: peer.request(frames.encode_stat(attachment.selector), ProcessInfo).pid)
        assert cpu_ticks(agent.pid) - before <= 20  # waiting, not spinning
        fifo.write_bytes(b"go\n")
        attachment.socket.settimeout(10)
        attachment.send(frame[sent:])
        attachment.read_exit()
        assert attachment.seen.data[offset:].lstrip(b"\r\n") == text


def test_input_of_a_client_that_has_gone_is_still_delivered(agent: Agent) -> None:
    """Typed and closed at once: what the agent was sent reaches the program."""
    with agent.start("sh", "-c", "stty -echo; while read x; do echo got $x; done") as viewer:
        for number in range(20):
            gone = agent.attach(viewer.selector, From.END)
            gone.type(b"line%d\n" % number)
            gone.close()
            viewer.read_until(b"got line%d\r\n" % number)


def test_frames_of_two_writers_do_not_mix(agent: Agent) -> None:
    """A frame of at most 64 KiB is written as a whole, also when the program takes it bit by bit."""
    script = """
import os, sys
taken = []
while data := os.read(0, 1000):
    taken.append(data)
sys.stdout.buffer.write(b"".join(taken))
"""
    with agent.start(sys.executable, "-c", script, flags=STDIN) as one, agent.attach(one.selector) as two:
        for _ in range(8):
            one.type(b"a" * 60_000)
            two.type(b"b" * 60_000)
        for peer in (one, two):
            peer.send(frames.encode_ping(1))
            peer.until(frames.Pong)
        one.send(frames.encode_close_stdin())
        one.read_exit()
        data = one.seen.data
        assert len(data) == 16 * 60_000
        chunks = {data[at : at + 60_000] for at in range(0, len(data), 60_000)}
        assert chunks == {b"a" * 60_000, b"b" * 60_000}


def test_a_huge_input_frame_is_taken_in_pieces(agent: Agent) -> None:
    """A frame of 1 MiB through `wc`."""
    with agent.start("wc", "-c", flags=STDIN) as attachment:
        attachment.send(frames.encode_input(bytes(1024 * 1024), 0))
        assert attachment.until(InputAck).input == 1024 * 1024
        attachment.send(frames.encode_close_stdin())
        attachment.read_until(b"1048576")


def test_input_reaches_a_pipe_in_order_and_closing_stdin_ends_it(agent: Agent) -> None:
    """CLOSE_STDIN keeps its place behind input; repeating it is fine; input after it is `stdin_closed`."""
    with agent.start("sh", "-c", "cat; read x < /dev/null; sleep 0.2", flags=STDIN) as attachment:
        attachment.send(frames.encode_input(b"one ") + frames.encode_input(b"two") + frames.encode_close_stdin())
        attachment.send(frames.encode_close_stdin() + frames.encode_input(b"late"))
        assert attachment.until(AgentError).code == AgentErrorCode.STDIN_CLOSED
        attachment.read_exit()
        assert attachment.seen.data == b"one two"


def test_without_a_stdin_pipe_the_program_reads_an_end(agent: Agent) -> None:
    """Flag 2 not set: /dev/null, and input is `stdin_closed`."""
    with agent.start("sh", "-c", "cat; sleep 0.3", flags=PIPES) as attachment:
        attachment.type(b"x")
        assert attachment.until(AgentError).code == AgentErrorCode.STDIN_CLOSED
        assert attachment.read_exit().value == 0


def test_input_to_a_program_that_closed_its_stdin_is_an_error_not_a_crash(agent: Agent) -> None:
    """EPIPE becomes `stdin_closed`."""
    with agent.start("sh", "-c", "exec 0<&-; echo closed; sleep 5", flags=STDIN) as attachment:
        attachment.read_until(b"closed")
        attachment.type(b"x" * 100)
        assert attachment.until(AgentError).code == AgentErrorCode.STDIN_CLOSED
        attachment.send(frames.encode_signal(9, frames.Target.LEADER))
        attachment.read_exit()


def test_input_to_an_ended_process_is_refused(agent: Agent) -> None:
    """`exited`, on a control connection, which stays open."""
    ended = agent.start("true")
    ended.read_exit()
    with agent.peer() as peer:
        assert peer.error(frames.encode_input_process(ended.selector, 2, b"x")).code == AgentErrorCode.EXITED
        assert peer.error(frames.encode_input_process(ended.selector, 0, b"x" * 200_000)).code == AgentErrorCode.EXITED
        assert peer.error(frames.encode_resize_process(ended.selector, 10, 10)).code == AgentErrorCode.EXITED
        assert peer.list()


def test_input_by_request_is_answered_once_it_was_taken(agent: Agent) -> None:
    """INPUT_PROCESS: all three stream selectors."""
    raw = ("sh", "-c", "stty raw -echo; echo ready; exec cat")
    with agent.start(*raw) as terminal, agent.start("cat", flags=STDIN) as pipes, agent.peer() as peer:
        terminal.read_until(b"ready")
        peer.request(frames.encode_input_process(terminal.selector, 0, b"pty\n"), Done)
        peer.request(frames.encode_input_process(terminal.selector, 2, b"any\n"), Done)
        terminal.read_until(b"pty\nany\n")
        peer.request(frames.encode_input_process(pipes.selector, 1, b"stdin"), Done)
        peer.request(frames.encode_input_process(pipes.selector, 2, b"any", 5), Done)
        peer.request(frames.encode_input_process(pipes.selector, 2, b"any", 5), Done)
        pipes.read_until(b"stdinany")
        assert peer.error(frames.encode_input_process(pipes.selector, 0, b"x")).code == AgentErrorCode.NOT_A_PIPE
        assert peer.error(frames.encode_input_process(terminal.selector, 1, b"x")).code == AgentErrorCode.NOT_A_PIPE
        assert peer.error(frames.encode_input_process(terminal.selector, 9, b"x")).code == AgentErrorCode.BAD_ARGUMENT
        peer.request(frames.encode_close_stdin_process(pipes.selector), Done)
        peer.request(frames.encode_close_stdin_process(pipes.selector), Done)
        assert peer.error(frames.encode_close_stdin_process(terminal.selector)).code == AgentErrorCode.NOT_A_PIPE
        pipes.read_exit()
        assert pipes.seen.data == b"stdinany"


def test_a_resize_keeps_its_place_among_input(agent: Agent) -> None:
    """Law 5: each size is in force exactly for the input after it."""
    with agent.start("sh", "-c", "stty -echo; echo ready; while read x; do echo $x $(stty size); done") as attachment:
        attachment.read_until(b"ready\r\n")
        for cols in range(50, 70):
            attachment.send(frames.encode_resize(cols, 20) + frames.encode_input(b"%d\n" % cols))
            attachment.read_until(b"%d 20 %d\r\n" % (cols, cols))


def test_a_resize_waits_behind_input_that_is_not_taken_yet(agent: Agent) -> None:
    """Law 5: order on one connection, also while the program does not read."""
    fifo = agent.directory / "resize"
    os.mkfifo(fifo)
    script = "stty raw -echo; echo ready; read go < $0; head -c 70000 >/dev/null; stty size; exec cat >/dev/null"
    with agent.start("sh", "-c", script, str(fifo), cols=80, rows=24) as attachment:
        attachment.read_until(b"ready")
        attachment.send(frames.encode_input(bytes(60_000)))
        attachment.send(frames.encode_input(bytes(10_000)) + frames.encode_resize(33, 22))
        with agent.peer() as peer:
            assert peer.request(frames.encode_stat(attachment.selector), ProcessInfo).cols == 80
        fifo.write_bytes(b"go\n")
        with agent.peer() as peer:
            until_sync(lambda: peer.request(frames.encode_stat(attachment.selector), ProcessInfo).cols == 33)


def test_a_new_size_reaches_the_program_and_every_other_viewer(agent: Agent) -> None:
    """SIGWINCH for the program, RESIZED for the others, not for the one who asked."""
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    with agent.start("sh", "-c", script, cols=100, rows=30) as one, agent.attach(one.selector) as two:
        assert (two.attached.cols, two.attached.rows) == (100, 30)
        one.read_until(b"ready")
        one.send(frames.encode_resize(120, 40))
        one.read_until(b"40 120")
        assert two.until(Resized) == Resized(120, 40)
        with agent.peer() as peer:
            peer.request(frames.encode_resize_process(one.selector, 90, 25), Done)
        assert one.until(Resized) == Resized(90, 25)
        assert two.until(Resized) == Resized(90, 25)
        one.send(frames.encode_signal(9, frames.Target.TREE))
        one.read_exit()


@pytest.mark.parametrize(("cols", "rows"), [(0, 24), (80, 0), (10_001, 24), (80, 65_535)])
def test_a_size_out_of_bounds_is_refused(agent: Agent, cols: int, rows: int) -> None:
    """1 .. 10,000."""
    with agent.start("cat") as attachment, agent.peer() as peer:
        attachment.send(frames.encode_resize(cols, rows))
        assert attachment.until(AgentError).code == AgentErrorCode.BAD_ARGUMENT
        error = peer.error(frames.encode_resize_process(attachment.selector, cols, rows))
        assert error.code == AgentErrorCode.BAD_ARGUMENT
        attachment.type(b"still here\n")
        attachment.read_until(b"still here")


def test_a_pipe_process_has_no_size(agent: Agent) -> None:
    """`not_a_pty`."""
    with agent.start("cat", flags=STDIN) as attachment:
        attachment.send(frames.encode_resize(80, 24))
        assert attachment.until(AgentError).code == AgentErrorCode.NOT_A_PTY


def test_a_read_only_attachment_cannot_touch_the_process(agent: Agent) -> None:
    """`read_only` for input, resize, signals and closing; output goes on."""
    with agent.start("cat") as writer, agent.attach(writer.selector, may_write=False) as reader:
        assert not reader.attached.flags & frames.ProcessFlags.MAY_WRITE
        for data in (
            frames.encode_input(b"x" * 100_000),
            frames.encode_resize(10, 10),
            frames.encode_signal(9, frames.Target.TREE),
            frames.encode_close_stdin(),
        ):
            reader.send(data)
            assert reader.until(AgentError).code == AgentErrorCode.READ_ONLY
        writer.type(b"fine\n")
        reader.read_until(b"fine\r\nfine")


def test_a_signal_on_an_attachment_reaches_whom_it_names(agent: Agent) -> None:
    """Leader, foreground group, tree."""
    script = "trap 'echo leader' USR1; sleep 1000 & echo ready; while :; do wait; done"
    with agent.start("sh", "-c", script) as attachment:
        attachment.read_until(b"ready")
        attachment.send(frames.encode_signal(10, frames.Target.LEADER))
        attachment.read_until(b"leader")
        attachment.send(frames.encode_signal(200, frames.Target.LEADER))
        assert attachment.until(AgentError).code == AgentErrorCode.BAD_ARGUMENT
        attachment.send(frames.encode_signal(0, frames.Target.LEADER))
        assert attachment.until(AgentError).code == AgentErrorCode.BAD_ARGUMENT
        attachment.send(frames.encode_signal(15, frames.Target.TREE))
        exit = attachment.read_exit()
        assert (exit.signalled, exit.value) == (True, 15)


def test_the_foreground_group_gets_the_signal_and_the_shell_does_not() -> None:
    """Target group = what ^C would hit."""
    with running_agent() as agent, agent.start(*SHELL, env={"PS1": "$ "}) as shell:
        shell.type(b"sleep 1000\n")
        with agent.peer() as peer:
            until_sync(lambda: foreground(shell.attached.pid) == ["sleep"])
            peer.request(frames.encode_signal_process(shell.selector, 2, frames.Target.GROUP), Done)
        shell.type(b"echo status $?\n")
        shell.read_until(b"status 130")
        shell.type(b"exit\n")
        shell.read_exit()


def test_ping_is_answered_in_order(agent: Agent) -> None:
    """Heartbeats go through the same stream."""
    with agent.start("cat") as attachment:
        for token in (0, 1, 2**64 - 1):
            attachment.send(frames.encode_ping(token))
            assert attachment.until(frames.Pong).token == token


def test_reply_only_answers_started_and_closes(agent: Agent) -> None:
    """START flag 4: the process runs on without us."""
    with agent.peer() as peer:
        flags = frames.StartFlags.PTY | frames.StartFlags.REPLY_ONLY
        started = peer.request(frames.encode_start(Start(("cat",), {}, "root", flags=flags)), Started)
        with pytest.raises(PeerClosedError):
            peer.receive()
    with agent.attach(frames.Selector.process(started.process)) as viewer:
        viewer.type(b"here\n")
        viewer.read_until(b"here\r\nhere")


# More than the pipe or terminal and the agent hold together.
@pytest.mark.parametrize(("flags", "size"), [(STDIN, 150_000), (PTY, 90_000)], ids=["pipes", "terminal"])
def test_a_program_that_writes_before_it_reads_is_not_held_by_its_own_input(
    agent: Agent, flags: frames.StartFlags, size: int
) -> None:
    """The reader's acknowledgements lie behind input that waits; the output that must go first goes, without a gap."""
    program = f"stty raw -echo 2>/dev/null; echo ready; head -c 300000 /dev/zero; head -c {size} | wc -c"
    settings = {"flags": flags, "window": 4096, "stall_ms": frames.NEVER_MS, "log_bytes": 65536}
    with agent.start("sh", "-c", program, **settings) as attachment:
        attachment.read_until(b"ready")
        # This peer waits for each of its ACKs to be taken by the socket: there must be room for all of them.
        attachment.socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 16 * 1024 * 1024)
        attachment.type(b"x" * size)
        attachment.acknowledge = True
        exit_ = attachment.read_exit()
    assert (exit_.value, attachment.seen.gaps) == (0, [])
    assert attachment.seen.data.replace(b"\r", b"").strip() == b"ready\n" + b"\0" * 300_000 + b"%d" % size
