"""Slots: uid range, namespaces and network place of a sandbox, prepared before they are needed.

A slot is a number; what belongs to it follows from the number (idmap.range_of, Network.link), so that nothing but the
number has to be remembered over a restart. The slow part, namespaces and the veth pair, is made in the background by
one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from sandpty import config
from sandpty.isolation.background import Background
from sandpty.isolation.cgroup import Cgroups
from sandpty.isolation.failures import failure
from sandpty.isolation.idmap import SLOTS_MAX, range_of
from sandpty.isolation.namespaces import Launcher, Namespaces, Nursery
from sandpty.isolation.network import Network
from sandpty.isolation.spares import Spare, Spares
from sandpty.wire.errors import SandptyError
from sandpty.wire.network_rules import Rules
from sandpty.wire.verbs import Limits

log = logging.getLogger(__name__)
T = TypeVar("T")
REFILL_DELAY_S = 0.02  # while others are ready: the shell of who has just taken one needs the processor more


@dataclass(slots=True)
class Prepared:
    """Everything a start needs; `close` it afterwards. No launcher: the runtime makes the groups itself."""

    namespaces: Namespaces
    launcher: Launcher | None = None
    spare: Spare | None = None

    def close(self) -> None:
        self.namespaces.close()
        if self.spare is not None:
            self.spare.close()
        if self.launcher is not None:
            self.launcher.close()


def group_of(slot: int) -> str:
    """The name of the slot's control groups."""
    return f"slot-{slot}"


class Slots:
    """All slots of one data directory. With `launchers` the control groups are joined in advance."""

    def __init__(
        self,
        tag: str,
        *,
        network: Network,
        cgroups: Cgroups,
        spares: Spares,
        background: Background,
        launchers: bool,
    ) -> None:
        self._tag = tag
        self._network = network
        self._cgroups = cgroups
        self._spares = spares
        self._background = background
        self._launchers = launchers
        self._nursery = Nursery()
        self._thread = ThreadPoolExecutor(1, "slots")
        self._used: set[int] = set()
        self._ready: dict[int, Prepared] = {}  # of slots that are free
        self._refilling: asyncio.Task[None] | None = None
        self._closed = False

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, functools.partial(work, *arguments))

    def reserve(self) -> int:
        """A free slot, one with everything prepared if there is one. Raises `limit`."""
        for slot in self._ready:
            if slot not in self._used:
                self._used.add(slot)
                return slot
        for slot in range(SLOTS_MAX):
            if slot not in self._used:
                self._used.add(slot)
                return slot
        raise SandptyError("limit", f"this host holds {SLOTS_MAX} sandboxes at most")

    @property
    def used(self) -> frozenset[int]:
        return frozenset(self._used)

    def taken(self, slot: int) -> None:
        """A sandbox of an earlier supervisor has this slot."""
        self._used.add(slot)

    async def prepared(self, slot: int, way_out: bool, rules: Rules) -> Prepared:
        """Fresh namespaces and a launcher for the slot, wired; the caller closes it. Raises runtime_failed."""
        made = self._ready.pop(slot, None)
        if made is not None and made.launcher is not None and not made.launcher.alive:
            made.close()  # somebody killed it
            made = None
        if made is None:
            made = await self._make(slot, spare=False)
        if self._network.available and way_out:
            try:
                if not rules.empty:
                    await self._in_thread(self._network.restrict, slot, rules)
                # Not in the thread, where others are being prepared: two messages take a quarter of a millisecond.
                self._network.allow(slot, made.namespaces.network, True)
            except (OSError, asyncio.CancelledError) as error:
                made.close()
                if isinstance(error, asyncio.CancelledError):
                    raise
                raise failure("the sandbox's network cannot be made", error) from error
        return made

    async def _make(self, slot: int, *, spare: bool) -> Prepared:
        try:
            return await self._in_thread(self._make_now, slot, spare)
        except OSError as error:
            raise failure("namespaces, groups or disk cannot be made", error) from error

    def _make_now(self, slot: int, spare: bool) -> Prepared:
        made = Prepared(self._nursery.make(range_of(self._tag, slot)))
        try:
            if spare:
                made.spare = self._spares.make(slot)
            if self._network.available:
                self._network.attach(slot, made.namespaces.network)
            if self._launchers:
                self._cgroups.create(group_of(slot), Limits())
                made.launcher = self._nursery.launcher()
                self._cgroups.join(group_of(slot), made.launcher.pid)
        except BaseException:
            made.close()
            raise
        return made

    def shift(self, slot: int, base: int) -> int:
        """A user namespace by which the slot owns what the range at `base` owns; the caller closes it. OSError."""
        return self._nursery.shift(base, range_of(self._tag, slot))

    async def allow(self, slot: int, netns_fd: int, way_out: bool, rules: Rules) -> None:
        """Change a running sandbox's way out. Raises OSError."""
        if self._network.available:
            await self._in_thread(self._network.restrict, slot, rules)
            await self._in_thread(self._network.allow, slot, netns_fd, way_out)

    async def restrict(self, slot: int, rules: Rules) -> None:
        """Only the rules, of a sandbox whose way out is there already. Raises OSError."""
        if self._network.available:
            await self._in_thread(self._network.restrict, slot, rules)

    async def give_back(self, slot: int) -> None:
        """Remove the slot's network, then let others have it. Nothing there is fine."""
        try:
            if self._network.available:
                with contextlib.suppress(OSError):
                    await self._in_thread(self._network.detach, slot)
        finally:
            self._used.discard(slot)

    # --- preparing ---

    def refill(self) -> None:
        """Prepare free slots in the background until SLOTS_READY are."""
        if not self._closed and (self._refilling is None or self._refilling.done()):
            self._refilling = self._background.spawn(self._refill(), "prepare slots")

    async def _refill(self) -> None:
        if self._ready:
            await asyncio.sleep(REFILL_DELAY_S)
        while not self._closed and len(self._ready) < config.SLOTS_READY:
            busy = self._used | self._ready.keys()
            slot = next((number for number in range(SLOTS_MAX) if number not in busy), None)
            if slot is None:
                return
            self._used.add(slot)  # nobody may take it while it is half made
            try:
                self._ready[slot] = await self._make(slot, spare=True)
            except SandptyError as error:
                log.warning("cannot prepare a slot: %s", error)
                return
            finally:
                self._used.discard(slot)

    async def close(self) -> None:
        """Give everything prepared back."""
        self._closed = True
        if self._refilling is not None:
            await asyncio.wait([self._refilling])  # not cancelled: what its thread makes must be given back too
        for slot, made in self._ready.items():
            launcher = made.launcher
            made.close()
            await self.give_back(slot)
            if launcher is not None:
                self._cgroups.kill(group_of(slot))
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(self._cgroups.remove, group_of(slot))
        self._ready.clear()
        self._nursery.close()
        self._thread.shutdown(wait=True)
