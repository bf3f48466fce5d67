"""What happens to sandboxes: create, change, end. Pause and resume: pausing.py.

Each sandbox has a lock; whoever holds it does the next thing to it. State is written to meta.json at the moments that
make every SIGKILL harmless: before something is made that would have to be removed, and after it is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from sandpty import config
from sandpty.config import DataDir
from sandpty.isolation.background import Background
from sandpty.isolation.driver import Driver
from sandpty.isolation.failures import failure
from sandpty.isolation.trash import Trash
from sandpty.supervisor import state
from sandpty.supervisor.booting import Booting
from sandpty.supervisor.changing import Changing
from sandpty.supervisor.checks import check_annotations, check_defaults, check_disk, check_limits
from sandpty.supervisor.entry import Entry
from sandpty.supervisor.events import Events
from sandpty.supervisor.laying import Laying
from sandpty.supervisor.origins import Images, NoImages, Origins
from sandpty.supervisor.pausing import Pausing
from sandpty.supervisor.policies import Policies
from sandpty.supervisor.snapshots import Snapshots
from sandpty.supervisor.state import KeptMount, Meta
from sandpty.supervisor.template_records import TemplateRecords
from sandpty.supervisor.volumes import Volumes
from sandpty.templates.catalog import Catalog, Ready
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import FIRST_SHELLS, FirstShell
from sandpty.wire.network_policy import NetworkPolicy
from sandpty.wire.templates import Defaults
from sandpty.wire.verbs import CreateArgs, EndReason, Limits, Sandbox

log = logging.getLogger(__name__)
END_AGAIN_S = 5.0  # after an end that failed and that nobody waits for


class Sandboxes:
    """All sandboxes of one data directory."""

    def __init__(
        self,
        data: DataDir,
        driver: Driver,
        catalog: Catalog,
        records: TemplateRecords,
        *,
        events: Events,
        background: Background,
        server_uid: int,
        images: Images | None = None,
    ) -> None:
        self._data = data
        self._driver = driver
        self._records = records
        self._events = events
        self._background = background
        self._host_boot_id = state.host_boot_id()
        self._entries: dict[str, Entry] = {}
        self._creating = 0
        self._booting = Booting(driver, server_uid, self._agent_ended)
        self.pausing = Pausing(self, driver, self._booting, background)
        self.policies = Policies(driver, self._entries)
        self.changing = Changing(self, driver, self.policies, background)
        self.left_alone: set[str] = set()
        self.trash = Trash(data.root / "trash", background)
        self.snapshots = Snapshots(data.snapshots, self, driver, background, records)
        self.origins = Origins(catalog, self.snapshots, records, images or NoImages())
        self.volumes = Volumes(data.volumes, self, self.snapshots, driver, background)
        self.deadline_changed = asyncio.Event()
        self.idle = asyncio.Event()  # no create under way: the pool may refill
        self.idle.set()
        self._laying = Laying(self.snapshots, background, self.idle)
        self.warm_ended: Callable[[], None] = lambda: None  # called when one did by itself

    # --- questions ---

    @property
    def entries(self) -> dict[str, Entry]:
        return self._entries

    def list(self, after: str = "") -> list[Sandbox]:
        """Those whose ids are behind `after`."""
        shown = (each for each in self._entries.values() if each.visible and each.ended is None)
        return [entry.meta.sandbox() for entry in shown if entry.meta.id > after]

    def _get(self, sandbox_id: str) -> Entry:
        entry = self._entries.get(sandbox_id)
        if entry is None or not entry.visible:
            raise SandptyError("no_such_sandbox", f"sandbox {sandbox_id[:64]} does not exist")
        return entry

    @contextlib.asynccontextmanager
    async def held(self, sandbox_id: str) -> AsyncIterator[Entry]:
        """The sandbox, locked; raises no_such_sandbox also when it ended while we waited for the lock."""
        entry = self._get(sandbox_id)
        async with entry.lock:
            if entry.ended is not None:
                raise SandptyError("no_such_sandbox", f"sandbox {sandbox_id[:64]} has ended")
            yield entry

    # --- create ---

    async def create(self, args: CreateArgs, claim: Callable[[Ready, str], Entry | None]) -> Sandbox:
        """A sandbox for the server: a warm one, if `claim` gives one, turned into what was asked for; or a new one."""
        before = self._get(args.network_of).meta.network if args.network_of else NetworkPolicy()
        policy = self.policies.whole(args.network, before, internet=args.internet, owner=args.owner)
        await self.policies.check_proxy(policy, before)
        args = msgspec.structs.replace(args, network=policy)
        template = self.origins.ready(args)
        limits = args.limits or template.limits or Limits()
        check_limits(limits)
        check_annotations(args.annotations)
        check_defaults(args.defaults)
        self.check_room()  # also for a warm one: it is about to write
        mounts = self.volumes.mounts(args)
        self._creating += 1
        self.idle.clear()
        try:
            # A warm sandbox's disk has its size already; everything else can be changed.
            fits = template.warm and limits.disk_mb == (template.limits or Limits()).disk_mb and not mounts
            entry = claim(template, args.template) if fits else None
            if entry is None or not await self._claim(entry, args, limits):
                # A shell with more in its environment, or of another user, is another shell.
                usual = args.first_shell is not None and template.defaults == Defaults()
                shells = (args.first_shell,) if usual and args.first_shell else ()
                entry = await self.boot_new(
                    template, limits, args.internet, shells, args.network, owner=args.owner, mounts=mounts
                )
            if template.record:
                self._records.used(template.record)
            if template.record or args.snapshot:
                self._laying.used(template)
            return self._hand_out(entry, args)
        finally:
            self._creating -= 1
            if self._creating == 0:
                self.idle.set()

    async def _claim(self, entry: Entry, args: CreateArgs, limits: Limits) -> bool:
        """Give a warm sandbox its limits and network policy; False when it turns out to be unusable."""
        meta = entry.meta
        async with entry.lock:
            if entry.ended is not None:
                return False
            if (limits, args.internet, args.network) == (meta.limits, meta.internet, meta.network):
                return True
            meta.limits, meta.internet, meta.network = limits, args.internet, args.network
            meta.owner = args.owner
            try:
                await self._driver.apply(entry.plan, meta.started)
            except SandptyError as error:
                log.warning("warm sandbox %s does not take its limits: %s", meta.id, error)
                self._background.spawn(self.discard(entry), f"discard {meta.id}")
                return False
            return True

    def _hand_out(self, entry: Entry, args: CreateArgs) -> Sandbox:
        meta = entry.meta
        try:
            if not entry.alive:  # nobody would be told of its end
                raise SandptyError("runtime_failed", "the agent ended at once")
            entry.change(
                phase="running",
                started_at=time.time(),
                end_at=args.end_at,
                on_timeout=args.on_timeout,
                owner=args.owner,
                annotations=args.annotations,
            )
        except SandptyError:
            self._background.spawn(self.discard(entry), f"discard {meta.id}")
            raise
        sandbox = meta.sandbox()
        # Told to the log after the answer is on its way: formatting and writing a line is a tenth of a warm create.
        asyncio.get_running_loop().call_soon(
            log.info, "created %s template=%s pid=%d end_at=%.3f", meta.id, meta.template, meta.pid, meta.end_at
        )
        self._events.publish("changed", sandbox)
        self.deadline_changed.set()
        return sandbox

    async def boot_new(
        self,
        template: Ready,
        limits: Limits,
        internet: bool,
        shells: Sequence[FirstShell] = FIRST_SHELLS,
        network: NetworkPolicy | None = None,
        *,
        owner: str = "",
        mounts: tuple[KeptMount, ...] = (),
        files_root: str = "",
    ) -> Entry:
        """A running sandbox that nobody has been told of yet, with `shells` started in advance.

        Leaves nothing behind when it fails.
        """
        if len(self._entries) >= config.SANDBOXES_MAX:
            raise SandptyError("limit", f"this host holds {config.SANDBOXES_MAX} sandboxes at most")
        self.check_room()
        sandbox_id = state.new_id()
        meta = Meta(
            id=sandbox_id,
            template=template.name,
            layers=state.kept_layers(template.layers),
            copies=state.kept_copies(template.copies),
            slot=-1,
            phase="creating",
            tier=self._driver.name,
            limits=limits,
            boot_id=str(uuid.uuid4()),
            host_boot_id=self._host_boot_id,
            socket=str(self._data.agents / f"{sandbox_id}.sock"),
            internet=internet,
            network=network or NetworkPolicy(),
            owner=owner,
            defaults=template.defaults,
            mounts=mounts,
            files_root=files_root,
        )
        entry = self._entries[sandbox_id] = Entry(meta, self._data.sandboxes / sandbox_id)
        try:
            return await self._background.finish(self._boot_first(entry, shells), f"boot {sandbox_id}")
        except asyncio.CancelledError:
            self._background.spawn(self.discard(entry), f"discard {sandbox_id}")
            raise

    async def _boot_first(self, entry: Entry, shells: Sequence[FirstShell]) -> Entry:
        async with entry.lock, self._booting.turn:
            try:
                entry.meta.slot = await self._driver.reserve()
                entry.directory.mkdir(mode=0o700)
                entry.keep()
                await self._booting.boot(entry, shells)
                entry.keep()
            except Exception as error:
                log.warning("create %s failed: %s", entry.meta.id, error)
                await self._drop(entry)
                if isinstance(error, OSError):
                    raise failure("the sandbox could not be made", error) from error
                raise
        return entry

    # --- exits ---

    def follow(self, entry: Entry) -> None:
        """Learn when the agent ends. Raises ProcessLookupError when it already has."""
        entry.follow(self._agent_ended)

    def _agent_ended(self, entry: Entry) -> None:
        entry.unfollow()
        self._background.spawn(self._ended_by_itself(entry), f"end {entry.meta.id}")

    async def _ended_by_itself(self, entry: Entry) -> None:
        async with entry.lock:
            if entry.ended is not None or entry.meta.phase in ("creating", "stopped"):
                return
            if entry.meta.phase == "warm":
                log.warning("warm sandbox %s ended by itself", entry.meta.id)
                self.warm_ended()
                await self._drop(entry)
                return
            oom = self._driver.stats(entry.plan, entry.meta.started).out_of_memory_kills > 0
            try:
                await self._end(entry, "out_of_memory" if oom else "agent_exited")
            except Exception as error:
                self._again(self._ended_by_itself, entry, error)

    # --- end ---

    async def kill(self, sandbox_id: str, reason: EndReason = "killed") -> None:
        """Returns once every process and file of it is gone. Raises no_such_sandbox."""

        async def work() -> None:
            async with self.held(sandbox_id) as entry:
                await self._end(entry, reason)

        await self._background.finish(work(), f"kill {sandbox_id}")

    async def expire(self, entry: Entry) -> None:
        """Do what `on_timeout` says, unless the deadline was moved or the sandbox paused in the meantime."""
        async with entry.lock:
            meta = entry.meta
            if entry.ended is not None or meta.phase != "running" or meta.end_at > time.time():
                return
            if meta.on_timeout == "kill":
                await self._end(entry, "timeout")
            elif meta.on_timeout == "pause":
                await self.pausing.freeze_or_stop(entry)
            else:
                await self.pausing.stop(entry)

    async def discard(self, entry: Entry) -> None:
        """End a sandbox that nobody has been told of."""
        async with entry.lock:
            if entry.ended is None:
                await self._drop(entry)

    async def _drop(self, entry: Entry) -> None:
        """The same, of one that is locked. Nobody else would ask again if it fails."""
        entry.ended = "failed"
        try:
            await self._remove(entry)
        except Exception as error:
            entry.ended = None
            self._again(self.discard, entry, error)

    def _again(self, work: Callable[[Entry], Awaitable[None]], entry: Entry, error: Exception) -> None:
        async def later() -> None:
            await asyncio.sleep(END_AGAIN_S)
            await work(entry)

        log.error("sandbox %s is not gone yet: %r", entry.meta.id, error)
        self._background.spawn(later(), f"end {entry.meta.id} again")

    async def kill_all(self) -> None:
        """End every sandbox that somebody knows of."""
        results = await asyncio.gather(
            *(self.kill(sandbox.id, "shutdown") for sandbox in self.list()), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                log.error("at shutdown: %s", result)

    async def forget(self, entry: Entry, reason: EndReason) -> None:
        """Clean up after a sandbox whose agent is gone since before this supervisor."""
        async with entry.lock:
            await self._end(entry, reason)

    def directory_of(self, sandbox_id: str) -> Path:
        return self._data.sandboxes / sandbox_id

    async def _end(self, entry: Entry, reason: EndReason) -> None:
        entry.ended = reason
        try:
            await self._remove(entry)
        except BaseException:
            entry.ended = None  # it is still there, and can be killed again
            raise
        log.info("ended %s reason=%s", entry.meta.id, reason)
        self._events.publish("ended", entry.meta.sandbox(ended=reason, pid=0), reason)

    @contextlib.asynccontextmanager
    async def ending(self, entry: Entry) -> AsyncIterator[None]:
        """Around what is done with a sandbox (locked) that ends for good; it is gone afterwards, come what may."""
        entry.ended = "killed"
        entry.unfollow()
        try:
            yield
        finally:
            await self._end(entry, "killed")

    async def _remove(self, entry: Entry) -> None:
        meta = entry.meta
        entry.unfollow()
        if meta.slot >= 0 and meta.tier == self._driver.name:  # of another tier there are files only
            await self._driver.stop(entry.plan, meta.started)
            await self._driver.destroy(entry.plan)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(meta.socket)
        self.trash.take(entry.directory)
        self._entries.pop(meta.id, None)
        if meta.copies:
            self.snapshots.collect()

    def check_room(self) -> None:
        """Raises no_space when nothing more may run here."""
        check_disk(self._data.root)

    def tell(self, entry: Entry, what: str) -> Sandbox:
        """Everybody what has become of it."""
        log.info("%s %s", what, entry.meta.id)
        sandbox = entry.meta.sandbox()
        self._events.publish("changed", sandbox, what)
        self.deadline_changed.set()
        return sandbox
