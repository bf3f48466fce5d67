"""The `process` driver: the agent as an ordinary process. NO isolation; for development, and only when asked by name.

What is started shares the host's files, network and users with everything else. There are no limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from sandpty import config
from sandpty.isolation import process_table, program
from sandpty.isolation.driver import Copy, GuestNetwork, Layer, Plan, Started, Stats
from sandpty.wire.errors import SandptyError

WALK_AGAIN_S = 0.005  # between two walks over the tree of a dying sandbox


class ProcessDriver:
    """Runs the agent directly, with the supervisor's own uid."""

    name = "process"
    isolated = False
    outward = None

    def __init__(self, agent: Path) -> None:
        self._agent = agent
        self._slots = itertools.count()

    async def open(self) -> None:
        if not os.access(self._agent, os.X_OK):
            raise SandptyError("runtime_failed", "the agent binary is missing or not executable")

    async def probe(self, layers: Sequence[Layer]) -> dict[str, str]:
        return {
            "isolation": "none: processes run directly on this machine",
            "limits": "none",
            "disk quota": "none",
            "network": "the host's",
        }

    async def reserve(self) -> int:
        return next(self._slots)

    async def start(self, plan: Plan, listener: socket.socket) -> Started:
        try:
            # Its own session, and reaped by the watcher like every agent: it outlives this supervisor.
            pid = program.spawn([str(self._agent), "3"], fd3=listener.fileno())
        except OSError as error:
            raise SandptyError("runtime_failed", f"the agent does not start: {error.strerror}") from error
        try:
            return Started(pid, process_table.start_time(pid))
        except ProcessLookupError:
            raise SandptyError("runtime_failed", "the agent ended at once") from None

    async def apply(self, plan: Plan, started: Started) -> None:
        pass

    async def freeze(self, plan: Plan) -> None:
        raise SandptyError("unsupported", "the process tier cannot pause: nothing holds its processes together")

    async def thaw(self, plan: Plan) -> None:
        pass  # never frozen

    async def copy(self, plan: Plan, started: Started, directory: Path) -> Copy:
        raise SandptyError("unsupported", "the process tier cannot copy: its sandboxes write to the host's own files")

    async def take(self, plan: Plan, directory: Path) -> Copy:
        raise SandptyError("unsupported", "the process tier cannot copy: its sandboxes write to the host's own files")

    async def merge(self, copies: Sequence[Copy], directory: Path, *, layers: int, disk_mb: int) -> Copy:
        raise SandptyError("unsupported", "the process tier cannot copy: its sandboxes write to the host's own files")

    async def sync_copy(self, directory: Path) -> None:
        pass  # there are none

    def forget_copy(self, directory: Path) -> None:
        pass  # there are none

    async def make_volume(self, directory: Path, disk_mb: int) -> None:
        raise SandptyError("unsupported", "the process tier mounts nothing: its sandboxes have the host's own files")

    async def grow_volume(self, directory: Path, disk_mb: int) -> None:
        pass  # there are none

    async def stop(self, plan: Plan, started: Started) -> None:
        try:
            pidfd = process_table.open_pidfd(started)
        except ProcessLookupError:
            return
        try:
            deadline = time.monotonic() + config.STOP_TIMEOUT_S
            # Stopped first, so that nothing forks while the tree is walked; the agent last, as it adopts orphans.
            _signal(started.pid, signal.SIGSTOP)
            while below := process_table.descendants(started.pid):
                if time.monotonic() > deadline:
                    raise SandptyError("runtime_failed", "processes of the sandbox do not end")
                for number in (signal.SIGSTOP, signal.SIGKILL):
                    for pid in below:
                        _signal(pid, number)
                await asyncio.sleep(WALK_AGAIN_S)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not await program.readable(pidfd, config.STOP_TIMEOUT_S):
                raise SandptyError("runtime_failed", "the agent does not end")
        finally:
            os.close(pidfd)
            _reap(started.pid)

    async def destroy(self, plan: Plan) -> None:
        pass

    async def adopt(self, plan: Plan, started: Started) -> bool:
        return process_table.is_alive(started)

    def network(self, plan: Plan, started: Started) -> GuestNetwork:
        # The host's loopback is full of other people's services: nobody may reach those by naming a sandbox.
        text = "the process tier has no network of its own; reach the port on this machine's loopback directly"
        raise SandptyError("unsupported", text)

    def stats(self, plan: Plan, started: Started) -> Stats:
        pids = [started.pid, *process_table.descendants(started.pid)]
        used = [process_table.used(pid) for pid in pids]
        return Stats(
            memory_bytes=sum(memory_bytes for memory_bytes, _ in used),
            cpu_s=sum(cpu_s for _, cpu_s in used),
            processes=len(pids),
        )

    def unwritten_bytes(self) -> int:
        return 0  # nothing is lost: a program that writes to a full disk is told

    async def close(self, *, sandboxes_left: bool) -> None:
        pass


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # of an earlier supervisor: the watcher reaps it
        os.waitpid(pid, os.WNOHANG)
