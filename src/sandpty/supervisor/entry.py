"""A sandbox in the supervisor's memory: what is kept of it on disk, its lock, the handle on its agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sandpty.isolation import process_table
from sandpty.isolation.driver import Plan
from sandpty.isolation.failures import failure
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

    def keep(self) -> None:
        """Raises OSError."""
        self.meta.revision += 1
        state.write(self.directory, self.meta, durable=False)

    def change(self, **members: Any) -> None:
        """Of `meta`, here and on the disk; neither when the disk does not take it. Raises no_space, runtime_failed.

        Of a sandbox that is nothing but files, this is on the disk when it returns: it must survive a power cut.
        """
        before = {name: getattr(self.meta, name) for name in members}
        self._set(members)
        self.meta.revision += 1
        try:
            state.write(self.directory, self.meta, durable=self.meta.phase == "stopped")
        except OSError as error:
            self._set(before)
            raise failure("the change could not be written down", error) from error

    def take_back(self, **members: Any) -> None:
        """What was changed did not come true. Never raises: a disk that does not take it has the wrong word."""
        self._set(members)
        with contextlib.suppress(OSError):
            self.keep()

    def _set(self, members: Mapping[str, Any]) -> None:
        for name, value in members.items():
            setattr(self.meta, name, value)

    def follow(self, ended: Callable[[Entry], None]) -> None:
        """Call `ended` when the agent ends. Raises ProcessLookupError when it already has."""
        pidfd = self.pidfd = process_table.open_pidfd(self.meta.started)
        asyncio.get_running_loop().add_reader(pidfd, ended, self)

    def unfollow(self) -> None:
        if self.pidfd is not None:
            asyncio.get_running_loop().remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = None
