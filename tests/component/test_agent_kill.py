"""Kill is complete: whatever a process has become, its tree ends with it, before the answer."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandpty.wire import frames
from sandpty.wire.frames import AgentErrorCode, Done, Exit, ExitReason, Selector, Target
from tests.component.agent_peer import PIPES, SHELL, Agent, Attachment, PeerClosedError, foreground, running_agent
from tests.component.tracing import Call, at_calls
from tests.waiting import until_sync


@pytest.fixture
def agent() -> Iterator[Agent]:
    """One agent."""
    with Agent() as running:
        yield running


def kill(agent: Agent, attachment: Attachment, target: Target, number: int = 9) -> None:
    """Signal and wait for the answer."""
    with agent.peer(timeout_s=30) as peer:
        peer.request(frames.encode_signal_process(attachment.selector, number, target), Done)


DAEMON = """
import os, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(3):
            os.close(fd)
        signal.pause()
    os._exit(0)
os.wait()
print("ready", flush=True)
signal.pause()
"""

TREES = {
    "children": "sleep 1000 & sleep 1000 & echo ready; wait",
    "setsid": "setsid sleep 1000 & setsid setsid sleep 1000 & echo ready; wait",
    "orphans": "(sleep 1000 & sleep 1000 &) ; (setsid sh -c 'sleep 1000 & sleep 1000' &) ; echo ready; sleep 1000",
    "stopped": "sleep 1000 & kill -STOP $!; echo ready; wait",
    "ignoring": "trap '' TERM INT HUP; (trap '' TERM INT HUP; sleep 1000; sleep 1000) & echo ready; wait; sleep 1000",
    "deep": "f() { [ $1 = 0 ] && { echo ready; sleep 1000; } || (f $(($1-1)); sleep 1000); }; f 30",
}


@pytest.mark.parametrize("script", TREES.values(), ids=list(TREES))
@pytest.mark.parametrize("flags", [frames.StartFlags.PTY, PIPES], ids=["pty", "pipes"])
def test_killing_a_tree_leaves_nothing_when_it_answers(agent: Agent, script: str, flags: int) -> None:
    """Law 9: everything descended from the process is gone and reaped before DONE."""
    with agent.start("sh", "-c", script, flags=flags) as attachment:
        attachment.read_until(b"ready")
        kill(agent, attachment, Target.TREE)
        assert agent.children() == []
        exit = attachment.read_exit()
        assert (exit.signalled, exit.value, exit.reason) == (True, 9, ExitReason.KILLED)


def test_a_daemon_that_forked_twice_and_closed_everything_is_killed_with_its_tree(agent: Agent) -> None:
    """Law 9: no way out of the tree."""
    with agent.start(sys.executable, "-c", DAEMON) as attachment:
        attachment.read_until(b"ready")
        assert len(agent.children()) == 3
        kill(agent, attachment, Target.TREE)
        assert agent.children() == []


STORM = """
use POSIX; $SIG{CHLD} = "IGNORE";
while (1) {
    my $pid = fork;
    select(undef, undef, undef, 0.002) unless defined $pid;
    POSIX::setsid() if defined $pid && $pid == 0 && rand() < 0.3;
}
"""


def test_a_fork_storm_is_killed(agent: Agent) -> None:
    """Law 9: what is born during the kill dies too. (A user's process limit keeps the storm off this machine.)"""
    limited = 'ulimit -p 120 2>/dev/null || ulimit -u 120; exec perl -e "$0"'
    with agent.start("sh", "-c", limited, STORM, user="nobody", cwd="/", flags=PIPES, stall_ms=1) as attachment:
        until_sync(lambda: len(agent.children()) >= 90)
        kill(agent, attachment, Target.TREE)
        assert agent.children() == []


def living(agent: Agent) -> list[int]:
    """Pids below the agent that are no zombies."""
    found = []
    for pid in agent.children():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(pid)
    return found


HEIR = """
import os, sys
while os.read(0, 1):
    os.fork()
"""


@pytest.mark.parametrize("way_out", ["", "setsid "], ids=["in the leader's group", "in a session of its own"])
def test_who_is_born_after_every_look_dies_with_its_group(agent: Agent, tmp_path: Path, way_out: str) -> None:
    """Law 9: killed one by one, each would leave an heir to the next round, for ever."""
    orders = tmp_path / "orders"
    os.mkfifo(orders)
    script = f'exec 3<>"$0"; {way_out}{sys.executable} -c "$1" <&3 & sleep 1000'
    births, killing = 0, False

    def bequeath(call: Call) -> bool:
        """Those who were seen are about to be killed: somebody else is there before the first of them is."""
        nonlocal births, killing
        if call.kills and not killing:
            before = len(agent.children())
            writer.write(b"x")
            until_sync(lambda: len(agent.children()) > before or living(agent) == [reaper])
            births += 1
        killing = call.kills
        return births == 20

    with agent.start("sh", "-c", script, str(orders), HEIR, flags=PIPES) as attachment, orders.open("r+b", 0) as writer:
        until_sync(lambda: len(agent.children()) == 4)
        reaper = int(Path(f"/proc/{attachment.attached.pid}/stat").read_text().rpartition(")")[2].split()[1])
        with at_calls(reaper, bequeath):
            kill(agent, attachment, Target.TREE)
        assert agent.children() == []
        assert births < 20


def test_what_outlives_the_leader_is_still_in_the_tree(agent: Agent) -> None:
    """Law 9: the process has ended, its daemons have not; tree signals still reach them."""
    with agent.start("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo ready", flags=PIPES) as attachment:
        assert attachment.read_exit().value == 0
        until_sync(lambda: len(agent.children()) == 2)
        kill(agent, attachment, Target.TREE, 15)
        until_sync(lambda: agent.children() == [])
        with agent.peer() as peer:
            error = peer.error(frames.encode_signal_process(attachment.selector, 9, Target.TREE))
            assert error.code == AgentErrorCode.EXITED


def test_killing_the_leader_waits_until_it_is_reaped(agent: Agent) -> None:
    """Target leader: DONE after the leader is gone; its children live on."""
    with agent.start("sh", "-c", "sleep 1000 & echo ready; wait", flags=PIPES) as attachment:
        attachment.read_until(b"ready")
        kill(agent, attachment, Target.LEADER)
        assert attachment.attached.pid not in agent.children()
        assert len(agent.children()) == 2  # the reaper and the sleep
        kill(agent, attachment, Target.TREE)


def test_killing_the_foreground_group_leaves_the_shell(agent: Agent) -> None:
    """Target group: DONE once the whole group is gone."""
    with agent.start(*SHELL, env={"PS1": "$ "}) as shell:
        shell.type(b"sleep 1000 | sleep 1000\n")
        until_sync(lambda: foreground(shell.attached.pid) == ["sleep", "sleep"])
        kill(agent, shell, Target.GROUP)
        assert len(agent.children()) == 2
        shell.type(b"echo al''ive\n")
        shell.read_until(b"alive")


def test_one_tree_ends_and_others_do_not_notice(agent: Agent) -> None:
    """Trees are apart."""
    with (
        agent.start("sh", "-c", "sleep 1000") as other,
        agent.start("sh", "-c", "sleep 1000 & sleep 1000") as attachment,
    ):
        before = agent.children()
        kill(agent, attachment, Target.TREE)
        assert attachment.attached.pid not in agent.children()
        assert other.attached.pid in agent.children()
        assert len(agent.children()) < len(before)


def test_a_dead_process_cannot_be_signalled(agent: Agent) -> None:
    """`exited`, `no_such_process`; nothing else is hit."""
    ended = agent.start("true")
    ended.read_exit()
    with agent.peer() as peer:
        for target in Target:
            error = peer.error(frames.encode_signal_process(ended.selector, 9, target))
            assert error.code == AgentErrorCode.EXITED
        error = peer.error(frames.encode_signal_process(Selector.process(999), 9, Target.TREE))
        assert error.code == AgentErrorCode.NO_SUCH_PROCESS
        for number in (0, 65, 255):
            error = peer.error(frames.encode_signal_process(ended.selector, number, Target.TREE))
            assert error.code == AgentErrorCode.BAD_ARGUMENT


def test_a_process_ended_by_a_signal_says_which(agent: Agent) -> None:
    """EXIT kind and value; only what we killed has reason 3."""
    with agent.start("sh", "-c", "kill -TERM $$") as attachment:
        exit = attachment.read_exit()
        assert (exit.signalled, exit.value, exit.reason) == (True, 15, ExitReason.SIGNALLED)
    with agent.start("sh", "-c", "kill -KILL $$") as attachment:
        assert attachment.read_exit().reason == ExitReason.SIGNALLED


def test_orphans_are_reaped(agent: Agent) -> None:
    """No zombies below a process that never waits."""
    with agent.start(
        "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do (true &); done; echo ready; exec sleep 1000"
    ) as attachment:
        attachment.read_until(b"ready")
        until_sync(lambda: len(agent.children()) == 2)


def test_a_murdered_reaper_takes_its_tree_along(agent: Agent) -> None:
    """Only the guest's root can do that; then the agent itself kills what was left, and says the process has ended."""
    with agent.start("sh", "-c", "setsid sleep 1000 & sleep 1000 & echo $PPID ready; wait") as attachment:
        reaper = int(attachment.read_until(b"ready").split()[0])
        os.kill(reaper, signal.SIGKILL)
        exit = attachment.read_exit()
        assert (exit.signalled, exit.value) == (True, 9)
        until_sync(lambda: agent.children() == [])


@pytest.mark.parametrize("how", ["frame", "signal"])
def test_shutdown_ends_everything_and_tells_viewers(how: str) -> None:
    """SHUTDOWN and SIGTERM: reason 5 for what was killed, nothing is left, the agent exits."""
    with running_agent() as agent:
        viewers = [agent.start("sh", "-c", "setsid sleep 1000 & echo ready; sleep 1000") for _ in range(3)]
        for viewer in viewers:
            viewer.read_until(b"ready")
        pids = agent.children()
        assert len(pids) >= 9  # a reaper, a shell and a sleep each, at least
        if how == "frame":
            with agent.peer() as peer:
                peer.request(frames.encode_shutdown(), Done)
        else:
            agent.process.terminate()
        for viewer in viewers:
            assert viewer.read_exit().reason == ExitReason.SANDBOX_ENDED
        assert agent.process.wait(timeout=10) == 0
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_an_agent_that_is_killed_takes_its_trees_along() -> None:
    """Outside a pid namespace the reapers notice that the agent has gone and kill."""
    script = "setsid sleep 1000 & (sleep 1000 &); echo ready; sleep 1000"
    with running_agent() as agent, agent.start("sh", "-c", script) as viewer:
        viewer.read_until(b"ready")
        pids = agent.children()
        agent.process.kill()
        agent.process.wait()
        until_sync(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])


