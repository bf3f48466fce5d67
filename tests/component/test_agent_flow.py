"""Flow control of the agent: who holds a process back, who does not, and how little output is stale."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from sandpty.wire import frames
from sandpty.wire.frames import Exit, From, Output, ProcessInfo, Selector
from tests.component.agent_peer import PIPES, PTY, RECEIVE_BYTES, SHELL, Agent, Attachment
from tests.waiting import until_sync

CREDIT = 128 * 1024
SOCKET = 3 * 128 * 1024  # the kernel doubles what is asked for, and counts its own way
READ = 64 * 1024
LINES = 100_000  # of 64 bytes: 6.4 MB
TOTAL = LINES * 64
NUMBERS = f"seq -f '%063.0f' {LINES}"
KILOBYTE_LINES = r"yes $(printf '%01000d' 0)"


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """One agent."""
    with Agent() as running:
        yield running


def stat(agent: Agent, selector: Selector) -> ProcessInfo:
    """How the process stands."""
    with agent.peer() as peer:
        return peer.request(frames.encode_stat(selector), ProcessInfo)


def settled_end(agent: Agent, selector: Selector) -> int:
    """The log's end once the process makes no progress any more."""
    seen: list[int] = []

    def stable() -> bool:
        seen.append(stat(agent, selector).end)
        return len(seen) > 20 and seen[-1] == seen[-20] and seen[-1] > 0

    until_sync(stable)
    return seen[-1]


def test_a_slow_viewer_alone_loses_nothing(agent: Agent) -> None:
    """Law 7: the process waits for its only reader, as with ssh; then everything comes, without a gap."""
    # It begins when its viewer has ceased to read, who else has taken some of it already.
    with agent.start("sh", "-c", "read x; " + NUMBERS, flags=PIPES | 2, stall_ms=frames.NEVER_MS) as slow:
        slow.type(b"\n")
        end = settled_end(agent, slow.selector)
        assert end <= SOCKET + CREDIT + 4 * READ < TOTAL  # how much a socket takes varies with how it came
        exit = slow.read_exit()
        assert exit.end == TOTAL
        assert slow.seen.gaps == []
        assert slow.seen.data == b"".join(b"%063d\n" % number for number in range(1, LINES + 1))


def test_a_process_that_floods_from_its_first_moment_loses_nothing_of_its_beginning(agent: Agent) -> None:
    """Law 2: nothing is read before whoever started the process is attached."""
    for _ in range(10):
        with agent.start("sh", "-c", NUMBERS, flags=PIPES, log_bytes=65_536, window=1000) as viewer:
            viewer.read_until(b"%063d" % 10)
            assert viewer.seen.gaps == []
            viewer.send(frames.encode_signal(9, frames.Target.TREE))


def test_a_viewer_with_a_window_has_no_more_than_it_on_the_way(agent: Agent) -> None:
    """`window` bounds what is sent beyond the last ACK, and the process waits at credit_bytes."""
    with agent.start("sh", "-c", NUMBERS, flags=PIPES, window=10_000, stall_ms=frames.NEVER_MS) as viewer:
        viewer.read_until(b"%063d" % 100)
        end = settled_end(agent, viewer.selector)
        assert end <= CREDIT + READ
        viewer.send(frames.encode_ping(1))
        viewer.until(frames.Pong)
        assert viewer.seen.offset == 10_000
        viewer.acknowledge = True
        viewer.send(frames.encode_ack(viewer.seen.offset))
        assert viewer.read_exit().end == TOTAL
        assert viewer.seen.gaps == []


def test_a_stuck_viewer_costs_a_fast_one_nothing_and_gets_a_gap(agent: Agent) -> None:
    """Law 7: the fastest reader sets the pace."""
    with (
        agent.start("sh", "-c", "read x; " + NUMBERS, flags=PIPES | 2) as fast,
        agent.attach(fast.selector, stall_ms=frames.NEVER_MS) as stuck,
    ):
        fast.type(b"\n")
        assert fast.read_exit().end == TOTAL
        assert fast.seen.gaps == []
        stuck.read_exit()
        assert len(stuck.seen.gaps) == 1
        assert stuck.seen.gaps[0].end == TOTAL - 1024 * 1024
        text = b"".join(b"%063d\n" % number for number in range(1, LINES + 1))
        assert stuck.seen.data == text[: stuck.seen.gaps[0].start] + text[stuck.seen.gaps[0].end :]


def test_a_viewer_that_wakes_up_after_the_end_is_given_all_that_is_left(agent: Agent) -> None:
    """A frame of which the socket took a part is finished at any moment, and what follows it is not forgotten."""
    for _ in range(20):
        with (
            agent.start("sh", "-c", "read x; head -c 900000 /dev/zero", flags=PIPES | 2) as fast,
            agent.attach(fast.selector, stall_ms=frames.NEVER_MS) as late,
        ):
            fast.type(b"\n")
            assert fast.read_exit().end == 900_000
            assert late.read_exit().end == 900_000
            assert (len(late.seen.data), late.seen.gaps) == (900_000, [])


