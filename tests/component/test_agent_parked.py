"""Shells that an agent was asked to start in advance: who gets one, and that nobody else ever notices."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sandpty.wire import frames
from sandpty.wire.frames import AgentErrorCode, Done, Start
from tests.component.agent_peer import PIPES, PTY, Agent, Peer
from tests.waiting import until_sync

# Prints that it is there, then answers lines: enough of a shell, without profiles of this machine.
SHELL = ("/bin/sh", "-c", 'echo ready; while read line; do eval "$line"; done')


@pytest.fixture
def agent() -> Iterator[Agent]:
    """An agent in which nothing has happened yet."""
    with Agent() as running:
        yield running


def wish(**options: Any) -> Start:
    """What is parked."""
    return Start(**({"argv": SHELL, "env": {"A": "1", "B": "2"}, "user": "root", "flags": PTY} | options))


def park(agent: Agent, *wishes: Start) -> list[frames.FromAgent]:
    """Ask for them on one connection; the answers."""
    with agent.peer() as peer:
        return [peer.request(frames.encode_park(each), Done) for each in wishes]


def parked(agent: Agent) -> list[int]:
    """Pids of what runs below the agent, reapers aside."""
    pids = []
    for pid in agent.children():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read().startswith(b"/bin/sh\0-c\0echo ready"):
                    pids.append(pid)
        except OSError:
            continue
    return pids


def park_one(agent: Agent) -> int:
    """Park the shell and wait until it runs; its pid on the host."""
    park(agent, wish())
    until_sync(lambda: len(parked(agent)) == 1, 10, "the parked shell runs")
    return parked(agent)[0]


def test_the_start_that_asks_for_the_same_gets_what_was_started_in_advance(agent: Agent) -> None:
    """The same process, with all of its output, and it works like any other."""
    pid = park_one(agent)
    with agent.start(*SHELL, env={"B": "2", "A": "1"}) as shell:  # the order of the environment does not matter
        assert shell.attached.pid == pid
        assert shell.attached.start == 0
        assert shell.attached.process == 1
        assert b"ready" in shell.read_until(b"ready")
        shell.type(b"echo $A$B; stty size; exit 7\n")
        assert shell.read_exit().value == 7
        assert b"12\r\n24 80\r\n" in shell.seen.data


def test_a_service_of_the_hosts_own_leaves_what_is_parked(agent: Agent) -> None:
    """The code interpreter starts in warm sandboxes, beside the shells that wait there."""
    pid = park_one(agent)
    service = agent.start("/bin/sleep", "60", tag="sandpty:interpreter")
    with service, agent.start(*SHELL, env={"A": "1", "B": "2"}) as shell:
        assert shell.attached.pid == pid


def test_nobody_sees_a_parked_shell(agent: Agent) -> None:
    """It is in no list, and cannot be attached to or signalled."""
    pid = park_one(agent)
    with agent.peer() as peer:
        assert peer.list() == []
        for selector in (frames.Selector.pid(pid), frames.Selector.process(0), frames.Selector.process(1)):
            assert peer.error(frames.encode_stat(selector)).code == AgentErrorCode.NO_SUCH_PROCESS


@pytest.mark.parametrize(
    "other",
    [
        {"argv": ("/bin/sh", "-c", "echo other; sleep 60")},
        {"env": {"A": "1"}},
        {"user": "daemon"},
        {"cwd": "/tmp"},
        {"tag": "t"},
        {"flags": PIPES},
        {"log_bytes": 8192},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_start_that_asks_for_anything_else_gets_its_own(agent: Agent, other: dict[str, Any]) -> None:
    """And what was parked ends: the next one might find something changed."""
    pid = park_one(agent)
    start = {"argv": SHELL, "env": {"A": "1", "B": "2"}} | other
    with agent.start(*start.pop("argv"), **start) as shell:
        assert shell.attached.pid != pid
        until_sync(lambda: pid not in parked(agent), 10, "the parked shell is gone")
        with agent.peer() as peer:
            assert [info.pid for info in peer.list()] == [shell.attached.pid]


def test_a_shell_that_has_drawn_its_prompt_is_not_given_to_another_size(agent: Agent) -> None:
    """It would draw it twice."""
    pid = park_one(agent)
    until_sync(lambda: waits_for_input(pid), 10, "the parked shell has said what it says")
    with agent.start(*SHELL, env={"A": "1", "B": "2"}, cols=132, rows=50) as shell:
        assert shell.attached.pid != pid
        shell.type(b"stty size\n")
        assert b"50 132" in shell.read_until(b"50 132")


def waits_for_input(pid: int) -> bool:
    """Whether a process sleeps in a read of its terminal."""
    with open(f"/proc/{pid}/wchan", "rb") as file:
        return file.read() in (b"n_tty_read", b"wait_woken")


def test_only_one_start_gets_it(agent: Agent) -> None:
    """The second that asks for the same gets a process of its own, at once."""
    pid = park_one(agent)
    options: dict[str, Any] = {"env": {"A": "1", "B": "2"}}
    with agent.start(*SHELL, **options) as first, agent.start(*SHELL, **options) as second:
        assert first.attached.pid == pid
        assert second.attached.pid != pid
        assert second.read_until(b"ready")
        assert (first.attached.process, second.attached.process) == (1, 2)


def test_of_two_parked_shells_the_right_one_is_given_and_the_other_ends(agent: Agent) -> None:
    """Two likely wishes, as a sandbox has them that waits for clients of several kinds."""
    park(agent, wish(), wish(env={"E": "2"}))
    until_sync(lambda: len(parked(agent)) == 2, 10, "both run")
    with agent.start(*SHELL, env={"E": "2"}) as shell:
        shell.type(b"echo =$E=\n")
        assert shell.read_until(b"=2=")
        until_sync(lambda: parked(agent) == [shell.attached.pid], 10, "the other has ended")


def test_its_deadline_counts_from_the_start_that_asked(agent: Agent) -> None:
    """Parked without a deadline, taken with one."""
    park_one(agent)
    asked = time.monotonic()
    with agent.start(*SHELL, env={"A": "1", "B": "2"}, deadline_ms=300) as shell:
        exit = shell.read_exit()
        assert exit.reason == frames.ExitReason.DEADLINE
        assert time.monotonic() - asked >= 0.29


def test_what_was_done_before_decides(agent: Agent) -> None:
    """Nothing is started in advance once something was started."""
    agent.run("/bin/true")
    park(agent, wish())
    with agent.start(*SHELL, env={"A": "1", "B": "2"}) as shell:
        assert shell.attached.process == 2
        assert parked(agent) == [shell.attached.pid]


def test_a_parked_shell_that_ended_by_itself_is_replaced_by_a_new_one(agent: Agent) -> None:
    """Who asks gets a living shell."""
    pid = park_one(agent)
    os.kill(pid, 9)
    until_sync(lambda: parked(agent) == [], 10, "it is gone")
    with agent.start(*SHELL, env={"A": "1", "B": "2"}) as shell:
        assert shell.attached.pid != pid
        assert shell.read_until(b"ready")


def test_bad_wishes_are_errors_of_their_own(agent: Agent) -> None:
    """What cannot be started says so, and the connection goes on; two at most are kept."""
    with agent.peer() as peer:
        assert error(peer, wish(user="nobody-of-that-name")) == AgentErrorCode.NO_SUCH_USER
        assert error(peer, wish(flags=PIPES)) == AgentErrorCode.BAD_ARGUMENT
        assert error(peer, wish(argv=())) == AgentErrorCode.BAD_ARGUMENT
        for value in ("1", "2"):
            peer.request(frames.encode_park(wish(env={"V": value})), Done)
        assert error(peer, wish(env={"V": "3"})) == AgentErrorCode.LIMIT
        assert peer.list() == []


def error(peer: Peer, start: Start) -> int:
    """The code that a PARK is refused with."""
    return peer.error(frames.encode_park(start)).code


def test_an_agent_with_parked_shells_ends_as_any_other(agent: Agent) -> None:
    """Nothing is left of them."""
    park(agent, wish(), wish(env={}))
    until_sync(lambda: len(parked(agent)) == 2, 10, "both run")
    pids = parked(agent)
    assert agent.stop() == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
