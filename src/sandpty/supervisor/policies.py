"""Network policies as clients say them, made whole: checked, with the secrets they leave as they were."""

from __future__ import annotations

import msgspec

from sandpty.isolation.driver import Driver, WayOut
from sandpty.supervisor.checks import checked_network, revealed
from sandpty.wire import verbs
from sandpty.wire.errors import SandptyError
from sandpty.wire.network_policy import NetworkPolicy


class Policies:
    """For one driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def whole(self, policy: NetworkPolicy, before: NetworkPolicy, internet: bool) -> NetworkPolicy:
        """Raises bad_argument, unsupported, runtime_failed."""
        policy = revealed(checked_network(internet, policy, isolated=self._driver.isolated), before)
        if policy.proxy is not None and policy.proxy != before.proxy:
            await self._outward.check_proxy(policy.proxy.host)
        return policy

    @property
    def _outward(self) -> WayOut:
        if self._driver.outward is None:
            raise SandptyError("unsupported", "the process tier has the host's network: it holds no network policy")
        return self._driver.outward

    async def authority(self, _: msgspec.Raw) -> verbs.EgressAuthority:
        """The verb."""
        return verbs.EgressAuthority(pem=(await self._outward.certificate()).decode("ascii"))
