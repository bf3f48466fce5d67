"""The verbs for volumes, and a volume's files without a sandbox of the client's.

Whatever lies in a volume is a guest's work: links, FIFOs, names of all kinds. So nobody of the host ever walks through
it. Who wants its files gets an agent in a sandbox of its own, which no list shows: with the same walls as every other,
no network, nothing to run, and files connections whose root is the volume. It ends when nobody has asked for it a
while; a restarted supervisor removes it, as everything that was never handed out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from sandpty import config
from sandpty.isolation.background import Background
from sandpty.supervisor.entry import Entry
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.supervisor.service import IdArgs, OwnerArgs
from sandpty.templates.catalog import Catalog
from sandpty.wire import verbs
from sandpty.wire.verbs import Limits

_PLACE = "/volume"
_LIMITS = Limits(cpu_count=1.0, memory_mb=256, disk_mb=16, pids=96)  # 64 children of 1 MiB at most


class GrowArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    disk_mb: int


class VolumeService:
    def __init__(self, sandboxes: Sandboxes, catalog: Catalog, background: Background) -> None:
        self._sandboxes = sandboxes
        self._volumes = sandboxes.volumes
        self._catalog = catalog
        self._background = background
        self._open: dict[str, Entry] = {}  # by volume
        self._ends: dict[str, asyncio.TimerHandle] = {}
        self._locks: dict[str, asyncio.Lock] = {}  # by volume: one thing at a time with its files

    def table(self) -> dict[str, Callable[[msgspec.Raw], Awaitable[Any]]]:
        return {
            "create_volume": self._create,
            "volumes": self._list,
            "grow_volume": self._grow,
            "delete_volume": self._delete,
            "open_volume": self._open_files,
        }

    async def _create(self, raw: msgspec.Raw) -> verbs.Volume:
        return await self._volumes.create(msgspec.json.decode(raw, type=verbs.CreateVolumeArgs))

    async def _list(self, raw: msgspec.Raw) -> dict[str, list[verbs.Volume]]:
        return {"volumes": self._volumes.list(msgspec.json.decode(raw, type=OwnerArgs).owner)}

    async def _grow(self, raw: msgspec.Raw) -> verbs.Volume:
        args = msgspec.json.decode(raw, type=GrowArgs)
        async with self._held(args.id):
            await self._close(args.id)
            return await self._volumes.grow(args.id, args.disk_mb)

    async def _delete(self, raw: msgspec.Raw) -> dict[str, Any]:
        volume_id = msgspec.json.decode(raw, type=IdArgs).id
        async with self._held(volume_id):
            await self._close(volume_id)
            self._volumes.remove(volume_id)
        del self._locks[volume_id]
        return {}

    async def close(self) -> None:
        """End what serves files of volumes."""
        for volume_id in list(self._open):
            async with self._locks.setdefault(volume_id, asyncio.Lock()):
                await self._close(volume_id)

    def _held(self, volume_id: str) -> asyncio.Lock:
        """Raises no_such_volume; volume_in_use while it grows."""
        self._volumes.get(volume_id)
        return self._locks.setdefault(volume_id, asyncio.Lock())

    # --- its files ---

    async def _open_files(self, raw: msgspec.Raw) -> verbs.OpenVolume:
        volume_id = msgspec.json.decode(raw, type=IdArgs).id
        async with self._held(volume_id):
            entry = self._open.get(volume_id)
            if entry is None or not entry.alive:
                await self._close(volume_id)
                entry = self._open[volume_id] = await self._boot(volume_id)
            self._stay(volume_id)
        return verbs.OpenVolume(socket=entry.meta.socket)

    async def _boot(self, volume_id: str) -> Entry:
        mount = self._volumes.of_its_own(volume_id, _PLACE)
        return await self._sandboxes.boot_new(
            self._catalog.default, _LIMITS, False, (), mounts=(mount,), files_root=_PLACE
        )

    def _stay(self, volume_id: str) -> None:
        """Somebody uses it: its end is VOLUME_OPEN_S from now."""
        if (planned := self._ends.pop(volume_id, None)) is not None:
            planned.cancel()
        loop = asyncio.get_running_loop()
        self._ends[volume_id] = loop.call_later(config.VOLUME_OPEN_S, self._over, volume_id)

    def _over(self, volume_id: str) -> None:
        async def work() -> None:
            async with lock:
                if volume_id not in self._ends:  # nobody has asked for it since
                    await self._close(volume_id)

        lock = self._locks[volume_id]
        del self._ends[volume_id]
        self._background.spawn(work(), f"close volume {volume_id}")

    async def _close(self, volume_id: str) -> None:
        if (planned := self._ends.pop(volume_id, None)) is not None:
            planned.cancel()
        if (entry := self._open.pop(volume_id, None)) is not None:
            await self._sandboxes.discard(entry)
