"""Sandboxes that were started before anybody asked: a claim takes 2 ms instead of 15."""

from __future__ import annotations

import asyncio
import logging

from sandpty import config
from sandpty.isolation.background import Background
from sandpty.supervisor.entry import Entry
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.supervisor.parking import start_ahead
from sandpty.templates.catalog import Catalog
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Limits

log = logging.getLogger(__name__)
RETRY_S = 10.0  # after a start that failed
DIED_PAUSE_S = 1.0  # after one that ended by itself: what ends it may end the next one too
REFILL_DELAY_S = 0.1  # after a claim, while others are warm: the shell that is starting now needs the processor more


class Pool:
    """Keeps `size` warm sandboxes of each template in use; `run` it as a task."""

    def __init__(self, sandboxes: Sandboxes, catalog: Catalog, background: Background, size: int) -> None:
        self._sandboxes = sandboxes
        self._catalog = catalog
        self._background = background
        self._size = size
        self._warm: dict[str, list[Entry]] = {}
        self._wanted: set[str] = set()  # names of templates that were asked for
        self._claimed_at = 0.0
        self.wake = asyncio.Event()
        self._died = False
        sandboxes.warm_ended = self._one_died

    def claim(self, template: str) -> Entry | None:
        """A warm sandbox of `template` (a name), oldest first; None when there is none."""
        name = self._catalog.resolve(template).name
        if self._size == 0:
            return None
        self._wanted.add(template)
        self._claimed_at = asyncio.get_running_loop().time()
        self.wake.set()
        waiting = self._warm.get(name, [])
        while waiting:
            entry = waiting.pop(0)
            if entry.ended is None and entry.alive:
                return entry
            self._background.spawn(self._sandboxes.discard(entry), f"discard {entry.meta.id}")
        return None

    def _one_died(self) -> None:
        self._died = True
        self.wake.set()

    def adopt(self, entry: Entry) -> None:
        """Take back a warm sandbox of an earlier supervisor."""
        self._warm.setdefault(entry.meta.template, []).append(entry)

    async def run(self) -> None:
        while True:
            self.wake.clear()
            try:
                await self._refill()
            except (SandptyError, OSError) as error:
                log.warning("cannot start warm sandboxes: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            await self.wake.wait()

    async def _refill(self) -> None:
        if self._died:
            await asyncio.sleep(DIED_PAUSE_S)
            self._died = False
        for waiting in self._warm.values():
            waiting[:] = [entry for entry in waiting if entry.ended is None]
        wanted = {self._catalog.default.name: self._catalog.default}
        for template in self._wanted:
            ready = self._catalog.resolve(template)
            wanted[ready.name] = ready
        for name in self._warm.keys() - wanted.keys():
            for entry in self._warm.pop(name):
                await self._sandboxes.discard(entry)
        for name, ready in wanted.items():
            waiting = self._warm.setdefault(name, [])
            while len(waiting) < (min(self._size, config.POOL_STARTED_SIZE) if ready.started else self._size):
                await self._sandboxes.idle.wait()
                early_s = self._claimed_at + REFILL_DELAY_S - asyncio.get_running_loop().time()
                if waiting and early_s > 0:
                    await asyncio.sleep(early_s)
                    continue
                entry = await self._sandboxes.boot_new(ready, Limits(), True)
                if ready.started:
                    start_ahead(entry.meta, ready.started)
                entry.meta.phase = "warm"
                waiting.append(entry)
                entry.keep()

    async def drain(self) -> None:
        """End every warm sandbox."""
        for waiting in self._warm.values():
            while waiting:
                await self._sandboxes.discard(waiting.pop())