def test_nothing_new_starts_while_the_sandbox_ends(agent: Agent, tmp_path: Path) -> None:
    """A START after SHUTDOWN is refused or finds the agent gone, never runs."""
    with agent.start("sh", "-c", "sleep 1000"), agent.peer() as late, agent.peer() as peer:
        peer.request(frames.encode_shutdown(), Done)
        with contextlib.suppress(PeerClosedError, BrokenPipeError, ConnectionResetError):
            late.send(frames.encode_start(frames.Start(("touch", str(tmp_path / "never")), {}, "root")))
            assert isinstance(late.receive(), frames.AgentError)
        agent.process.wait(timeout=10)
        assert not (tmp_path / "never").exists()


def test_waiting_tells_how_a_process_ended(agent: Agent) -> None:
    """WAIT: at once for an ended one, later for a running one, `timeout` in between."""
    with agent.start("sh", "-c", "read x; exit 4", flags=PIPES | 2) as attachment, agent.peer() as peer:
        assert peer.error(frames.encode_wait(attachment.selector, 50)).code == AgentErrorCode.TIMEOUT
        peer.send(frames.encode_wait(attachment.selector) + frames.encode_wait(attachment.selector, 0))
        attachment.type(b"\n")
        assert peer.expect(Exit).value == 4
        assert peer.expect(Exit).value == 4
