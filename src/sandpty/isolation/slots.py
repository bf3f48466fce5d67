"""Slots: uid range, namespaces and network place of a sandbox, prepared before they are needed.

A slot is a number; what belongs to it follows from the number (idmap.range_of, Network.link), so that nothing but the number
has to be remembered over a restart. The slow part, namespaces and the veth pair, is made in the background by one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor

from sandpty import config
from sandpty.isolation.background import Background
from sandpty.isolation.idmap import SLOTS_MAX, range_of
from sandpty.isolation.namespaces import Namespaces, Nursery
from sandpty.isolation.network import Network
from sandpty.wire.errors import SandptyError

log = logging.getLogger(__name__)


class Slots:
    """All slots of one data directory."""

    def __init__(self, tag: str, network: Network, background: Background) -> None:
        self._tag = tag
        self._network = network
        self._background = background
        self._nursery = Nursery()
        self._thread = ThreadPoolExecutor(1, "slots")
        self._used: set[int] = set()
        self._ready: dict[int, Namespaces] = {}  # of slots that are free
        self._refilling: asyncio.Task[None] | None = None
        self._closed = False

    async def _in_thread(self, work: object, *arguments: object) -> object:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)  # type: ignore[arg-type]

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

    def taken(self, slot: int) -> None:
        """A sandbox of an earlier supervisor has this slot."""
        self._used.add(slot)

    async def namespaces(self, slot: int, internet: bool) -> Namespaces:
        """Fresh namespaces for the slot, wired; the caller closes them. Raises runtime_failed."""
        made = self._ready.pop(slot, None)
        if made is None:
            made = await self._make(slot)
        self.refill()
        if self._network.available and internet:
            try:
                await self._in_thread(self._network.allow, slot, made.network, True)
            except OSError as error:
                made.close()
                raise SandptyError("runtime_failed", f"the sandbox's network cannot be made: {error}") from error
        return made

    async def _make(self, slot: int) -> Namespaces:
        try:
            made = await self._in_thread(self._make_now, slot)
        except OSError as error:
            raise SandptyError("runtime_failed", f"namespaces cannot be made: {error}") from error
        assert isinstance(made, Namespaces)
        return made

    def _make_now(self, slot: int) -> Namespaces:
        made = self._nursery.make(range_of(self._tag, slot))
        try:
            if self._network.available:
                self._network.attach(slot, made.network)
        except BaseException:
            made.close()
            raise
        return made

    async def allow(self, slot: int, netns_fd: int, internet: bool) -> None:
        """Change a running sandbox's way out. Raises OSError."""
        if self._network.available:
            await self._in_thread(self._network.allow, slot, netns_fd, internet)

    async def unwire(self, slot: int) -> None:
        """Remove the slot's network; nothing there is fine."""
        if self._network.available:
            with contextlib.suppress(OSError):
                await self._in_thread(self._network.detach, slot)

    def release(self, slot: int) -> None:
        self._used.discard(slot)

    # --- preparing ---

    def refill(self) -> None:
        """Prepare free slots in the background until SLOTS_READY are."""
        if not self._closed and (self._refilling is None or self._refilling.done()):
            self._refilling = self._background.spawn(self._refill(), "prepare slots")

    async def _refill(self) -> None:
        while len(self._ready) < config.SLOTS_READY:
            busy = self._used | self._ready.keys()
            slot = next((number for number in range(SLOTS_MAX) if number not in busy), None)
            if slot is None:
                return
            self._used.add(slot)  # nobody may take it while it is half made
            try:
                self._ready[slot] = await self._make(slot)
            except SandptyError as error:
                log.warning("cannot prepare a slot: %s", error)
                return
            finally:
                self._used.discard(slot)

    async def close(self) -> None:
        """Give everything prepared back."""
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.wait([self._refilling])
        for slot, made in self._ready.items():
            made.close()
            await self.unwire(slot)
        self._ready.clear()
        self._nursery.close()
        self._thread.shutdown(wait=True)
