"""A sandbox in the supervisor's memory: what is kept of it on disk, its lock, the handle on its agent."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from pathlib import Path

from sandpty.isolation import process_table
from sandpty.isolation.driver import Plan
from sandpty.supervisor import state
from sandpty.supervisor.state import Meta
from sandpty.wire.verbs import EndReason


class Entry:
    """Whoever holds `lock` does the next thing to it. `ended`: why it is over, None while it is not."""

    __slots__ = ("directory", "ended", "lock", "meta", "pidfd")

    def __init__(self, meta: Meta, directory: Path) -> None:
        self.meta = meta
        self.directory = directory
        self.lock = asyncio.Lock()
        self.pidfd: int | None = None
        self.ended: EndReason | None = None

    @property
    def plan(self) -> Plan:
        return self.meta.plan(self.directory)

    @property
    def alive(self) -> bool:
        """Whether the agent that is followed lives, as of now."""
        if self.pidfd is None:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    @property
    def visible(self) -> bool:
        return self.meta.phase in ("running", "frozen", "stopped")

    def keep(self, *, durable: bool = False) -> None:
        self.meta.revision += 1
        state.write(self.directory, self.meta, durable=durable)

    def follow(self, ended: Callable[[Entry], None]) -> None:
        """Call `ended` when the agent ends. Raises ProcessLookupError when it already has."""
        pidfd = self.pidfd = process_table.open_pidfd(self.meta.started)
        asyncio.get_running_loop().add_reader(pidfd, ended, self)

    def unfollow(self) -> None:
        if self.pidfd is not None:
            asyncio.get_running_loop().remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = None
