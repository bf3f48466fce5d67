"""Volumes: directories that outlive sandboxes, and what is written down of them.

A volume is a directory below `volumes` with its disk (isolation/volumes.py) and `volume.json`, which is written last:
without it the directory was half made, and is removed at the next start. Who mounts what is known from the sandboxes.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sandpty import config
from sandpty.isolation import disk
from sandpty.isolation.background import Background
from sandpty.isolation.driver import Driver
from sandpty.isolation.failures import failure
from sandpty.supervisor import state
from sandpty.supervisor.checks import check_disk, check_mounts
from sandpty.supervisor.snapshots import Snapshots, World
from sandpty.supervisor.state import KeptMount
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import CreateArgs, CreateVolumeArgs, Volume, VolumeMount

log = logging.getLogger(__name__)
META_NAME = "volume.json"
_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DISK_MB_MIN = 16


class Kept(msgspec.Struct, kw_only=True):
    """What is written down of a volume. `created_at`: unix seconds."""

    id: str
    name: str
    owner: str
    created_at: float
    disk_mb: int


class Volumes:
    """All volumes of one data directory; `load` it once the sandboxes are known."""

    def __init__(
        self, directory: Path, sandboxes: World, snapshots: Snapshots, driver: Driver, background: Background
    ) -> None:
        self._directory = directory
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._driver = driver
        self._background = background
        self._kept: dict[str, Kept] = {}
        self._making: dict[tuple[str, str], int] = {}  # (owner, name) of those that are not there yet: disk_mb
        self._growing: set[str] = set()
        self._turn = asyncio.Semaphore(config.VOLUMES_IN_PARALLEL)

    # --- questions ---

    def list(self, owner: str | None) -> list[Volume]:
        """Of one owner, or (None) of all; oldest first."""
        users: dict[str, list[str]] = {}
        for entry in self._sandboxes.entries.values():
            if entry.visible and entry.ended is None:
                for volume_id in {mount.volume for mount in entry.meta.mounts}:
                    users.setdefault(volume_id, []).append(entry.meta.id)
        mine = [
            self._shown(kept, users.get(kept.id, [])) for kept in self._kept.values() if owner in (None, kept.owner)
        ]
        return sorted(mine, key=lambda volume: (volume.created_at, volume.id))

    def get(self, volume_id: str) -> Kept:
        """Raises no_such_volume; volume_in_use while it grows."""
        kept = self._kept.get(volume_id)
        if kept is None:
            raise SandptyError("no_such_volume", f"volume {volume_id[:64]} does not exist")
        if volume_id in self._growing:
            raise SandptyError("volume_in_use", f"volume {kept.name} is being made larger")
        return kept

    def mounts(self, args: CreateArgs) -> tuple[KeptMount, ...]:
        """What a new sandbox mounts: what it asks for and, elsewhere, what the snapshot's sandbox had.

        Raises bad_argument, limit, no_such_volume, no_such_snapshot.
        """
        inherited = self._snapshots.mounts(args.snapshot) if args.snapshot else ()
        asked = {mount.path for mount in args.volumes}
        wanted = (*args.volumes, *(mount.shown() for mount in inherited if mount.path not in asked))
        check_mounts(wanted)
        return tuple(self._mount(mount, args.owner) for mount in wanted)

    def of_its_own(self, volume_id: str, path: str) -> KeptMount:
        """For a sandbox of ours, at `path`."""
        return self._mount(VolumeMount(volume=volume_id, path=path), self.get(volume_id).owner)

    def _mount(self, mount: VolumeMount, owner: str) -> KeptMount:
        kept = self.get(mount.volume)
        if kept.owner != owner:
            raise SandptyError("no_such_volume", f"volume {mount.volume[:64]} does not exist")
        return KeptMount(kept.id, kept.name, str(self._directory / kept.id), mount.path, mount.read_only)

    def _shown(self, kept: Kept, users: Sequence[str]) -> Volume:
        return Volume(
            id=kept.id,
            name=kept.name,
            owner=kept.owner,
            created_at=kept.created_at,
            disk_mb=kept.disk_mb,
            size_bytes=disk.used_bytes(self._directory / kept.id),
            mounted_by=tuple(sorted(users)),
        )

    # --- changes ---

    async def create(self, args: CreateVolumeArgs) -> Volume:
        """Raises bad_argument, conflict (the owner has one of that name), limit, no_space, unsupported."""
        return await self._background.finish(self._create(args), "create a volume")

    async def _create(self, args: CreateVolumeArgs) -> Volume:
        disk_mb = args.disk_mb or config.VOLUME_DISK_MB
        self._check(args, disk_mb)
        volume_id = state.new_record_id()
        directory = self._directory / volume_id
        key = args.owner, args.name
        self._making[key] = disk_mb
        try:
            directory.mkdir(mode=0o700)
            async with self._turn:
                await self._driver.make_volume(directory, disk_mb)
            kept = Kept(id=volume_id, name=args.name, owner=args.owner, created_at=time.time(), disk_mb=disk_mb)
            state.write_durably(directory / META_NAME, kept)
        except BaseException as error:
            self._sandboxes.trash.take(directory)
            if isinstance(error, OSError):
                raise SandptyError("no_space", f"the volume cannot be written down: {error.strerror}") from error
            raise
        finally:
            del self._making[key]
        self._kept[volume_id] = kept
        log.info("volume %s created, %d MiB", volume_id, disk_mb)
        return self._shown(kept, [])

    def _check(self, args: CreateVolumeArgs, disk_mb: int) -> None:
        if not _NAME.fullmatch(args.name):
            text = "a volume's name is at most 128 letters, digits, dots, dashes and underscores"
            raise SandptyError("bad_argument", text)
        mine = {kept.name: kept for kept in self._kept.values() if kept.owner == args.owner}
        if args.name in mine or (args.owner, args.name) in self._making:
            raise SandptyError("conflict", f"there is a volume named {args.name} already")
        making = [name for owner, name in self._making if owner == args.owner]
        if len(mine) + len(making) >= config.VOLUMES_MAX:
            raise SandptyError("limit", f"a team holds {config.VOLUMES_MAX} volumes at most")
        self._check_size(args.owner, disk_mb, disk_mb)

    def _check_size(self, owner: str, disk_mb: int, more_mb: int) -> None:
        if disk_mb < _DISK_MB_MIN:
            raise SandptyError("bad_argument", f"a volume holds {_DISK_MB_MIN} MiB at least")
        promised = sum(kept.disk_mb for kept in self._kept.values() if kept.owner == owner)
        promised += sum(size for (whose, _), size in self._making.items() if whose == owner)
        if promised + more_mb > config.VOLUMES_DISK_MB_MAX:
            raise SandptyError("limit", f"a team's volumes hold {config.VOLUMES_DISK_MB_MAX} MiB together at most")
        check_disk(self._directory)

    async def grow(self, volume_id: str, disk_mb: int) -> Volume:
        """Raises no_such_volume, volume_in_use, bad_argument (it would become smaller), limit."""
        kept = self.get(volume_id)
        if disk_mb == kept.disk_mb:
            return self._shown(kept, self._users(volume_id))
        if disk_mb < kept.disk_mb:
            raise SandptyError(
                "bad_argument", f"volume {kept.name} holds {kept.disk_mb} MiB, and cannot become smaller"
            )
        self._check_size(kept.owner, disk_mb, disk_mb - kept.disk_mb)
        self.check_unused(kept)
        self._growing.add(volume_id)  # nobody gets it from here on
        return await self._background.finish(self._grow(kept, disk_mb), f"grow volume {volume_id}")

    async def _grow(self, kept: Kept, disk_mb: int) -> Volume:
        directory = self._directory / kept.id
        try:
            async with self._turn:
                await self._driver.grow_volume(directory, disk_mb)
            grown = msgspec.structs.replace(kept, disk_mb=disk_mb)
            state.write_durably(directory / META_NAME, grown)
            self._kept[kept.id] = grown
        except OSError as error:
            raise failure("the volume's new size could not be written down", error) from error
        finally:
            self._growing.discard(kept.id)
        log.info("volume %s holds %d MiB now", kept.id, disk_mb)
        return self._shown(grown, [])

    def remove(self, volume_id: str) -> None:
        """It is gone, with all that is in it. Raises no_such_volume, volume_in_use."""
        kept = self.get(volume_id)
        self.check_unused(kept)
        del self._kept[volume_id]
        directory = self._directory / volume_id
        self._driver.forget_copy(directory)
        self._sandboxes.trash.take(directory)
        log.info("volume %s deleted", volume_id)

    def check_unused(self, kept: Kept) -> None:
        """Raises volume_in_use, naming a sandbox."""
        if users := self._users(kept.id):
            more = f" and {len(users) - 1} others" if len(users) > 1 else ""
            raise SandptyError("volume_in_use", f"volume {kept.name} is mounted by sandbox {users[0]}{more}")

    def _users(self, volume_id: str) -> Sequence[str]:
        """Sandboxes that have it or are about to, oldest first."""
        return [
            entry.meta.id
            for entry in self._sandboxes.entries.values()
            if any(mount.volume == volume_id for mount in entry.meta.mounts)
        ]

    # --- start ---

    def load(self) -> None:
        """Find what earlier supervisors kept; remove what they left half made."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for directory in self._directory.iterdir():
            try:
                kept = state.read_lasting(directory / META_NAME, Kept)
            except OSError as error:
                log.error("volume %s cannot be read and is left alone: %s", directory.name, error)
                continue
            if kept is None:
                log.warning("removing %s: it is not a complete volume", directory.name)
                self._sandboxes.trash.take(directory)
                continue
            self._kept[kept.id] = kept
