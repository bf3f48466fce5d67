"""A sandbox's way out by its plan: the names that the egress process opens, the packets that the firewall lets pass."""

from __future__ import annotations

import contextlib
import logging

from sandpty.config import DataDir
from sandpty.isolation.driver import Plan
from sandpty.isolation.egress import Egress
from sandpty.isolation.network import Network
from sandpty.isolation.slots import Slots
from sandpty.wire.errors import SandptyError

log = logging.getLogger(__name__)


class Outward:
    """Does nothing where the machine's network gives sandboxes no way out: they have loopback only."""

    def __init__(self, network: Network, slots: Slots, data: DataDir) -> None:
        self._network = network
        self._slots = slots
        self._egress = Egress(
            data.root / "egress",
            data.supervisor_log,
            wire=network.wire_egress,
            wired=network.egress_wired,
        )

    async def open(self) -> None:
        if self._network.available:
            await self._egress.open(self._network.egress.address, self._network.dns)

    async def adopted_all(self) -> None:
        """Every sandbox that an earlier supervisor left was told of."""
        await self._egress.forget_strangers()

    async def close(self, *, sandboxes_left: bool) -> None:
        await self._egress.close(sandboxes_left=sandboxes_left)

    async def open_names(self, plan: Plan) -> None:
        """Let the egress process know which names this sandbox may reach. Raises runtime_failed."""
        rules = plan.rules
        if not rules.names or not self._network.available:
            return
        try:
            address = self._network.link(plan.slot).address
            await self._egress.set(str(address), rules.names, plan.network.dns_servers)
        except OSError as error:
            raise SandptyError("runtime_failed", f"names cannot be opened: {error}") from error

    async def close_names(self, plan: Plan) -> None:
        if self._network.available:
            with contextlib.suppress(OSError):  # it is not there: nothing of it is open
                await self._egress.forget(str(self._network.link(plan.slot).address))

    async def apply(self, plan: Plan, netns_fd: int) -> None:
        """What a running sandbox's plan says holds when this returns. Raises OSError, runtime_failed."""
        rules = plan.rules
        await self.open_names(plan)
        await self._slots.allow(plan.slot, netns_fd, plan.way_out, rules)
        if not rules.names:
            await self.close_names(plan)

    async def adopt(self, plan: Plan) -> None:
        """A running sandbox of an earlier supervisor. Its chains are there still; this version may say them anew."""
        rules = plan.rules
        if rules.empty:
            return
        try:
            await self.open_names(plan)
            await self._slots.restrict(plan.slot, rules)
        except (OSError, SandptyError) as error:
            log.error("sandbox %s: what an earlier supervisor allowed it holds on: %s", plan.id, error)
