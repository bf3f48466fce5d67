"""More or less memory for a sandbox that exists (verb `set_memory`)."""

from __future__ import annotations

import msgspec

from sandpty.isolation.background import Background
from sandpty.isolation.driver import Driver
from sandpty.supervisor.checks import check_limits
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.wire import verbs
from sandpty.wire.errors import SandptyError


class MemoryArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    memory_mb: int


class Resizing:
    def __init__(self, sandboxes: Sandboxes, driver: Driver, background: Background) -> None:
        self._sandboxes = sandboxes
        self._driver = driver
        self._background = background

    async def verb(self, raw: msgspec.Raw) -> verbs.Sandbox:
        """The new limit holds when this returns; one that is paused to disk gets it when it starts.

        Raises bad_argument, no_such_sandbox; runtime_failed (less than it uses now), after which the old one holds.
        """
        args = msgspec.json.decode(raw, type=MemoryArgs)
        return await self._background.finish(self._set(args), f"memory {args.id[:64]}")

    async def _set(self, args: MemoryArgs) -> verbs.Sandbox:
        async with self._sandboxes.held(args.id) as entry:
            meta = entry.meta
            before = meta.limits
            limits = msgspec.structs.replace(before, memory_mb=args.memory_mb)
            check_limits(limits)
            meta.limits = limits
            try:
                if meta.phase != "stopped":
                    await self._driver.apply(entry.plan)
            except SandptyError:
                meta.limits = before
                raise
            return self._sandboxes.changed(entry, "memory set")