def test_a_slow_viewer_alone_loses_nothing_of_a_smaller_log_either(agent: Agent) -> None:
    """Law 7 down to the last byte: what the kernel holds when the program ends does not push out what is not read yet.

    For logs of half a MiB and more; the protocol's page says so.
    """
    for number in range(20):
        size = 1_400_000 + 3_001 * number
        with agent.start("head", "-c", str(size), "/dev/zero", flags=PIPES, log_bytes=512 * 1024) as viewer:
            until_sync(lambda seen=viewer: held(agent, seen))
            assert viewer.read_exit().end == size
            assert (len(viewer.seen.data), viewer.seen.gaps) == (size, [])


def held(agent: Agent, viewer: Attachment) -> bool:
    """Whether the process waits for its viewer: nothing came between two looks."""
    with agent.peer() as peer:
        ends = [peer.request(frames.encode_stat(viewer.selector), ProcessInfo).end for _ in range(2)]
    return ends[0] > 0 and ends[0] == ends[1]


def test_a_dead_viewer_pauses_the_process_for_its_stall_time_only(agent: Agent) -> None:
    """Law 7: a reader that has not moved for stall_ms is not live."""
    with agent.start("sh", "-c", NUMBERS, flags=PIPES, stall_ms=300) as dead:
        with agent.peer() as peer:
            exit = peer.request(frames.encode_wait(dead.selector), Exit)
        assert exit.end == TOTAL
        dead.read_exit()
        assert dead.seen.gaps != []


def test_a_dead_viewer_with_a_window_is_forgotten_too(agent: Agent) -> None:
    """Law 7 with acknowledgements: the socket takes bytes, but nobody acknowledges them."""
    with agent.start("sh", "-c", NUMBERS, flags=PIPES, window=65_536, stall_ms=300) as dead:
        with agent.peer() as peer:
            assert peer.request(frames.encode_wait(dead.selector), Exit).end == TOTAL
        dead.acknowledge = True
        dead.read_until(b"%063d\n" % 1000)
        dead.send(frames.encode_ack(dead.seen.offset))
        dead.read_exit()
        assert len(dead.seen.gaps) == 1


def test_a_viewer_that_leaves_no_longer_holds_the_process_back(agent: Agent) -> None:
    """Law 6 after law 7: detached processes never block."""
    held = agent.start("sh", "-c", NUMBERS, flags=PIPES, stall_ms=frames.NEVER_MS)
    settled_end(agent, held.selector)
    held.close()
    with agent.peer() as peer:
        assert peer.request(frames.encode_wait(held.selector, 10_000), Exit).end == TOTAL


def test_a_viewer_that_was_idle_for_long_is_live_when_output_begins(agent: Agent) -> None:
    """Silence is not stalling: the clock runs only while output waits."""
    with agent.start("sh", "-c", "read x; " + NUMBERS, flags=PIPES | 2, stall_ms=1) as viewer:
        before = stat(agent, viewer.selector)
        until_sync(lambda: stat(agent, viewer.selector).started_ms == before.started_ms and viewer.seen.offset == 0)
        viewer.acknowledge = False
        viewer.type(b"\n")
        viewer.read_until(b"%063d\n" % 10)
        assert viewer.seen.gaps == []


def test_the_output_of_a_held_process_that_exits_is_not_lost(agent: Agent) -> None:
    """Laws 3 and 7: what is in the kernel when the leader ends is read whatever readers do."""
    size = CREDIT + SOCKET + READ  # about what is held; some of it in the pipe at the exit
    with agent.start("sh", "-c", f"head -c {size} /dev/zero", flags=PIPES, stall_ms=frames.NEVER_MS) as slow:
        with agent.peer() as peer:
            until_sync(lambda: stat(agent, slow.selector).end > CREDIT)
            slow.until(Output)
            peer.send(frames.encode_wait(slow.selector))
            slow.read_exit()
            assert peer.expect(Exit).end == size
        assert slow.seen.gaps == []
        assert slow.seen.data == bytes(size)


