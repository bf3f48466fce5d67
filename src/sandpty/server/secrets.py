"""A team's secrets, which its network policies' headers refer to as `${e2b.secrets.NAME}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sandpty.server.auth import Principal
from sandpty.server.supervisor_client import SupervisorClient
from sandpty.wire.errors import SandptyError
from sandpty.wire.secrets import Secret, SecretArgs, SecretList


class Secrets:
    """Of all teams; every method asks whose they are. A secret is referred to by its id or its name."""

    def __init__(self, client: SupervisorClient) -> None:
        self._client = client

    async def list(self, principal: Principal) -> Sequence[Secret]:
        return (await self._client.call("secrets", {"owner": principal.id}, SecretList)).secrets

    async def find(self, reference: str, principal: Principal) -> Secret:
        """Raises no_such_secret."""
        for secret in await self.list(principal):
            if reference == secret.id or reference.lower() == secret.name:
                return secret
        raise SandptyError("no_such_secret", f"secret '{reference[:128]}' not found")

    async def create(self, principal: Principal, name: str, value: str, metadata: Mapping[str, str] | None) -> Secret:
        """Raises bad_argument, conflict, limit, no_space."""
        return await self._set("create_secret", principal, name, value, metadata)

    async def update(
        self, principal: Principal, reference: str, value: str, metadata: Mapping[str, str] | None
    ) -> Secret:
        """Sandboxes that refer to it send the new value from now on. Raises no_such_secret, bad_argument, no_space."""
        return await self._set("update_secret", principal, reference, value, metadata)

    async def _set(
        self, verb: str, principal: Principal, reference: str, value: str, metadata: Mapping[str, str] | None
    ) -> Secret:
        kept = None if metadata is None else dict(metadata)
        args = SecretArgs(owner=principal.id, reference=reference, value=value, metadata=kept)
        return await self._client.call(verb, args, Secret)

    async def delete(self, reference: str, principal: Principal) -> None:
        """Raises no_such_secret."""
        await self._client.call("delete_secret", SecretArgs(owner=principal.id, reference=reference), dict)
