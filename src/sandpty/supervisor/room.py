"""Tells the operator that the data directory's disk is about to be full, and that it is not any more."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from sandpty import config
from sandpty.isolation import disk

log = logging.getLogger(__name__)


class Room:
    """`run` it as a task."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._scarce = False

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(config.ROOM_PERIOD_S)

    def look(self) -> None:
        """Say it once, when it has changed."""
        scarce = not disk.has_room(self._directory)
        if scarce and not self._scarce:
            log.error(
                "the disk of %s is almost full: no sandbox is made, and what sandboxes write may be lost to them",
                self._directory,
            )
        elif self._scarce and not scarce:
            log.info("the disk of %s has room again", self._directory)
        self._scarce = scarce
