"""`python3 -I -S keeper.py`: a process above one kernel, which nothing that the kernel starts can leave.

The first line of its standard input is the kernel's argv as JSON; on its standard output it answers with the kernel's
pid. When the kernel ends, or standard input does, it ends everything below itself and then ends as the kernel did.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_NOT_STARTED = 127
_OOM_SCORE = "900"  # when memory runs out, the kernel goes before those who serve it, which have 500
# A fork bomb leaves room for those who are to end it: half of the sandbox's processes, and processor time.
_PROCESSES_MAX = 512  # of the user, threads counted; beyond it code in kernels can start none
_NICE = 10  # counts only against other processes of the sandbox
_RESCAN_S = 0.01  # between looks whether what was killed is gone
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # they are for the kernel
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def _start(argv: list[str]) -> int:
    """The kernel's pid. It has a session of its own and goes when we are killed."""
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.nice(_NICE)
        _bound(resource.RLIMIT_NPROC, _PROCESSES_MAX)
        if os.getppid() == keeper:
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write(_OOM_SCORE)
            for number in (*_IGNORED, signal.SIGPIPE, signal.SIGXFSZ):  # our ways are not the kernel's
                signal.signal(number, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1):
                os.dup2(null, fd)
            os.execvp(argv[0], argv)
    finally:
        os._exit(_NOT_STARTED)


def _bound(limit: int, most: int) -> None:
    hard = resource.getrlimit(limit)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(limit, (most, most))


def _below(beyond: set[int]) -> dict[int, str]:
    """All that descends from us, not by way of `beyond`: pid -> state, as /proc has it.

    The dead are there until they are reaped: threads may live on when the first of them has ended.
    """
    parents: dict[int, int] = {}
    states: dict[int, str] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                states[int(name)], parents[int(name)] = state.decode(), int(parent)
    found: dict[int, str] = {}
    tree = {os.getpid()}
    while tree:
        tree = {pid for pid, parent in parents.items() if parent in tree} - beyond
        found |= {pid: states[pid] for pid in tree}
    return found


def _send(number: int, pids: set[int]) -> set[int]:
    """Those that are not ours to signal."""
    refused = set()
    for pid in pids:
        try:
            os.kill(pid, number)
        except PermissionError:
            refused.add(pid)
        except OSError:
            continue
    return refused


def _end_all() -> None:
    """Stop everything, then kill it: what is stopped starts nothing, and keeps the pids that others would take."""
    beyond: set[int] = set()
    while below := _below(beyond):
        while moving := {pid for pid, state in below.items() if state not in "TtZX"}:
            if roots := _send(signal.SIGSTOP, moving):
                _kill_as_root(roots)
                beyond |= _send(0, roots)
            if all(below[pid] == "D" for pid in moving):
                break  # about to stop, or between vfork and exec of a child that has stopped: only SIGKILL moves it
            time.sleep(_RESCAN_S)
            below = _below(beyond)
        _send(signal.SIGKILL, set(below))
        _reap()
        time.sleep(_RESCAN_S)


def _kill_as_root(pids: set[int]) -> None:
    """What was started with sudo. Where `user` may not use it, nothing happens."""
    with contextlib.suppress(OSError):  # no process is to be had
        os.spawnvp(os.P_WAIT, "sudo", ["sudo", "-n", "kill", "-KILL", *map(str, pids)])
    _reap()


def _reap() -> dict[int, int]:
    """What has ended: pid -> wait status."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            ended[pid] = status
    return ended


def main() -> None:
    """Never returns."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    kernel = _start(json.loads(sys.stdin.buffer.readline()))
    os.write(1, b"%d\n" % kernel)
    status = -1
    while status == -1:
        ready, _, _ = select.select([0, told], [], [])
        if told in ready:
            os.read(told, 4096)
            status = _reap().get(kernel, -1)
        elif not os.read(0, 4096):
            break
    if status == -1:  # not reaped, so the number is still its own
        with contextlib.suppress(OSError):
            os.killpg(kernel, signal.SIGSTOP)  # most of it, at one stroke
    _end_all()
    code = os.waitstatus_to_exitcode(status) if status != -1 else 0
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler to take away
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
