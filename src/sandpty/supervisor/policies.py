"""Network policies as clients say them, made whole: checked, with the secrets they leave as they were."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sandpty.isolation.driver import Driver, WayOut
from sandpty.supervisor.checks import checked_network, revealed
from sandpty.supervisor.entry import Entry
from sandpty.wire import network_policy, verbs
from sandpty.wire.errors import SandptyError
from sandpty.wire.network_policy import NetworkPolicy


class Policies:
    """For one driver. `entries`: all sandboxes, by id."""

    def __init__(self, driver: Driver, entries: Mapping[str, Entry]) -> None:
        self._driver = driver
        self._entries = entries

    async def secret_changed(self, owner: str, name: str) -> None:
        """From now on requests of the owner's sandboxes have the new value; what fails with one keeps no other from it.

        Raises runtime_failed.
        """
        failed: SandptyError | None = None
        for entry in tuple(self._entries.values()):
            if entry.meta.owner == owner and name in network_policy.secrets_in(entry.meta.network):
                async with entry.lock:
                    if entry.ended is None and entry.meta.phase != "stopped":
                        try:
                            await self._driver.apply(entry.plan, entry.meta.started)
                        except SandptyError as error:
                            if error.reason.name != "sandbox_ended":
                                failed = failed or error
        if failed is not None:
            raise failed

    async def check_proxy(self, policy: NetworkPolicy, before: NetworkPolicy) -> None:
        """Of a whole policy. Its name is looked up, for as long as who answers likes: hold no sandbox meanwhile.

        Raises bad_argument, unsupported, runtime_failed.
        """
        if policy.proxy is not None and policy.proxy != before.proxy:
            await self._outward.check_proxy(policy.proxy.host)

    def whole(self, policy: NetworkPolicy, before: NetworkPolicy, *, internet: bool, owner: str) -> NetworkPolicy:
        """Its proxy is yet to be checked. `owner`: whose secrets it may refer to. Raises bad_argument, unsupported."""
        policy = revealed(checked_network(internet, policy, isolated=self._driver.isolated), before)
        if wanted := network_policy.secrets_in(policy):
            missing = wanted - self._outward.secrets_of(owner).keys()
            if missing:
                raise SandptyError("bad_argument", f"there is no secret {min(missing)!r}")
        return policy

    @property
    def _outward(self) -> WayOut:
        if self._driver.outward is None:
            raise SandptyError("unsupported", "the process tier has the host's network: it holds no network policy")
        return self._driver.outward

    async def authority(self, _: msgspec.Raw) -> verbs.EgressAuthority:
        """The verb."""
        return verbs.EgressAuthority(pem=(await self._outward.certificate()).decode("ascii"))
