"""Sandboxes that were started before anybody asked: a claim takes 2 ms instead of 15."""

from __future__ import annotations

import asyncio
import logging

from sandpty import config
from sandpty.isolation.agent_call import ended
from sandpty.isolation.background import Background
from sandpty.supervisor import state
from sandpty.supervisor.entry import Entry
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.supervisor.parking import start_ahead
from sandpty.supervisor.state import Meta
from sandpty.templates.catalog import Catalog, Ready
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import FIRST_SHELLS, e2b_variables
from sandpty.wire.frames import FrameError, StartFlags
from sandpty.wire.template_commands import command_of
from sandpty.wire.templates import Defaults
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
        self._warming: set[Entry] = set()  # started, not ready yet
        self._claimed_at = 0.0
        self.wake = asyncio.Event()
        self._died = False
        sandboxes.warm_ended = self._one_died

    def claim(self, template: Ready, asked: str) -> Entry | None:
        """A warm sandbox of it, oldest first; None when there is none. asked: by which name somebody wants it."""
        if not template.record:
            if self._size == 0:
                return None
            self._wanted.add(asked)
        self._claimed_at = asyncio.get_running_loop().time()
        self.wake.set()
        waiting = self._warm.get(template.name, [])
        while waiting:
            entry = waiting.pop(0)
            if entry.ended is None and entry.alive and _is_of(entry, template):
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
            waiting[:] = [entry for entry in waiting if entry.ended is None and entry.alive]
        targets = self._targets()
        for name, waiting in self._warm.items():
            ready = targets[name][0] if name in targets else None
            for entry in [each for each in waiting if ready is None or not _is_of(each, ready)]:
                await self._give_up(entry, waiting)
        for name, (ready, count) in targets.items():
            waiting = self._warm.setdefault(name, [])
            while len(waiting) + sum(entry.meta.template == name for entry in self._warming) < count:
                await self._sandboxes.idle.wait()
                early_s = self._claimed_at + REFILL_DELAY_S - asyncio.get_running_loop().time()
                if waiting and early_s > 0:
                    await asyncio.sleep(early_s)
                    continue
                await self._start(ready, waiting)
            for entry in waiting[count:]:
                await self._give_up(entry, waiting)

    async def _give_up(self, entry: Entry, waiting: list[Entry]) -> None:
        if entry in waiting:  # and was not claimed in the meantime
            waiting.remove(entry)
            await self._sandboxes.discard(entry)

    def _targets(self) -> dict[str, tuple[Ready, int]]:
        """What is to be warm, and how many: ours as they were asked for, built ones by the operator's word."""
        targets = {self._catalog.default.name: (self._catalog.default, self._size)}
        for asked in self._wanted:
            ready = self._catalog.resolve(asked)
            targets[ready.name] = (ready, min(self._size, config.POOL_STARTED_SIZE) if ready.started else self._size)
        targets.update({ready.name: (ready, count) for ready, count in self._sandboxes.origins.kept_warm()})
        return targets

    async def _start(self, ready: Ready, waiting: list[Entry]) -> None:
        shells = FIRST_SHELLS if ready.defaults == Defaults() else ()
        entry = await self._sandboxes.boot_new(ready, ready.limits or Limits(), True, shells)
        if ready.started:
            try:
                start_ahead(entry.meta, ready.started)
            except OSError:
                await self._sandboxes.discard(entry)
                raise
        if ready.defaults.ready_cmd:
            self._warming.add(entry)
            self._background.spawn(self._warm_up(entry, waiting), f"warm up {entry.meta.id}")
        else:
            _add(entry, waiting)

    async def _warm_up(self, entry: Entry, waiting: list[Entry]) -> None:
        """Until its start command has made it ready; one that does not become so is tried again later."""
        try:
            await until_ready(entry.meta)
            if entry.ended is None:
                entry.meta.seen_ready = True
                _add(entry, waiting)
        except (OSError, TimeoutError, FrameError) as error:
            log.warning("a warm sandbox of %s does not become ready: %s", entry.meta.template, error)
            await self._sandboxes.discard(entry)
            await asyncio.sleep(RETRY_S)
        finally:
            self._warming.discard(entry)
            self.wake.set()

    async def drain(self) -> None:
        """End every warm sandbox."""
        for entry in list(self._warming):
            await self._sandboxes.discard(entry)
        for waiting in self._warm.values():
            while waiting:
                await self._sandboxes.discard(waiting.pop())


def _add(entry: Entry, waiting: list[Entry]) -> None:
    entry.meta.phase = "warm"
    waiting.append(entry)
    entry.keep()


def _is_of(entry: Entry, template: Ready) -> bool:
    """Whether it was made from what the template is now; ours are what they were."""
    if not template.record:
        return True
    meta = entry.meta
    made = (state.kept_layers(template.layers), state.kept_copies(template.copies), template.defaults, template.limits)
    return (meta.layers, meta.copies, meta.defaults, meta.limits) == made


async def until_ready(meta: Meta) -> None:
    """Ask the template's ready command until it ends with 0. Raises TimeoutError, OSError, FrameError."""
    env = e2b_variables(meta.id, meta.template) | meta.defaults.env
    start = command_of(meta.defaults, meta.defaults.ready_cmd, env, flags=StartFlags(0))
    pause_s = config.READY_POLL_MIN_S
    async with asyncio.timeout(config.READY_TIMEOUT_S):
        while (await ended(meta.socket, start, timeout_s=config.READY_TIMEOUT_S))[0] != 0:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, config.READY_POLL_MAX_S)
