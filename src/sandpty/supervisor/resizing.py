"""More or less memory for a sandbox that exists (verb `set_memory`)."""

from __future__ import annotations

import msgspec

from sandpty.isolation.background import Background
from sandpty.supervisor.checks import check_limits
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.wire import verbs


class MemoryArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    memory_mb: int


class Resizing:
    def __init__(self, sandboxes: Sandboxes, background: Background) -> None:
        self._sandboxes = sandboxes
        self._background = background

    async def verb(self, raw: msgspec.Raw) -> verbs.Sandbox:
        """The new limit holds when this returns; one that is paused to disk gets it when it starts.

        Raises bad_argument, no_such_sandbox; runtime_failed (less than it uses now), after which the old one holds.
        """
        args = msgspec.json.decode(raw, type=MemoryArgs)
        return await self._background.finish(self._set(args), f"memory {args.id[:64]}")

    async def _set(self, args: MemoryArgs) -> verbs.Sandbox:
        async with self._sandboxes.held(args.id) as entry:
            limits = msgspec.structs.replace(entry.meta.limits, memory_mb=args.memory_mb)
            check_limits(limits)
            return await self._sandboxes.apply(entry, "memory set", limits=limits)
