"""What the agent costs: memory when idle, and nothing that stays after thousands of connections and processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandpty.wire import frames
from sandpty.wire.frames import From, Start, Target
from tests.component.agent_peer import PIPES, PTY, Agent, running_agent
from tests.waiting import until_sync


def memory_kib(pid: int, field: str = "Rss:") -> int:
    """Resident memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def descriptors(pid: int) -> int:
    """Open descriptors."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def settle(agent: Agent) -> tuple[int, int]:
    """Descriptors and private memory once all connections are closed."""
    until_sync(lambda: descriptors(agent.pid) <= 8 + 2 * len(agent.children()))
    return descriptors(agent.pid), memory_kib(agent.pid, "Private_Dirty:")


def test_an_idle_agent_is_tiny() -> None:
    """DESIGN.md section 12: at most 200 KiB RSS, most of it the program itself, which all sandboxes share."""
    with running_agent() as agent:
        agent.peer().close()
        assert memory_kib(agent.pid) <= 200
        assert memory_kib(agent.pid, "Private_Dirty:") <= 64


def test_a_thousand_attachments_leave_nothing_behind() -> None:
    """Law 9: fds, timers and memory are where they were after 1,000 attach/detach."""
    with running_agent() as agent, agent.start("cat") as terminal:
        terminal.type(b"hello\n")
        terminal.read_until(b"hello\r\nhello\r\n")
        before = None
        for cycle in range(1100):
            with agent.attach(terminal.selector, From.OFFSET, window=1000) as attachment:
                attachment.read_until(b"hello")
            if cycle == 99:
                before = settle(agent)
        after = settle(agent)
        assert before is not None
        assert after[0] == before[0]
        assert after[1] - before[1] <= 8


@pytest.mark.parametrize("flags", [PTY, PIPES | 2], ids=["pty", "pipes"])
def test_a_thousand_failed_starts_leave_nothing_behind(flags: int) -> None:
    """Law 9: 1,000 start/fail cycles."""
    with running_agent() as agent:
        request = frames.encode_start(Start(("nosuchprogram",), {}, "root", flags=frames.StartFlags(flags)))
        before = None
        for cycle in range(1100):
            with agent.peer() as peer:
                peer.error(request)
            if cycle == 99:
                until_sync(lambda: agent.children() == [])
                before = settle(agent)
        until_sync(lambda: agent.children() == [])
        after = settle(agent)
        assert before is not None
        assert after[0] == before[0]
        assert after[1] - before[1] <= 8


def test_a_thousand_processes_leave_only_what_is_kept() -> None:
    """Law 9: 128 ended ones are remembered, the rest is gone."""
    with running_agent() as agent:
        before = None
        for cycle in range(1000):
            agent.run("true", flags=PIPES if cycle % 2 else PTY, log_bytes=4096)
            if cycle == 299:
                until_sync(lambda: agent.children() == [])
                before = settle(agent)
        until_sync(lambda: agent.children() == [])
        after = settle(agent)
        assert before is not None
        assert after[0] == before[0]
        assert after[1] - before[1] <= 64


def test_a_log_takes_memory_as_it_is_written_and_gives_it_back() -> None:
    """Lazily grown, bounded by log_bytes, freed with the process."""
    with running_agent() as agent:
        first = memory_kib(agent.pid)
        held = [agent.start("cat", log_bytes=16 << 20) for _ in range(10)]
        assert memory_kib(agent.pid) - first <= 10 * 16
        with agent.start("head", "-c", str(8 << 20), "/dev/zero", flags=PIPES, log_bytes=2 << 20) as big:
            big.read_exit()
            assert big.seen.offset == 8 << 20
        assert 2000 <= memory_kib(agent.pid) - first <= 2400
        for terminal in held:
            with agent.peer() as peer:
                peer.request(frames.encode_signal_process(terminal.selector, 9, Target.TREE), frames.Done)
            terminal.close()
        for _ in range(130):  # they push the big one out of what is kept
            agent.run("true", flags=PIPES, log_bytes=4096)
        assert memory_kib(agent.pid) - first <= 1200
