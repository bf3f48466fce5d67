"""Pause and resume: frozen with its memory, or ended with its files kept."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from sandpty.isolation.background import Background
from sandpty.isolation.driver import Driver
from sandpty.supervisor.booting import Booting
from sandpty.supervisor.checks import disk_error
from sandpty.supervisor.entry import Entry
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

log = logging.getLogger(__name__)


class Holder(Protocol):
    """What is needed of `lifecycle.Sandboxes`."""

    def held(self, sandbox_id: str) -> AbstractAsyncContextManager[Entry]:
        """The sandbox, locked."""

    def changed(self, entry: Entry, what: str) -> Sandbox:
        """Write it down and tell everybody."""


class Pausing:
    """The transitions between running and paused."""

    def __init__(self, sandboxes: Holder, driver: Driver, booting: Booting, background: Background) -> None:
        self._sandboxes = sandboxes
        self._driver = driver
        self._booting = booting
        self._background = background

    async def pause(self, sandbox_id: str, memory: bool) -> Sandbox:
        """Freeze (`memory`), or end the processes and keep the files. Raises already_paused."""

        async def work() -> Sandbox:
            async with self._sandboxes.held(sandbox_id) as entry:
                if entry.meta.phase != "running":
                    raise SandptyError("already_paused", f"sandbox {sandbox_id} is paused")
                return await (self.freeze(entry) if memory else self.stop(entry))

        return await self._background.finish(work(), f"pause {sandbox_id}")

    async def freeze(self, entry: Entry) -> Sandbox:
        await self._driver.freeze(entry.plan)
        entry.meta.phase = "frozen"
        _ended_now(entry)
        return self._sandboxes.changed(entry, "paused")

    async def freeze_or_stop(self, entry: Entry) -> Sandbox:
        """At its deadline it must stand still: where nothing can freeze it (the process tier), its files are kept."""
        try:
            return await self.freeze(entry)
        except SandptyError as error:
            if error.reason.name != "unsupported":
                raise
            log.warning("%s is paused without its memory: %s", entry.meta.id, error)
            return await self.stop(entry)

    async def stop(self, entry: Entry) -> Sandbox:
        meta = entry.meta
        before = meta.phase, meta.end_at
        # First the truth on disk: whoever finds "stopped" with a living agent finishes this.
        meta.phase = "stopped"
        _ended_now(entry)
        try:
            entry.keep(durable=True)
        except OSError as error:
            meta.phase, meta.end_at = before  # nothing has happened
            raise disk_error(error) from error
        entry.unfollow()
        await self._driver.stop(entry.plan, meta.started)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(meta.socket)
        meta.pid = meta.start_time = 0
        return self._sandboxes.changed(entry, "paused to disk")

    async def resume(self, sandbox_id: str, end_at: float, memory: bool = True) -> Sandbox:
        """Thaw, or (not `memory`, or paused without) start again from the kept files with a new boot id.

        Raises conflict when it is running.
        """

        async def work() -> Sandbox:
            async with self._sandboxes.held(sandbox_id) as entry:
                meta = entry.meta
                if meta.phase == "running":
                    raise SandptyError("conflict", f"sandbox {sandbox_id} is running")
                if meta.phase == "frozen" and not memory:
                    await self.stop(entry)
                if meta.phase == "frozen":
                    await self._driver.thaw(entry.plan)
                else:
                    await self._booting.boot_again(entry)
                meta.phase, meta.end_at = "running", end_at
                return self._sandboxes.changed(entry, "resumed")

        return await self._background.finish(work(), f"resume {sandbox_id}")


def _ended_now(entry: Entry) -> None:
    """A paused sandbox's end is the moment of its pause, as E2B has it."""
    entry.meta.end_at = min(entry.meta.end_at, time.time())
