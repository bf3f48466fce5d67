"""How much sandboxes use, over time: sampled from the supervisor, kept in memory, a bounded number for each sandbox.

The samples of a long life become sparser with age. A server that is restarted begins anew.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from sandpty import config
from sandpty.server.registry import Registry
from sandpty.wire.verbs import Sandbox, Usage

log = logging.getLogger(__name__)
_COLUMNS = 6


@dataclass(frozen=True, slots=True)
class Sample:
    """What a sandbox used at `at` (unix seconds). cpu_pct: of all its CPUs, since the sample before (0 to 100)."""

    at: float
    cpu_pct: float
    memory_bytes: int
    cache_bytes: int
    disk_bytes: int
    processes: int

    @property
    def used_bytes(self) -> int:
        """Memory that cannot be dropped: without the contents of files."""
        return self.memory_bytes - self.cache_bytes


class History:
    """One sandbox's samples, at most METRICS_SAMPLES_MAX, oldest first."""

    def __init__(self) -> None:
        self._rows = array("d")  # a tenth of what objects would take
        self._last: Usage | None = None

    def __len__(self) -> int:
        return len(self._rows) // _COLUMNS

    def add(self, usage: Usage, cpu_count: float) -> None:
        last = self._last
        if last is not None and usage.at < last.at + config.METRICS_GAP_S:
            return
        self._last = usage
        cpu_pct = 0.0
        if last is not None and cpu_count > 0:
            # Below zero after a new boot, whose counters begin anew; above 100 by the kernel's rounding.
            cpu_pct = 100 * (usage.cpu_s - last.cpu_s) / (usage.at - last.at) / cpu_count
        cpu_pct = min(100.0, max(0.0, cpu_pct))
        counts = (usage.memory_bytes, usage.cache_bytes, usage.disk_bytes, usage.processes)
        self._rows.extend((usage.at, cpu_pct, *counts))
        if len(self) > config.METRICS_SAMPLES_MAX:
            self._thin_out()

    def _thin_out(self) -> None:
        """Drop every other sample of the older half."""
        half = len(self) // 2
        kept = array("d")
        for row in range(0, half, 2):
            kept.extend(self._rows[row * _COLUMNS : (row + 1) * _COLUMNS])
        self._rows = kept + self._rows[half * _COLUMNS :]

    def samples(self, start: float | None = None, end: float | None = None) -> list[Sample]:
        """Those between two times (unix seconds, inclusive)."""
        times = self._rows[::_COLUMNS]
        return [
            self._sample(row)
            for row, at in enumerate(times)
            if (start is None or at >= start) and (end is None or at <= end)
        ]

    def latest(self) -> Sample | None:
        return self._sample(len(self) - 1) if len(self) else None

    def _sample(self, row: int) -> Sample:
        at, cpu_pct, *counts = self._rows[row * _COLUMNS : (row + 1) * _COLUMNS]
        return Sample(at, cpu_pct, *(int(count) for count in counts))


class Metrics:
    """Use as `async with`. Samples every sandbox that runs each METRICS_PERIOD_S, a new one at once."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._histories: dict[str, History] = {}
        self._new: dict[str, Sandbox] = {}
        self._wake = asyncio.Event()
        self._failing = False
        self._task: asyncio.Task[None] | None = None
        registry.on_new.append(self._on_new)
        registry.on_gone.append(self._on_gone)

    async def __aenter__(self) -> Metrics:
        self._task = asyncio.create_task(self._run(), name="metrics")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def of(self, sandbox: Sandbox) -> History:
        """Empty until the first sample, which comes milliseconds after the sandbox."""
        return self._histories.get(sandbox.id) or History()

    async def latest(self, sandbox: Sandbox) -> Sample | None:
        """The newest sample, taken now if there is none yet. None when the supervisor cannot tell."""
        if not len(self.of(sandbox)) and sandbox.state == "running":
            await self._sample([sandbox])
        return self.of(sandbox).latest()

    def _on_new(self, sandbox: Sandbox) -> None:
        self._new[sandbox.id] = sandbox
        self._wake.set()

    def _on_gone(self, sandbox_id: str) -> None:
        self._histories.pop(sandbox_id, None)
        self._new.pop(sandbox_id, None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while True:
            self._wake.clear()
            due: Sequence[Sandbox] = list(self._new.values())
            self._new.clear()
            if loop.time() >= next_at:
                next_at = loop.time() + config.METRICS_PERIOD_S
                due = self._registry.all_running()
            for at in range(0, len(due), config.METRICS_IDS_PER_CALL):
                if not await self._sample(due[at : at + config.METRICS_IDS_PER_CALL]):
                    break  # of those that are left the next round tells
            try:
                async with asyncio.timeout_at(next_at):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _sample(self, sandboxes: Sequence[Sandbox]) -> bool:
        """Whether the supervisor told. It may be away, or of a version that cannot: said once, not each time."""
        try:
            usage = await self._registry.usage([sandbox.id for sandbox in sandboxes])
        except Exception as error:
            if not self._failing:
                log.warning("no metrics for now: %s", error)
            self._failing = True
            return False
        self._failing = False
        known = {sandbox.id for sandbox in self._registry.all_running()}  # some may have ended meanwhile
        for sandbox in sandboxes:
            if sandbox.id in usage and sandbox.id in known:
                history = self._histories.setdefault(sandbox.id, History())
                history.add(usage[sandbox.id], sandbox.limits.cpu_count)
        return True
