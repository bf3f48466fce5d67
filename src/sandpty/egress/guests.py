"""Which sandbox may reach which names, and what is open on its behalf."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sandpty import config
from sandpty.wire.network_rules import NAME_CHARACTERS_MAX, is_allowed_name
from sandpty.wire.verbs import GuestNames

_NAME = re.compile(r"([a-z0-9_-]{1,63}\.)+[a-z0-9_-]{1,63}")  # what else stands in a Host is not for a resolver


class Open:
    """A connection on behalf of a sandbox. `name`: whose server it goes to, "" while that is not known."""

    def __init__(self, cut: Callable[[], None]) -> None:
        self.name = ""
        self.cut = cut


class Guest:
    """One sandbox, by its address."""

    def __init__(self, rules: GuestNames) -> None:
        self.address = rules.address
        self.pending = 0  # questions that wait for a resolver
        self._reached: dict[str, tuple[str, float]] = {}  # address -> the name it stands for, until when
        self._open: set[Open] = set()
        self._take(rules)

    def _take(self, rules: GuestNames) -> None:
        self.names = frozenset(rules.names)
        self.servers = rules.servers

    def allows(self, name: str) -> bool:
        """`name` as a client gave it, in lower case and without its final dot."""
        fits = len(name) <= NAME_CHARACTERS_MAX and _NAME.fullmatch(name) is not None
        return fits and is_allowed_name(name, self.names)

    def change(self, rules: GuestNames) -> None:
        """From now on these; what they do not allow is cut."""
        self._take(rules)
        self._reached = {address: known for address, known in self._reached.items() if self.allows(known[0])}
        for each in tuple(self._open):
            if not self.allows(each.name):
                each.cut()

    def end(self) -> None:
        self.change(GuestNames(self.address, (), ()))

    # --- addresses that names stand for ---

    def reach(self, name: str, addresses: list[str], ttl_s: float) -> None:
        """To be called before the sandbox is told of the addresses."""
        until = time.monotonic() + ttl_s + config.EGRESS_ADDRESS_GRACE_S
        for address in addresses:
            self._reached.pop(address, None)  # to the end of the order
            self._reached[address] = (name, until)
        while len(self._reached) > config.EGRESS_ADDRESSES_PER_GUEST:
            del self._reached[next(iter(self._reached))]

    def name_of(self, address: str) -> str | None:
        """An allowed name that stands for the address; None: the address is not open."""
        name, until = self._reached.get(address, ("", 0.0))
        return name if until > time.monotonic() and self.allows(name) else None

    # --- connections ---

    @property
    def full(self) -> bool:
        return len(self._open) >= config.EGRESS_CONNECTIONS_PER_GUEST

    @contextmanager
    def opening(self, cut: Callable[[], None]) -> Iterator[Open]:
        """Count a connection; `cut` is called when the rules do not allow its name any more."""
        connection = Open(cut)
        self._open.add(connection)
        try:
            yield connection
        finally:
            self._open.discard(connection)


class Guests:
    """All sandboxes that may reach names."""

    def __init__(self) -> None:
        self._guests: dict[str, Guest] = {}

    def get(self, address: str) -> Guest | None:
        return self._guests.get(address)

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(self._guests)

    def set(self, rules: GuestNames) -> None:
        guest = self._guests.get(rules.address)
        if guest is None:
            self._guests[rules.address] = Guest(rules)
        else:
            guest.change(rules)

    def forget(self, address: str) -> None:
        guest = self._guests.pop(address, None)
        if guest is not None:
            guest.end()
