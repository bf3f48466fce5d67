"""Copies that many sandboxes stand on are laid together, so that a start costs what one from `base` does.

A template of ten steps stands on ten copies, each a mount and a shift of owners at every start. When sandboxes are made
from it again and again, one copy is made of them, in the background; nobody waits for it, and names and ids stay. It is
kept as a snapshot that nobody sees, which goes with the last one that stands on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from sandpty import config
from sandpty.isolation.background import Background
from sandpty.supervisor.snapshots import Snapshots
from sandpty.templates.catalog import Ready
from sandpty.wire.errors import SandptyError

log = logging.getLogger(__name__)
_COUNTED_MAX = 10_000  # snapshots that are remembered; then counting begins anew


class Laying:
    """`idle`: set while no create is under way."""

    def __init__(self, snapshots: Snapshots, background: Background, idle: asyncio.Event) -> None:
        self._snapshots = snapshots
        self._background = background
        self._idle = idle
        self._uses: Counter[str] = Counter()
        self._turn = asyncio.Semaphore(1)

    def used(self, ready: Ready) -> None:
        """A sandbox was made from it that somebody asked for by name."""
        if not ready.snapshot or all(copy.merged for copy in ready.copies):
            return
        if len(self._uses) >= _COUNTED_MAX:
            self._uses.clear()
        self._uses[ready.snapshot] += 1
        if self._uses[ready.snapshot] == config.LAID_TOGETHER_USES:
            self._background.spawn(self._lay(ready.snapshot), f"lay together {ready.snapshot}")

    async def _lay(self, snapshot_id: str) -> None:
        async with self._turn:
            await self._idle.wait()
            try:
                await self._snapshots.lay_together(snapshot_id)
            except (OSError, SandptyError) as error:  # it works as it is
                log.warning("the copies of %s stay apart: %s", snapshot_id, error)
