"""Control connections of the agent: list, stat, wait, selectors, what is kept of ended processes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sandpty.wire import frames
from sandpty.wire.frames import (
    AgentErrorCode,
    Attach,
    Done,
    Exit,
    From,
    ProcessFlags,
    ProcessInfo,
    Selector,
    Start,
    Started,
    Target,
)
from tests.component.agent_peer import PIPES, PTY, Agent, running_agent
from tests.waiting import until_sync

REPLY_ONLY = frames.StartFlags.REPLY_ONLY


@pytest.fixture
def agent() -> Iterator[Agent]:
    """One agent."""
    with Agent() as running:
        yield running


def test_hello_names_version_and_boot_time(agent: Agent) -> None:
    """u64 boot time in unix ms."""
    with agent.peer(hello=False) as peer:
        hello = peer.request(frames.encode_hello(), frames.Hello)
    assert hello.version == frames.PROTOCOL_VERSION
    assert abs(hello.boot_ms / 1000 - time.time()) < 60


def test_another_version_is_refused_clearly(agent: Agent) -> None:
    """`unsupported_version`, then the connection closes."""
    with agent.peer(hello=False) as peer:
        error = peer.error(frames.frame(frames.FrameType.HELLO, b"\x02\x00" + bytes(4)))
        assert error.code == AgentErrorCode.UNSUPPORTED_VERSION
        assert peer.closed()


def test_a_process_is_described_as_it_was_asked_for(agent: Agent) -> None:
    """PROCESS repeats user, cwd, tag, argv and env, and says how things stand."""
    env = {"A": "1", "B": "x=y"}
    with agent.start("sh", "-c", "printf out; read x", env=env, cwd="/tmp", tag="build", cols=90, rows=20) as one:
        one.read_until(b"out")
        with agent.peer() as peer:
            info = peer.request(frames.encode_stat(Selector.tagged("build")), ProcessInfo)
        assert info == ProcessInfo(
            process=one.attached.process,
            pid=one.attached.pid,
            flags=ProcessFlags.PTY | ProcessFlags.RUNNING | ProcessFlags.STDIN_OPEN,
            cols=90,
            rows=20,
            start=0,
            end=3,
            started_ms=info.started_ms,
            ended_ms=0,
            exit=None,
            attachments=1,
            user="root",
            cwd="/tmp",
            tag="build",
            argv=("sh", "-c", "printf out; read x"),
            env=env,
        )
        assert abs(info.started_ms / 1000 - time.time()) < 60
        one.type(b"\n")
        one.read_exit()
    with agent.peer() as peer:
        ended = peer.request(frames.encode_stat(one.selector), ProcessInfo)
        assert ended.flags == ProcessFlags.PTY
        assert ended.exit == Exit(False, 0, frames.ExitReason.EXITED, False, ended.end)
        assert ended.ended_ms >= ended.started_ms


def test_the_list_has_running_and_ended_ones_oldest_first(agent: Agent) -> None:
    """PROCESS* then DONE."""
    with agent.peer() as peer:
        assert peer.list() == []
        for number in range(5):
            with agent.start("sh", "-c", f"exit {number}", flags=PIPES) as attachment:
                attachment.read_exit()
        with agent.start("cat"):
            found = peer.list()
            assert [info.exit.value if info.exit else None for info in found] == [0, 1, 2, 3, 4, None]
            assert [info.process for info in found] == sorted(info.process for info in found)


def test_a_list_of_huge_requests_comes_whole(agent: Agent) -> None:
    """The list is made one process at a time."""
    env = {"BIG": "x" * 100_000}
    for _ in range(20):
        agent.run("true", env=env, flags=PIPES)
    with agent.peer() as peer:
        assert [info.env for info in peer.list()] == [env] * 20
        assert len(peer.list()) == 20


def test_a_tag_names_the_newest_process_that_has_it(agent: Agent) -> None:
    """Selector kind 2."""
    with agent.start("cat", tag="t"), agent.start("cat", tag="t") as second, agent.start("cat", tag="u"):
        with agent.attach(Selector.tagged("t")) as found:
            assert found.attached.process == second.attached.process
        with agent.peer() as peer:
            for tag in ("nothing", ""):
                error = peer.error(frames.encode_stat(Selector.tagged(tag)))
                assert error.code == AgentErrorCode.NO_SUCH_PROCESS


def test_an_unknown_process_is_an_error_of_every_request(agent: Agent) -> None:
    """`no_such_process`; a control connection stays open, a process connection closes."""
    nobody = Selector.process(12345)
    with agent.peer() as peer:
        for request in (
            frames.encode_stat(nobody),
            frames.encode_wait(nobody),
            frames.encode_signal_process(nobody, 9, Target.TREE),
            frames.encode_resize_process(nobody, 80, 24),
            frames.encode_input_process(nobody, 2, b"x" * 100_000),
            frames.encode_close_stdin_process(nobody),
        ):
            assert peer.error(request).code == AgentErrorCode.NO_SUCH_PROCESS
        assert peer.error(frames.encode_stat(Selector(7, 1))).code == AgentErrorCode.BAD_ARGUMENT
        assert peer.list() == []
    with agent.peer() as peer:
        assert peer.error(frames.encode_attach(Attach(nobody))).code == AgentErrorCode.NO_SUCH_PROCESS
        assert peer.closed()


def test_requests_of_one_connection_are_answered_in_order(agent: Agent) -> None:
    """Also when one of them has to wait."""
    with agent.start("sh", "-c", "read x; exit 3") as attachment, agent.peer() as peer:
        pid = attachment.selector
        peer.send(frames.encode_wait(pid) + frames.encode_stat(pid) + frames.encode_wait(pid, 0))
        attachment.type(b"\n")
        assert peer.expect(Exit).value == 3
        assert peer.expect(ProcessInfo).exit is not None
        assert peer.expect(Exit).value == 3


def test_a_hundred_waiters_learn_of_one_exit(agent: Agent) -> None:
    """WAIT is cheap."""
    with agent.start("sh", "-c", "read x; exit 7") as attachment:
        peers = [agent.peer() for _ in range(100)]
        for peer in peers:
            peer.send(frames.encode_wait(attachment.selector))
        attachment.type(b"\n")
        for peer in peers:
            assert peer.expect(Exit).value == 7
            peer.close()


def test_hello_and_request_may_come_in_one_write_byte_by_byte_or_as_they_like(agent: Agent) -> None:
    """A stream has no message borders."""
    data = frames.encode_hello() + frames.encode_start(Start(("echo", "hi"), {}, "root", flags=PIPES))
    for step in (len(data), 1, 7):
        with agent.peer(hello=False) as peer:
            for at in range(0, len(data), step):
                peer.send(data[at : at + step])
            peer.expect(frames.Hello)
            peer.expect(Started)
            assert peer.until(Exit).value == 0


def test_ended_processes_are_kept_up_to_a_number(agent: Agent) -> None:
    """128; the oldest go first, one that is being read stays."""
    with agent.start("echo", "first", flags=PIPES, log_bytes=4096) as first:
        first.read_exit()
    with agent.attach(first.selector, window=1) as reader:  # it cannot finish: nothing is acknowledged
        for _ in range(150):
            agent.run("true", flags=PIPES, log_bytes=4096)
        with agent.peer() as peer:
            kept = peer.list()
            assert len(kept) in {128, 129}
            assert kept[0].process == first.attached.process
        reader.acknowledge = True
        reader.send(frames.encode_ack(reader.seen.offset))
        reader.read_exit()
        assert reader.seen.data == b"first\n"
    agent.run("true", flags=PIPES, log_bytes=4096)
    with agent.peer() as peer:
        until_sync(lambda: len(peer.list()) == 128)
        assert first.attached.process not in [info.process for info in peer.list()]


def test_the_logs_of_ended_processes_are_kept_up_to_a_sum() -> None:
    """64 MiB in all."""
    with running_agent() as agent, agent.peer() as peer:
        for _ in range(20):
            command = ("head", "-c", str(4 << 20), "/dev/zero")
            start = Start(command, {}, "root", flags=PIPES | REPLY_ONLY, log_bytes=4 << 20)
            with agent.peer() as starter:
                process = starter.request(frames.encode_start(start), Started).process
            peer.request(frames.encode_wait(Selector.process(process)), Exit)
        kept = peer.list()
        assert sum(info.end - info.start for info in kept) <= 64 << 20
        assert 14 <= len(kept) <= 16


def test_many_terminals_live_side_by_side() -> None:
    """100 shells; each has its own echo."""
    with running_agent() as agent:
        terminals = [agent.start("cat", flags=PTY) for _ in range(100)]
        for number, terminal in enumerate(terminals):
            terminal.type(b"n%d\n" % number)
        for number, terminal in enumerate(terminals):
            terminal.read_until(b"n%d\r\nn%d\r\n" % (number, number))
        with agent.peer(timeout_s=30) as peer:
            assert len(peer.list()) == 100
            for terminal in terminals:
                peer.request(frames.encode_signal_process(terminal.selector, 9, Target.TREE), Done)
        assert agent.children() == []
        for terminal in terminals:
            terminal.close()


def test_attaching_at_the_end_shows_only_what_comes(agent: Agent) -> None:
    """Origin `end`."""
    with agent.start("sh", "-c", "stty -echo; echo old; read x; echo new") as one:
        one.read_until(b"old\r\n")
        with agent.attach(one.selector, From.END) as live:
            one.type(b"\n")
            live.read_exit()
            assert live.seen.data == b"new\r\n"
