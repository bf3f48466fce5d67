"""Volumes as the dialects see them: whose they are, what they are called, what is in them without a sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.auth import Authenticator, Principal, bearer
from sandpty.server.runtime_tokens import Claims, SignedTokens, expiry
from sandpty.server.supervisor_client import SupervisorClient
from sandpty.terminal.files import Files, open_files
from sandpty.wire import verbs
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Volume, VolumeMount

USER = config.VOLUME_USER


class VolumeList(msgspec.Struct, frozen=True):
    volumes: list[Volume]


class VolumeClaims(Claims, frozen=True, kw_only=True, tag="volume"):
    """The files of one volume (`sub`). `key`: through which API key it was given out."""

    key: str = ""


class Volumes:
    """Of all teams; every method asks whose they are. A volume is referred to by its id or its name."""

    def __init__(self, client: SupervisorClient) -> None:
        self._client = client

    async def create(self, principal: Principal, name: str, disk_mb: int = 0) -> Volume:
        """disk_mb 0: the default. Raises bad_argument, conflict, limit, no_space, unsupported."""
        args = verbs.CreateVolumeArgs(name=name, owner=principal.id, disk_mb=disk_mb)
        return await self._client.call("create_volume", args, Volume)

    async def list(self, principal: Principal) -> Sequence[Volume]:
        """The principal's, oldest first."""
        listed = await self._client.call("volumes", {"owner": principal.id}, VolumeList)
        return [volume for volume in listed.volumes if volume.owner == principal.id]

    async def find(self, reference: str, principal: Principal) -> Volume:
        """Raises no_such_volume."""
        return _found(reference, await self.list(principal))

    async def grow(self, reference: str, principal: Principal, disk_mb: int) -> Volume:
        """Raises no_such_volume, volume_in_use, bad_argument (smaller than it is), limit."""
        volume = await self.find(reference, principal)
        return await self._client.call("grow_volume", {"id": volume.id, "disk_mb": disk_mb}, Volume)

    async def delete(self, reference: str, principal: Principal) -> Volume:
        """What it was. Raises no_such_volume, volume_in_use."""
        volume = await self.find(reference, principal)
        await self._client.call("delete_volume", {"id": volume.id}, dict)
        return volume

    async def resolved(self, mounts: Sequence[VolumeMount], principal: Principal) -> tuple[VolumeMount, ...]:
        """The same by id; a slash at a path's end means nothing. Raises no_such_volume."""
        if not mounts:
            return ()
        mine = await self.list(principal)
        return tuple(
            VolumeMount(
                volume=_found(mount.volume, mine).id, path=mount.path.rstrip("/") or "/", read_only=mount.read_only
            )
            for mount in mounts
        )

    # --- content ---

    @asynccontextmanager
    async def files(self, volume_id: str) -> AsyncIterator[Files]:
        """A files connection whose `/` is the volume, acting as root. Raises no_such_volume, limit, runtime_failed."""
        opened = await self._open(volume_id)
        staying = asyncio.create_task(self._stay(volume_id), name=f"volume {volume_id}")
        try:
            async with await open_files(opened.socket, "root") as files:
                yield files
        finally:
            staying.cancel()

    async def _open(self, volume_id: str) -> verbs.OpenVolume:
        return await self._client.call("open_volume", {"id": volume_id}, verbs.OpenVolume)

    async def _stay(self, volume_id: str) -> None:
        """As long as somebody transfers something. When the supervisor is away, what is open stays open."""
        while True:
            await asyncio.sleep(config.VOLUME_OPEN_S / 3)
            try:
                await self._open(volume_id)
            except SandptyError as error:
                if error.reason.name != "supervisor_down":
                    return


def _found(reference: str, volumes: Sequence[Volume]) -> Volume:
    for volume in volumes:
        if reference in (volume.id, volume.name):
            return volume
    raise SandptyError("no_such_volume", f"volume {reference[:128]!r} does not exist")


def volume_token(tokens: SignedTokens, volume: Volume, principal: Principal) -> str:
    """Opens the volume's files to whoever holds it, for VOLUME_TOKEN_S."""
    expires = expiry(config.VOLUME_TOKEN_S)
    return tokens.sign(VolumeClaims(sub=volume.id, own=volume.owner, exp=expires, key=principal.key))


def authorized_volume(tokens: SignedTokens, auth: Authenticator, request: web.Request, volume_id: str) -> str:
    """The id of the volume that the request's token is for. It is cut should the token's key be revoked meanwhile.

    Raises unauthenticated: no token, not ours, expired, another volume's, or of a key that was revoked.
    """
    token = bearer(request)
    if not token:
        raise SandptyError("unauthenticated", "this request carries no volume token")
    claims = tokens.read(token, VolumeClaims)
    if claims.sub != volume_id:
        raise SandptyError("unauthenticated", "the token is for another volume")
    auth.accept(request, claims.own, claims.key)
    return volume_id
