"""Pause and resume: frozen with its memory, or ended with its files kept.

First the word on disk, then the deed: what the disk does not take does not happen, and whoever adopts the sandbox after
a crash between the two does what was written.
"""

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
from sandpty.supervisor.checks import check_tier
from sandpty.supervisor.entry import Entry
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

log = logging.getLogger(__name__)


class Holder(Protocol):
    """What is needed of `lifecycle.Sandboxes`."""

    def held(self, sandbox_id: str) -> AbstractAsyncContextManager[Entry]:
        """The sandbox, locked."""

    def tell(self, entry: Entry, what: str) -> Sandbox:
        """Everybody what has become of it."""

    def check_room(self) -> None:
        """Raises no_space when nothing more may run here."""


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
        before = entry.meta.end_at
        entry.change(phase="frozen", end_at=_ended_now(entry))
        try:
            await self._driver.freeze(entry.plan)
        except BaseException:
            entry.take_back(phase="running", end_at=before)
            raise
        return self._sandboxes.tell(entry, "paused")

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
        entry.change(phase="stopped", end_at=_ended_now(entry))
        entry.unfollow()
        try:
            await self._driver.stop(entry.plan, meta.started)
            meta.pid = meta.start_time = 0  # not written: whoever adopts it looks what of it still runs
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(meta.socket)
            sandbox = self._sandboxes.tell(entry, "paused to disk")  # as it is written; a resume ends what is left
        return sandbox

    async def resume(self, sandbox_id: str, end_at: float, memory: bool = True) -> Sandbox:
        """Thaw, or (not `memory`, or paused without) start again from the kept files with a new boot id.

        Raises conflict when it is running, unsupported when it is of another isolation, no_space.
        """

        async def work() -> Sandbox:
            async with self._sandboxes.held(sandbox_id) as entry:
                meta = entry.meta
                if meta.phase == "running":
                    raise SandptyError("conflict", f"sandbox {sandbox_id} is running")
                check_tier(meta.id, meta.tier, self._driver.name)
                self._sandboxes.check_room()
                if meta.phase == "frozen" and not memory:
                    await self.stop(entry)
                if meta.phase == "frozen":
                    await self._thaw(entry, end_at)
                else:
                    await self._booting.boot_again(entry, end_at)
                return self._sandboxes.tell(entry, "resumed")

        return await self._background.finish(work(), f"resume {sandbox_id}")

    async def _thaw(self, entry: Entry, end_at: float) -> None:
        before = entry.meta.end_at
        entry.change(phase="running", end_at=end_at)
        try:
            await self._driver.thaw(entry.plan)
        except BaseException:
            entry.take_back(phase="frozen", end_at=before)
            raise


def _ended_now(entry: Entry) -> float:
    """A paused sandbox's end is the moment of its pause, as E2B has it."""
    return min(entry.meta.end_at, time.time())
