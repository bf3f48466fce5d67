"""A sandbox's way out by its plan: the names that the egress process opens, the packets that the firewall lets pass."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping

from sandpty.config import DataDir
from sandpty.isolation.driver import Plan
from sandpty.isolation.egress import Egress
from sandpty.isolation.failures import failure
from sandpty.isolation.network import Network
from sandpty.isolation.slots import Slots
from sandpty.wire import network_policy
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import GuestRules

log = logging.getLogger(__name__)


class Outward:
    """Does nothing where the machine's network gives sandboxes no way out: they have loopback only."""

    def __init__(self, network: Network, slots: Slots, data: DataDir) -> None:
        self.secrets_of: Callable[[str], Mapping[str, str]] = lambda owner: {}  # name -> value
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

    async def certificate(self) -> bytes:
        """Of whoever vouches for hosts to sandboxes whose requests are given headers, in PEM. Raises runtime_failed."""
        try:
            return await self._egress.certificate()
        except OSError as error:
            raise failure("the egress process does not start", error) from error

    async def check_proxy(self, host: str) -> None:
        """Raises bad_argument unless it leads to an address that may be reached; runtime_failed."""
        if not self._network.available:
            return
        try:
            if not await self._egress.reachable(host):
                text = f"egressProxy address {host[:253]!r} does not resolve to an address that may be reached"
                raise SandptyError("bad_argument", text)
        except OSError as error:
            raise failure("the egress process does not start", error) from error

    async def open_names(self, plan: Plan) -> None:
        """Let the egress process know what this sandbox may reach through it. Raises runtime_failed."""
        rules, policy = plan.rules, plan.network
        if not rules.turned or not self._network.available:
            return
        guest = GuestRules(
            address=str(self._network.link(plan.slot).address),
            names=rules.names,
            headers=network_policy.filled(policy.headers, self.secrets_of(plan.owner)),
            proxy=policy.proxy,
            allowed=tuple(map(str, rules.allowed)),
            denied=tuple(map(str, rules.denied)),
        )
        try:
            # E2B: without a domain in allowOut the list of name servers means nothing.
            await self._egress.set(guest, policy.dns_servers if rules.names else None)
        except OSError as error:
            raise failure("the egress process does not take the policy", error) from error
        except ValueError as error:  # as a message it is too long
            raise SandptyError("too_large", f"the egress process does not take the policy: {error}") from error

    async def close_names(self, plan: Plan) -> None:
        if self._network.available:
            with contextlib.suppress(OSError):  # it is not there: nothing of it is open
                await self._egress.forget(str(self._network.link(plan.slot).address))

    async def apply(self, plan: Plan, netns_fd: int) -> None:
        """What a running sandbox's plan says holds when this returns. Raises OSError, runtime_failed."""
        rules = plan.rules
        await self.open_names(plan)
        await self._slots.allow(plan.slot, netns_fd, plan.way_out, rules)
        if not rules.turned:
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
