"""Snapshots: copies of what sandboxes have written, kept to start others from.

Files only: no memory is kept. A snapshot is a directory with the copied disk and `snapshot.json`, which is written
last: without it the directory was half made, and is removed at the next start. A deleted snapshot stays, unseen, while
something stands on its copy. Nothing is ever copied twice: a sandbox from a snapshot writes to a disk of its own, above
the copy; a snapshot of that sandbox is a copy of this disk, to be stacked on the first one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from sandpty import config
from sandpty.isolation.background import Background
from sandpty.isolation.driver import Copy, Driver
from sandpty.isolation.trash import Trash
from sandpty.supervisor import state
from sandpty.supervisor.checks import check_disk, check_tier
from sandpty.supervisor.entry import Entry
from sandpty.supervisor.pausing import Holder
from sandpty.supervisor.state import KeptCopy, KeptLayer, KeptMount
from sandpty.supervisor.template_records import TemplateRecords
from sandpty.templates.catalog import Ready
from sandpty.wire.errors import SandptyError
from sandpty.wire.templates import Defaults
from sandpty.wire.verbs import Limits, Snapshot, SnapshotArgs

log = logging.getLogger(__name__)
META_NAME = "snapshot.json"
_LAID_TOGETHER = "laid together"  # as a layer's key, which it never is


class Kept(msgspec.Struct, kw_only=True):
    """What is written down of a snapshot. `copies`: its own, then those that its sandbox stood on."""

    id: str
    name: str
    owner: str
    sandbox_id: str
    template: str
    layers: tuple[KeptLayer, ...]
    copies: tuple[KeptCopy, ...]
    limits: Limits
    created_at: float
    size_bytes: int
    defaults: Defaults = Defaults()
    mounts: tuple[KeptMount, ...] = ()
    deleted: bool = False
    temporary: bool = False
    layer: str = ""  # the key of a build's layer
    used_at: float = 0.0  # of a layer
    laid_together: bool = False  # its first copy is another's, which was made of those that there were

    def snapshot(self) -> Snapshot:
        """What the server is told."""
        return Snapshot(
            id=self.id,
            name=self.name,
            owner=self.owner,
            sandbox_id=self.sandbox_id,
            template=self.template,
            limits=self.limits,
            created_at=self.created_at,
            size_bytes=self.size_bytes,
        )


class World(Holder, Protocol):
    """What is needed of `lifecycle.Sandboxes`."""

    @property
    def entries(self) -> dict[str, Entry]:
        """All sandboxes."""

    @property
    def trash(self) -> Trash:
        """Where directories go."""

    @property
    def left_alone(self) -> set[str]:
        """Ids of sandboxes that are there and not known: what they stand on is not known either."""

    def ending(self, entry: Entry) -> AbstractAsyncContextManager[None]:
        """Around what is done with a sandbox that ends for good; afterwards it is gone."""


class Snapshots:
    """All snapshots of one data directory; `load` it once the sandboxes are known."""

    def __init__(
        self, directory: Path, sandboxes: World, driver: Driver, background: Background, records: TemplateRecords
    ) -> None:
        self._directory = directory
        self._sandboxes = sandboxes
        self._driver = driver
        self._background = background
        self._records = records
        self._kept: dict[str, Kept] = {}
        self._left_alone: set[str] = set()
        self._needed: list[tuple[str, ...]] = []  # what snapshots that are being made stand on
        self.made_layer: Callable[[str], None] = lambda owner: None
        self._copying = asyncio.Semaphore(config.COPIES_IN_PARALLEL)

    # --- questions ---

    @property
    def kept(self) -> Iterable[Kept]:
        """All, layers and those that are deleted too."""
        return self._kept.values()

    def list(self, owner: str | None) -> list[Snapshot]:
        """Those that can be started from and were not made for a moment or a build only, oldest first.

        Of one owner, or (None) of all.
        """
        shown = (kept for kept in self._kept.values() if not (kept.deleted or kept.temporary or kept.layer))
        mine = [kept.snapshot() for kept in shown if owner in (None, kept.owner)]
        return sorted(mine, key=lambda snapshot: (snapshot.created_at, snapshot.id))

    def ready(self, snapshot_id: str, template: str, *, deleted: bool = False) -> Ready:
        """What a sandbox is made from that starts from the snapshot. Raises no_such_snapshot.

        `deleted`: also while it is only kept because a template needs it.
        """
        kept = self._kept.get(snapshot_id) if deleted else self._get(snapshot_id)
        if kept is None:
            raise SandptyError("no_such_snapshot", f"snapshot {snapshot_id[:64]} does not exist")
        layers = tuple(layer.layer() for layer in kept.layers)
        copies = tuple(copy.copy() for copy in kept.copies)
        return Ready(
            template,
            layers,
            kept.created_at,
            kept.size_bytes,
            copies,
            snapshot=snapshot_id,
            limits=kept.limits,
            defaults=kept.defaults,
            warm=False,
        )

    def mounts(self, snapshot_id: str) -> tuple[KeptMount, ...]:
        """The volumes that its sandbox had. Raises no_such_snapshot."""
        return self._get(snapshot_id).mounts

    def _get(self, snapshot_id: str) -> Kept:
        kept = self._kept.get(snapshot_id)
        if kept is None or kept.deleted:
            raise SandptyError("no_such_snapshot", f"snapshot {snapshot_id[:64]} does not exist")
        return kept

    # --- make ---

    async def create(self, args: SnapshotArgs) -> Snapshot:
        """Copy what the sandbox has written; it stands still meanwhile. Raises no_such_sandbox, limit, no_space."""
        return await self._background.finish(self._create(args), f"snapshot of {args.id}")

    async def _create(self, args: SnapshotArgs) -> Snapshot:
        snapshot_id = state.new_record_id()
        directory = self._directory / snapshot_id
        async with self._copying, self._sandboxes.held(args.id) as entry:
            meta = entry.meta
            self._check(entry, args)
            needed = tuple(copy.directory for copy in meta.copies)
            self._needed.append(needed)
            try:
                directory.mkdir(mode=0o700)
                copy = await (self._take(entry, directory) if args.layer else self._copy(entry, directory))
                copies = (copy, *(kept.copy() for kept in meta.copies))
                if args.layer and len(copies) > config.LAYERS_DEEP_MAX:
                    copies = (await self._merged(entry, copies, directory),)
                if not args.temporary:
                    await self._driver.sync_copy(directory)
                kept = Kept(
                    id=snapshot_id,
                    name=args.name,
                    owner=meta.owner,
                    sandbox_id=meta.id,
                    template=meta.template,
                    layers=meta.layers,
                    copies=state.kept_copies(copies),
                    limits=meta.limits,
                    defaults=meta.defaults,
                    mounts=meta.mounts,
                    created_at=time.time(),
                    size_bytes=_size_bytes(directory),
                    temporary=args.temporary,
                    layer=args.layer,
                    used_at=time.time(),
                )
                self._write(kept)
            except BaseException:
                self._sandboxes.trash.take(directory)
                raise
            finally:
                self._needed.remove(needed)
            self._kept[snapshot_id] = kept
        self._replace_namesakes(kept)
        if args.temporary:
            asyncio.get_running_loop().call_later(config.SNAPSHOT_TEMPORARY_S, self.drop, snapshot_id)
        if args.layer:
            self.made_layer(kept.owner)
        log.info("snapshot %s of %s, %d bytes", snapshot_id, args.id, kept.size_bytes)
        return kept.snapshot()

    def _check(self, entry: Entry, args: SnapshotArgs) -> None:
        """Raises limit, no_space, unsupported."""
        check_tier(entry.meta.id, entry.meta.tier, self._driver.name)
        if args.layer:
            if len(entry.meta.copies) >= config.LAYERS_DEEP_MAX:  # a copy of all of them will be made
                check_disk(self._directory, sum(_size_bytes(Path(copy.directory)) for copy in entry.meta.copies))
            return  # there is a bound for those too, and older ones make room (layers.py)
        mine = [kept for kept in self._kept.values() if kept.owner == entry.meta.owner and not kept.layer]
        if len(mine) >= config.SNAPSHOTS_MAX:
            raise SandptyError("limit", f"a team holds {config.SNAPSHOTS_MAX} snapshots at most")
        if len(entry.meta.copies) >= config.COPIES_DEEP_MAX:
            raise SandptyError("limit", f"{config.COPIES_DEEP_MAX} snapshots of snapshots are stacked already")
        size = self._driver.stats(entry.plan, entry.meta.started).disk_bytes
        if sum(kept.size_bytes for kept in mine) + size > config.SNAPSHOTS_BYTES_MAX:
            raise SandptyError("limit", f"a team's snapshots take {config.SNAPSHOTS_BYTES_MAX >> 30} GiB at most")
        check_disk(self._directory, size)

    async def _copy(self, entry: Entry, directory: Path) -> Copy:
        """Into `directory`. Whoever kills us in between: a running sandbox is thawed when it is adopted."""
        running = entry.meta.phase == "running"
        if running:
            await self._driver.freeze(entry.plan)
        try:
            return await self._driver.copy(entry.plan, entry.meta.started, directory)
        finally:
            if running:
                await self._driver.thaw(entry.plan)

    async def _take(self, entry: Entry, directory: Path) -> Copy:
        """End the sandbox and keep its disk itself: nothing is copied."""
        async with self._sandboxes.ending(entry):
            await self._driver.stop(entry.plan, entry.meta.started)
            return await self._driver.take(entry.plan, directory)

    async def _merged(self, entry: Entry, copies: Sequence[Copy], directory: Path) -> Copy:
        """One for all of them, in the place of the first."""
        below = directory.with_name(f"{directory.name}.below")
        os.rename(directory, below)
        try:
            os.mkdir(directory, mode=0o700)
            moved = (replace(copies[0], directory=below), *copies[1:])
            layers, disk_mb = len(entry.meta.layers), entry.meta.limits.disk_mb
            return await self._driver.merge(moved, directory, layers=layers, disk_mb=disk_mb)
        finally:
            self._sandboxes.trash.take(below)

    async def lay_together(self, snapshot_id: str) -> None:
        """Make one copy of those that it stands on; who stands on them already goes on. Raises no_space, OSError."""
        kept = self._kept.get(snapshot_id)
        if kept is None or kept.temporary:
            return
        copies = tuple(copy.copy() for copy in kept.copies)
        apart = max((number for number, copy in enumerate(copies, 1) if not copy.merged), default=0)
        if len(copies) - apart >= config.LAYERS_DEEP_MAX:
            apart = len(copies)
        new_id = state.new_record_id()
        directory = self._directory / new_id
        async with self._copying:
            needed = tuple(str(copy.directory) for copy in copies)
            self._needed.append(needed)
            try:
                check_disk(self._directory, sum(_size_bytes(copy.directory) for copy in copies[:apart]))
                directory.mkdir(mode=0o700)
                layers, disk_mb = len(kept.layers), kept.limits.disk_mb
                made = await self._driver.merge(copies[:apart], directory, layers=layers, disk_mb=disk_mb)
                await self._driver.sync_copy(directory)
                # Kept for those who stand on it, under a name that nobody knows.
                below = msgspec.structs.replace(
                    kept,
                    id=new_id,
                    name="",
                    copies=state.kept_copies((made, *copies[apart:])),
                    size_bytes=_size_bytes(directory),
                    layer=_LAID_TOGETHER,
                    deleted=True,
                )
                self._write(below)
                self._kept[new_id] = below
                if (now := self._kept.get(snapshot_id)) is not None:
                    now = msgspec.structs.replace(
                        now, copies=below.copies, size_bytes=below.size_bytes, laid_together=True
                    )
                    self._write(now)
                    self._kept[snapshot_id] = now
            except BaseException:
                if new_id not in self._kept:
                    self._sandboxes.trash.take(directory)
                raise
            finally:
                self._needed.remove(needed)
                self.collect()
        log.info("%d copies of snapshot %s are one now", apart, snapshot_id)

    def touch(self, kept: Kept) -> None:
        """A build has asked for this layer."""
        before, kept.used_at = kept.used_at, time.time()
        if kept.used_at - before > config.LAYER_TOUCH_S:
            with contextlib.suppress(OSError):  # it is a matter of when it goes
                self._write(kept)

    def _write(self, kept: Kept) -> None:
        """On the disk when this returns, whole or not at all."""
        state.write_durably(self._directory / kept.id / META_NAME, kept)

    def _replace_namesakes(self, new: Kept) -> None:
        """A name means the newest snapshot that got it."""
        for kept in list(self._kept.values()):
            same = kept.name and (kept.owner, kept.name) == (new.owner, new.name)
            if same and kept.id != new.id and not kept.deleted:
                self.drop(kept.id)

    # --- remove ---

    async def delete(self, snapshot_id: str) -> None:
        """Nobody can start from it any more; its bytes go with the last sandbox that stands on them."""
        self._get(snapshot_id)
        self.drop(snapshot_id)

    def drop(self, snapshot_id: str) -> None:
        """Unless it is dropped already."""
        kept = self._kept.get(snapshot_id)
        if kept is not None and not kept.deleted:
            kept.deleted = True
            with contextlib.suppress(OSError):  # a full disk: then it is there again after a restart
                self._write(kept)
            log.info("snapshot %s deleted", snapshot_id)
            self.collect()

    def collect(self) -> None:
        """Remove every deleted snapshot on which nothing stands; none while there is something that cannot be read."""
        if self._left_alone or self._sandboxes.left_alone or self._records.left_alone:
            return
        needed = {files.id for files in self._records.files() if files.kind == "snapshot"}
        used = {copy.directory for entry in self._sandboxes.entries.values() for copy in entry.meta.copies}
        used.update(*self._needed)
        wanted = {kept.id for kept in self._kept.values() if not kept.deleted or kept.id in needed}
        # Each names all that it stands on, not only what is next below it.
        used.update(copy.directory for kept in self._kept.values() if kept.id in wanted for copy in kept.copies)
        for kept in list(self._kept.values()):
            own = self._directory / kept.id
            if str(own) in used:
                continue
            if kept.id not in wanted:
                del self._kept[kept.id]
                self._driver.forget_copy(own)
                self._sandboxes.trash.take(own)
            elif kept.laid_together:  # its own copy is in another one
                self._driver.forget_copy(own)
                for path in own.iterdir():
                    if path.name != META_NAME:
                        self._sandboxes.trash.take(path)

    # --- start ---

    def load(self) -> None:
        """Find what earlier supervisors kept; remove what they left half made."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for directory in self._directory.iterdir():
            try:
                kept = state.read_lasting(directory / META_NAME, Kept)
            except OSError as error:
                log.error("snapshot %s cannot be read and is left alone: %s", directory.name, error)
                self._left_alone.add(directory.name)
                continue
            if kept is None:
                log.warning("removing %s: it is not a complete snapshot", directory.name)
                self._sandboxes.trash.take(directory)
                continue
            kept.deleted = kept.deleted or kept.temporary
            self._kept[kept.id] = kept
        self.collect()


def _size_bytes(directory: Path) -> int:
    """What the copy takes on the disk."""
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total