def test_ctrl_c_under_a_flood_is_followed_by_little_stale_output(agent: Agent) -> None:
    """Law 8: what is in flight when ^C is typed is bounded by the window, not by buffers along the way."""
    with agent.start(*SHELL, env={"PS1": "PROMPT"}, window=CREDIT) as shell:
        shell.acknowledge = True
        shell.read_until(b"PROMPT")
        shell.type(b"trap 'echo caught' INT; " + KILOBYTE_LINES.encode() + b"\n")
        while shell.seen.offset < 2 * CREDIT:
            shell.receive()
        shell.acknowledge = False  # a client as slow as can be: it takes nothing more until after the ^C
        settled_end(agent, shell.selector)
        acknowledged = shell.seen.offset
        shell.type(b"\x03")
        shell.acknowledge = True
        shell.send(frames.encode_ack(shell.seen.offset))
        tail = bytearray()
        while b"PROMPT" not in tail:
            value = shell.receive()
            if isinstance(value, Output):
                tail = tail[-20:] + value.data
        assert shell.seen.offset - acknowledged <= 2 * CREDIT + 2 * READ
        shell.type(b"exit\n")
        shell.read_exit()


def test_a_signal_reaches_a_flooding_process_while_its_viewer_is_stuck(agent: Agent) -> None:
    """Law 8: control does not queue behind output."""
    with agent.start("sh", "-c", KILOBYTE_LINES, flags=PTY, stall_ms=frames.NEVER_MS) as stuck:
        settled_end(agent, stuck.selector)
        with agent.peer() as peer:
            peer.request(frames.encode_signal_process(stuck.selector, 2, frames.Target.GROUP), frames.Done)
            assert peer.request(frames.encode_wait(stuck.selector, 5_000), Exit).value == 2


def test_an_attachment_with_a_window_that_never_acknowledges_a_gap_goes_on(agent: Agent) -> None:
    """A peer that acknowledges only the bytes it got must not wait for ever behind a GAP."""
    started = agent.start("sh", "-c", NUMBERS, flags=PIPES, log_bytes=100_000)
    started.close()
    with agent.peer() as peer:
        peer.request(frames.encode_wait(started.selector), Exit)
    with agent.attach(started.selector, From.OFFSET, 0, window=30_000) as late:
        received = 0
        while not isinstance(value := late.receive(), Exit):
            if isinstance(value, Output):
                received += len(value.data)
                with contextlib.suppress(BrokenPipeError):  # after the last byte the agent closes
                    late.send(frames.encode_ack(late.seen.offset))
        assert received == 100_000


def test_acknowledging_more_than_was_sent_is_refused(agent: Agent) -> None:
    """`bad_argument`; the attachment stays open."""
    with agent.start("sh", "-c", "printf abc; read x", window=1000) as viewer:
        viewer.read_until(b"abc")
        viewer.send(frames.encode_ack(1 << 40))
        assert viewer.until(frames.AgentError).code == frames.AgentErrorCode.BAD_ARGUMENT
        viewer.type(b"\n")
        assert viewer.read_exit().value == 0


LOG = 2 * 1024 * 1024


def test_a_lost_reader_that_keeps_its_place_finds_every_byte(agent: Agent) -> None:
    """The flood waits while its log would lose what the reader has not seen; attached again, nothing is missing."""
    with agent.start("sh", "-c", NUMBERS, flags=PIPES, log_bytes=LOG, window=1000) as starter:
        selector = starter.selector
        with agent.attach(selector, keeps_place=True, stall_ms=60_000) as reader:
            reader.read_until(b"%063d" % 20_000)
            seen = bytes(reader.seen.data)
    end = settled_end(agent, selector)
    assert len(seen) < end < TOTAL
    given = len(seen) + RECEIVE_BYTES + SOCKET  # without a window what lies in the socket counts as given
    assert end <= given + LOG // 8 + READ
    with agent.attach(selector, value=len(seen), keeps_place=True) as again:
        again.read_exit()
        assert again.seen.gaps == []
        assert seen + bytes(again.seen.data) == b"".join(b"%063d\n" % number for number in range(1, LINES + 1))


def test_a_place_is_kept_only_for_its_time(agent: Agent) -> None:
    """A reader that never comes back delays the process by its stall time, no more."""
    with agent.start("sh", "-c", NUMBERS, flags=PIPES, log_bytes=LOG, window=1000) as starter:
        selector = starter.selector
        with agent.attach(selector, keeps_place=True, stall_ms=300) as reader:
            reader.read_until(b"%063d" % 2_000)
    with agent.peer() as peer:
        assert peer.request(frames.encode_wait(selector, 30_000), Exit).end == TOTAL


def test_a_place_holds_nobody_back_who_reads(agent: Agent) -> None:
    """A reader that keeps up sets the pace, whoever else was lost."""
    with agent.start("sh", "-c", NUMBERS, flags=PIPES, log_bytes=LOG) as viewer:
        with agent.attach(viewer.selector, keeps_place=True, window=1000, stall_ms=frames.NEVER_MS) as lost:
            lost.read_until(b"%063d" % 10)
        assert viewer.read_exit().end == TOTAL
        assert viewer.seen.gaps == []
