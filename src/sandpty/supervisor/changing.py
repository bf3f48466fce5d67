"""What can be changed of a sandbox that exists: its deadline, words about it, its network policy, its memory."""

from __future__ import annotations

from typing import Any

import msgspec

from sandpty.isolation.background import Background
from sandpty.isolation.driver import Driver
from sandpty.supervisor.checks import check_annotations, check_limits
from sandpty.supervisor.entry import Entry
from sandpty.supervisor.pausing import Holder
from sandpty.supervisor.policies import Policies
from sandpty.wire.errors import SandptyError
from sandpty.wire.network_policy import NetworkPolicy
from sandpty.wire.verbs import Sandbox


class Changing:
    """Every change is written down first: what the disk does not take does not happen. All raise no_such_sandbox."""

    def __init__(self, sandboxes: Holder, driver: Driver, policies: Policies, background: Background) -> None:
        self._sandboxes = sandboxes
        self._driver = driver
        self._policies = policies
        self._background = background

    async def deadline(self, sandbox_id: str, end_at: float) -> Sandbox:
        """Raises sandbox_paused."""
        async with self._sandboxes.held(sandbox_id) as entry:
            if entry.meta.phase != "running":
                raise SandptyError("sandbox_paused", f"sandbox {sandbox_id} is paused and has no deadline")
            entry.change(end_at=end_at)
            return self._sandboxes.tell(entry, "deadline set")

    async def annotations(self, sandbox_id: str, annotations: dict[str, Any]) -> Sandbox:
        """Raises too_large."""
        check_annotations(annotations)
        async with self._sandboxes.held(sandbox_id) as entry:
            entry.change(annotations=annotations)
            return self._sandboxes.tell(entry, "annotated")

    async def network(self, sandbox_id: str, internet: bool, policy: NetworkPolicy) -> Sandbox:
        """Replace the network policy. Once this returns no packet passes that it does not allow.

        Raises bad_argument, unsupported; runtime_failed, after which the old one holds (or what both allow).
        """

        async def work() -> Sandbox:
            async with self._sandboxes.held(sandbox_id) as entry:
                before = entry.meta.network
                whole = self._policies.whole(policy, before, internet=internet, owner=entry.meta.owner)
            await self._policies.check_proxy(whole, before)
            async with self._sandboxes.held(sandbox_id) as entry:  # what it hides may be another now
                meta = entry.meta
                whole = self._policies.whole(policy, meta.network, internet=internet, owner=meta.owner)
                return await self._applied(entry, "network set", internet=internet, network=whole)

        return await self._background.finish(work(), f"network {sandbox_id[:64]}")

    async def memory(self, sandbox_id: str, memory_mb: int) -> Sandbox:
        """The new limit holds when this returns; one that is paused to disk gets it when it starts.

        Raises bad_argument; runtime_failed (less than it uses now), after which the old one holds.
        """

        async def work() -> Sandbox:
            async with self._sandboxes.held(sandbox_id) as entry:
                limits = msgspec.structs.replace(entry.meta.limits, memory_mb=memory_mb)
                check_limits(limits)
                return await self._applied(entry, "memory set", limits=limits)

        return await self._background.finish(work(), f"memory {sandbox_id[:64]}")

    async def _applied(self, entry: Entry, what: str, **members: Any) -> Sandbox:
        """What the driver has to hold."""
        before = {name: getattr(entry.meta, name) for name in members}
        entry.change(**members)
        try:
            if entry.meta.phase != "stopped":
                await self._driver.apply(entry.plan, entry.meta.started)
        except BaseException:
            entry.take_back(**before)
            raise
        return self._sandboxes.tell(entry, what)
