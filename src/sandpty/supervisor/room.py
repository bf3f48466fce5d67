"""Before the data directory's disk is full: the operator is told, and sandboxes that write are paused until it is not.

A sandbox's disk is promised and not reserved, so what the host's disk cannot take any more would be lost to it, without
an error that its programs could see. So there is a reserve. It holds what sandboxes wrote that the kernel has not yet
written out, and what they write until they stand still; the less there is above it, the more often it is looked at.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from sandpty import config, disk_room
from sandpty.isolation.background import Background
from sandpty.isolation.driver import Driver
from sandpty.supervisor.entry import Entry
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.wire.errors import SandptyError

log = logging.getLogger(__name__)
_PER_TURN = 5  # sandboxes looked at before others get a turn of the event loop: about a millisecond


class Room:
    """`run` it as a task."""

    def __init__(self, directory: Path, sandboxes: Sandboxes, driver: Driver, background: Background) -> None:
        self._directory = directory
        self._sandboxes = sandboxes
        self._driver = driver
        self._background = background
        self._scarce = False
        self._disk_bytes: dict[str, int] = {}  # by sandbox, when the reserve began to be used
        self._pausing: set[str] = set()
        self._paused: dict[str, float] = {}  # those that are paused for this: seconds that were left to them

    async def run(self) -> None:
        while True:
            wait_s = await self.look()
            await asyncio.sleep(wait_s)

    async def look(self) -> float:
        """Do what is due; returns the seconds until the next look."""
        left = disk_room.above_reserve_bytes(self._directory)
        scarce = left < config.DISK_FREE_MIN_BYTES
        if scarce and not self._scarce:
            log.error(
                "the disk of %s is almost full: no sandbox is made, and those that write much are paused",
                self._directory,
            )
        elif self._scarce and not scarce:
            log.info("the disk of %s has room again", self._directory)
        self._scarce = scarce
        left -= self._driver.unwritten_bytes()
        if left < 0 and self._driver.isolated:
            await self._pause_writers()
        elif left >= config.DISK_FREE_MIN_BYTES:
            self._disk_bytes.clear()
            if self._paused:
                self._background.spawn(self._resume(), "resume for room")
        return min(max(left / config.ROOM_FILLED_BYTES_S, config.ROOM_PERIOD_MIN_S), config.ROOM_PERIOD_S)

    async def _pause_writers(self) -> None:
        for number, entry in enumerate(tuple(self._sandboxes.entries.values())):
            meta = entry.meta
            if meta.phase == "running" and entry.ended is None and meta.id not in self._pausing:
                stats = self._driver.stats(entry.plan, meta.started)
                grown = stats.disk_bytes - self._disk_bytes.setdefault(meta.id, stats.disk_bytes)
                if grown + stats.unwritten_bytes >= config.ROOM_WRITING_BYTES:
                    self._pausing.add(meta.id)
                    self._background.spawn(self._pause(entry), f"pause {meta.id} for room")
            if number % _PER_TURN == 0:
                await asyncio.sleep(0)

    async def _pause(self, entry: Entry) -> None:
        meta = entry.meta
        try:
            async with entry.lock:
                if meta.phase == "running" and entry.ended is None:
                    left_s = meta.end_at - time.time()
                    await self._sandboxes.pausing.freeze(entry)
                    self._paused[meta.id] = left_s
                    log.warning("%s is paused until the disk has room: it writes", meta.id)
        except SandptyError as error:
            log.error("%s writes to a disk that is almost full, and is not paused: %s", meta.id, error)
        finally:
            self._pausing.discard(meta.id)

    async def _resume(self) -> None:
        while self._paused:
            sandbox_id, left_s = self._paused.popitem()
            try:
                await self._sandboxes.pausing.resume(sandbox_id, time.time() + left_s)
            except SandptyError as error:
                if error.reason.name == "no_space":  # those before it have taken it: next time
                    self._paused[sandbox_id] = left_s
                    return
                log.info("%s is not resumed: %s", sandbox_id, error)  # somebody else has done something with it
