"""What sandboxes use: a few counters of the kernel for each, read when the server asks (verb `usage`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec

from sandpty.isolation.driver import Driver
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.wire import verbs

_PER_TURN = 5  # sandboxes read before others get a turn of the event loop: about a millisecond


class UsageArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ids: list[str]


class Usages:
    def __init__(self, sandboxes: Sandboxes, driver: Driver) -> None:
        self._sandboxes = sandboxes
        self._driver = driver

    async def verb(self, raw: msgspec.Raw) -> verbs.Usages:
        """Of those that are asked for and run; the others are left out."""
        args = msgspec.json.decode(raw, type=UsageArgs)
        found: dict[str, verbs.Usage] = {}
        for at in range(0, len(args.ids), _PER_TURN):
            found |= self._read(args.ids[at : at + _PER_TURN])
            await asyncio.sleep(0)
        return verbs.Usages(usage=found)

    def _read(self, ids: Sequence[str]) -> dict[str, verbs.Usage]:
        found: dict[str, verbs.Usage] = {}
        for sandbox_id in ids:
            entry = self._sandboxes.entries.get(sandbox_id)
            if entry is None or entry.ended is not None or entry.meta.phase != "running":
                continue
            stats = self._driver.stats(entry.plan, entry.meta.started)
            found[sandbox_id] = verbs.Usage(
                at=time.time(),
                cpu_s=stats.cpu_s,
                memory_bytes=stats.memory_bytes,
                cache_bytes=min(stats.cache_bytes, stats.memory_bytes),
                disk_bytes=stats.disk_bytes,
                processes=stats.processes,
            )
        return found
