"""Output of the agent: offsets, replay, origins, the end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandpty.wire import frames
from sandpty.wire.frames import Attach, ExitReason, From, Selector
from tests.component.agent_peer import PIPES, SHELL, Agent, PeerClosedError
from tests.waiting import until_sync


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """One agent."""
    with Agent() as running:
        yield running


def numbered(lines: int) -> str:
    """A shell command that prints `lines` numbered lines of 64 bytes."""
    return f"seq -f '%063.0f' {lines}"


def expected(lines: int, end: bytes = b"\n") -> bytes:
    """What numbered() prints."""
    return b"".join(b"%063d" % number + end for number in range(1, lines + 1))


def test_output_of_a_pipe_process_arrives_whole_with_absolute_offsets(agent: Agent) -> None:
    """Law 1 and 2: offsets start at 0 and are contiguous (the peer checks each frame)."""
    exit, data = agent.run("sh", "-c", numbered(20_000), flags=PIPES)
    assert data == expected(20_000)
    assert exit.end == len(data)
    assert (exit.signalled, exit.value, exit.reason) == (False, 0, ExitReason.EXITED)


def test_output_of_a_terminal_is_what_the_line_discipline_makes_of_it(agent: Agent) -> None:
    """Law 2: not a byte is lost between the PTY and the peer."""
    exit, data = agent.run("sh", "-c", numbered(5_000))
    assert data == expected(5_000, b"\r\n")
    assert exit.end == len(data)


def test_bytes_are_never_decoded(agent: Agent) -> None:
    """Every byte value comes back as it was."""
    script = 'i=0; while [ $i -lt 256 ]; do printf "\\\\$(printf %o $i)"; i=$((i+1)); done'
    _, data = agent.run("sh", "-c", script, flags=PIPES)
    assert data == bytes(range(256))


def test_stdout_and_stderr_share_one_count_and_keep_their_order(agent: Agent) -> None:
    """Law 1: one log with a stream tag per chunk."""
    with agent.start(
        "sh", "-c", "read x; printf out; read x; printf err >&2; read x; printf more", flags=PIPES | 2
    ) as pipes:
        for text in (b"out", b"err", b"more"):
            pipes.type(b"\n")
            pipes.read_until(text)
        pipes.read_exit()
        assert pipes.seen.streams == {1: bytearray(b"outmore"), 2: bytearray(b"err")}
    with agent.attach(pipes.selector) as replay:
        replay.read_exit()
        assert replay.seen.streams == {1: bytearray(b"outmore"), 2: bytearray(b"err")}
        assert replay.seen.frames == 3


def test_many_alternations_of_stdout_and_stderr_replay_in_order(agent: Agent) -> None:
    """Law 1: the tags survive the ring, whatever their number."""
    script = "i=0; while [ $i -lt 3000 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done"
    _, data = agent.run("sh", "-c", script, flags=PIPES)
    assert len(data) == 2 * sum(len(f"o{i}\n") for i in range(3000))
    with agent.peer() as peer:
        process = peer.list()[-1].process
    with agent.attach(Selector.process(process)) as replay:
        replay.read_exit()
        assert bytes(replay.seen.streams[1]) == b"".join(b"o%d\n" % i for i in range(3000))
        assert bytes(replay.seen.streams[2]) == b"".join(b"e%d\n" % i for i in range(3000))


def test_a_detached_process_never_blocks_and_its_newest_output_is_kept(agent: Agent) -> None:
    """Law 6: the agent always reads; the log keeps exactly the newest log_bytes, and a GAP names what is gone."""
    started = agent.start("sh", "-c", numbered(20_000), flags=PIPES, log_bytes=100_000)
    started.close()
    with agent.attach(started.selector) as late:
        exit = late.read_exit()
        total = 20_000 * 64
        assert exit.end == total
        assert late.attached.start == 0
        last = late.seen.gaps[-1].end if late.seen.gaps else 0
        assert last <= total - 100_000
    with agent.attach(started.selector) as replay:
        replay.read_exit()
        assert [(gap.start, gap.end) for gap in replay.seen.gaps] == [(0, total - 100_000)]
        assert replay.seen.data == expected(20_000)[-100_000:]


def test_a_late_connector_learns_output_and_exit_of_an_ended_process(agent: Agent) -> None:
    """Law 6: exits are kept."""
    started = agent.start("sh", "-c", "echo done; exit 9", flags=PIPES)
    started.read_exit()
    with agent.attach(started.selector) as late:
        assert late.read_exit().value == 9
        assert late.seen.data == b"done\n"
        assert late.closed()


def test_exit_is_last_and_names_the_end_of_the_log(agent: Agent) -> None:
    """Law 3: after EXIT comes only the end of the connection."""
    with agent.start("sh", "-c", "printf last; exit 3") as attachment:
        exit = attachment.read_exit()
        assert (exit.value, exit.end, attachment.seen.data) == (3, 4, b"last")
        with pytest.raises(PeerClosedError):
            attachment.receive()


def test_what_a_viewer_says_after_exit_is_not_answered(agent: Agent) -> None:
    """Law 3: EXIT is last, also for a viewer that was typing; its ACK still counts for `continue`."""
    with agent.start("sh", "-c", "printf last", window=1000) as attachment:
        attachment.read_exit()
        attachment.send(frames.encode_ping(1) + frames.encode_input(b"x" * 100, 0) + frames.encode_resize(0, 0))
        attachment.send(frames.encode_list() + frames.encode_ack(4))
        attachment.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(PeerClosedError):
            attachment.receive()
    with agent.attach(attachment.selector, From.CONTINUE) as again:
        assert again.attached.start == 4


def test_a_grandchild_that_holds_the_terminal_delays_exit_by_a_second_at_most(agent: Agent) -> None:
    """Law 3: exit_drain; the daemon itself lives on."""
    with agent.start("sh", "-c", "trap '' HUP; sleep 1000 & echo pid $!; exit 5") as attachment:
        exit = attachment.read_exit(5)
        assert exit.value == 5
        daemon = int(attachment.seen.data.split()[1])
        assert daemon in agent.children()
        with agent.peer() as peer:
            peer.request(frames.encode_signal_process(attachment.selector, 9, frames.Target.TREE), frames.Done)
        assert daemon not in agent.children()


def test_what_a_grandchild_writes_after_exit_is_read_and_dropped(agent: Agent, tmp_path: Path) -> None:
    """Law 3: a daemon does not block on a terminal nobody will see again, though a stuck viewer held it before."""
    script = "(head -c 30000000 /dev/zero; echo done > $0/file) & exit 0"
    with agent.start("sh", "-c", script, str(tmp_path), flags=PIPES, stall_ms=frames.NEVER_MS) as stuck:
        with agent.peer() as peer:
            end = peer.request(frames.encode_wait(stuck.selector), frames.Exit).end
        assert end < 30_000_000
        until_sync((tmp_path / "file").exists)
        assert stuck.read_exit().end == end


def test_what_a_grandchild_writes_during_the_drain_is_delivered_before_exit(agent: Agent) -> None:
    """Law 3: read until nobody can write, not until the leader is gone."""
    with agent.start("sh", "-c", "(sleep 0.2; printf child) & exit 0", flags=PIPES) as attachment:
        attachment.read_exit()
        assert attachment.seen.data == b"child"


def test_attach_at_an_offset_gives_exactly_the_rest(agent: Agent) -> None:
    """Law 4: resume by offset."""
    started = agent.start("sh", "-c", "printf 0123456789", flags=PIPES)
    started.read_exit()
    for offset in (0, 4, 9, 10):
        with agent.attach(started.selector, From.OFFSET, offset) as rest:
            rest.read_exit()
            assert rest.seen.data == b"0123456789"[offset:]


def test_an_offset_beyond_the_end_is_refused(agent: Agent) -> None:
    """`bad_argument`, and the connection closes."""
    started = agent.start("sh", "-c", "printf 0123456789", flags=PIPES)
    started.read_exit()
    with agent.peer() as peer:
        error = peer.error(frames.encode_attach(Attach(started.selector, origin=From.OFFSET, value=11)))
        assert error.code == frames.AgentErrorCode.BAD_ARGUMENT
        assert peer.closed()


def test_attach_to_the_tail_gives_the_last_bytes(agent: Agent) -> None:
    """Origin `tail`."""
    started = agent.start("sh", "-c", "printf 0123456789", flags=PIPES)
    started.read_exit()
    for wanted, got in ((3, b"789"), (0, b""), (99, b"0123456789")):
        with agent.attach(started.selector, From.TAIL, wanted) as tail:
            tail.read_exit()
            assert tail.seen.data == got


def test_continue_says_once_what_was_said_while_nobody_listened(agent: Agent) -> None:
    """DESIGN.md section 5: nothing is printed twice, nothing is skipped; a second simultaneous viewer starts live."""
    started = agent.start("sh", "-c", "stty -echo; echo one; read x; echo two; read x; echo three; read x")
    started.read_until(b"one\r\n")
    started.close()
    with agent.peer() as peer:
        until_sync(lambda: peer.request(frames.encode_stat(started.selector), frames.ProcessInfo).attachments == 0)
        peer.request(frames.encode_input_process(started.selector, 2, b"\n"), frames.Done)
        until_sync(lambda: peer.request(frames.encode_stat(started.selector), frames.ProcessInfo).end >= 10)
    with agent.attach(started.selector, From.CONTINUE) as again:
        again.read_until(b"two\r\n")
        assert again.seen.data == b"two\r\n"
        with agent.attach(started.selector, From.CONTINUE) as second:
            assert second.attached.start == second.attached.end
            again.type(b"\n")
            again.read_until(b"three")
            second.read_until(b"three")
            assert second.seen.data.startswith(b"three")


def test_continue_with_a_window_goes_on_after_the_last_acknowledged_byte(agent: Agent) -> None:
    """What was on its way when the connection was lost is said again; what was acknowledged is not."""
    started = agent.start("sh", "-c", "printf 0123456789; read x", window=1000)
    started.read_until(b"9")
    started.send(frames.encode_ack(4))
    started.send(frames.encode_ping(7))
    started.until(frames.Pong)
    started.close()
    with agent.peer() as peer:
        until_sync(lambda: peer.request(frames.encode_stat(started.selector), frames.ProcessInfo).attachments == 0)
    with agent.attach(started.selector, From.CONTINUE) as again:
        assert again.attached.start == 4
        again.read_until(b"456789")


SCREENS = {
    "the whole short output": (r"one\ntwo", b"one"),
    "after the last clear": (r"old\n\033[H\033[2Jnew", b"\x1b[2Jnew"),
    "after a reset": (r"old\n\033cnew", b"\x1bcnew"),
    "the alternate screen it is in": (r"shell\n\033[?1049h\033[2Jvim\nvim\n", b"\x1b[?1049h\x1b[2Jvim"),
    "the main screen after the alternate one": (r"shell\n\033[?1049hvim\033[2J\033[?1049lprompt", b"shell"),
    "several modes in one sequence": (r"shell\n\033[?25;1049hvim", b"\x1b[?25;1049hvim"),
}


@pytest.mark.parametrize(("text", "start"), SCREENS.values(), ids=list(SCREENS))
def test_a_screenful_starts_where_replay_shows_the_present_screen(agent: Agent, text: str, start: bytes) -> None:
    """Origin `screen`."""
    started = agent.start("sh", "-c", f"printf '{text}'; read x")
    with agent.peer() as peer:
        until_sync(lambda: peer.request(frames.encode_stat(started.selector), frames.ProcessInfo).end >= len(start))
    started.type(b"\n")
    started.read_exit()
    with agent.attach(started.selector, From.SCREEN) as screen:
        screen.read_exit()
        assert screen.seen.data.startswith(start)


def test_a_screenful_of_long_output_is_the_last_rows_lines(agent: Agent) -> None:
    """Origin `screen`: the rows-th line from the end."""
    started = agent.start("sh", "-c", "seq 1000", rows=10)
    started.read_exit()
    with agent.attach(started.selector, From.SCREEN) as screen:
        screen.read_exit()
        assert screen.seen.data.split() == [
            b"%d" % number for number in range(992, 1001)
        ]  # and the cursor is on the tenth row


def test_two_viewers_and_a_late_one_see_the_same_bytes(agent: Agent) -> None:
    """One log, many cursors."""
    with agent.start(*SHELL, env={"PS1": "$ "}) as one, agent.attach(one.selector) as two:
        one.type(b"echo a$((1+1))b\n")
        one.read_until(b"a2b")
        two.read_until(b"a2b")
        two.type(b"echo c$((2+2))d; exit\n")
        one.read_exit()
        two.read_exit()
        with agent.attach(one.selector) as late:
            late.read_exit()
            assert one.seen.data == two.seen.data == late.seen.data


def test_line_by_line_output_is_coalesced_and_the_first_line_is_not_delayed(agent: Agent) -> None:
    """The batching rule of DESIGN.md section 5: far fewer events than lines."""
    with agent.start("sh", "-c", "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done") as attachment:
        attachment.read_exit()
        assert attachment.seen.data.count(b"\n") == 5000
        assert attachment.seen.frames < 2500


def test_the_last_acknowledgement_of_a_peer_that_hears_nothing_more_counts(agent: Agent) -> None:
    """It says what was seen while more output is already under way to nobody: who comes next reads on from there."""
    with agent.start("sh", "-c", "stty -echo; echo one; read x; echo two; read x", window=65536) as viewer:
        viewer.read_until(b"one\r\n")
        seen = viewer.seen.offset
        viewer.socket.shutdown(socket.SHUT_RD)  # what the agent writes from now on meets a closed door
        with agent.peer() as peer:
            peer.request(frames.encode_input_process(viewer.selector, 2, b"\n"), frames.Done)
            until_sync(
                lambda: peer.request(frames.encode_stat(viewer.selector), frames.ProcessInfo).attachments == 0,
                10,
                "the agent has noticed",
            )
        viewer.send(frames.encode_ack(seen))
        viewer.close()

        def next_start() -> int:
            with agent.attach(viewer.selector, From.CONTINUE, window=65536) as again:  # acknowledges nothing
                return again.attached.start

        until_sync(lambda: next_start() == seen, 10, "who comes next continues behind what was seen")
