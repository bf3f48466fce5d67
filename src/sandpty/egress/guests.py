"""What each sandbox may reach and how, and what is open on its behalf."""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from sandpty import config
from sandpty.egress.quotas import Quota, Share
from sandpty.wire.network_policy import EgressProxy, headers_of
from sandpty.wire.network_rules import NAME_CHARACTERS_MAX, is_allowed_name, is_open
from sandpty.wire.verbs import GuestRules

_NAME = re.compile(r"([a-z0-9_-]{1,63}\.)+[a-z0-9_-]{1,63}")  # what else stands in a Host is not for a resolver


class Networks:
    """A set of addresses, asked in logarithmic time."""

    def __init__(self, networks: Iterable[str]) -> None:
        merged = list(collapse_addresses(IPv4Network(text) for text in networks))
        self._first = [int(network.network_address) for network in merged]
        self._last = [int(network.broadcast_address) for network in merged]

    def __contains__(self, address: IPv4Address) -> bool:
        at = bisect_right(self._first, int(address)) - 1
        return at >= 0 and int(address) <= self._last[at]


class Open:
    """A connection on behalf of a sandbox. What it goes by: `name`, whose server it goes to, or `address`, which was
    dialled; both "" while that is not known. `cut` ends it."""

    def __init__(self, cut: Callable[[], None], *, wide: bool) -> None:
        self.name = ""
        self.address = ""
        self.cut = cut
        self.wide = wide  # whether it has full buffers


class Guest:
    """One sandbox, by its address."""

    def __init__(self, rules: GuestRules, shares: Shares) -> None:
        self.address = rules.address
        self.pending = 0  # questions that wait for a resolver
        self.connections = Quota(config.EGRESS_OWN_PER_GUEST, config.EGRESS_CONNECTIONS_PER_GUEST, shares.connections)
        self.inspected = Quota(
            config.EGRESS_INSPECTED_OWN_PER_GUEST, config.EGRESS_INSPECTED_PER_GUEST, shares.inspected
        )
        self._reached: dict[str, tuple[str, float]] = {}  # address -> the name it stands for, until when
        self._open: set[Open] = set()
        self._wide = 0
        self._leaf_second = self._leaves = 0
        self._take(rules)

    def _take(self, rules: GuestRules) -> None:
        self._rules = rules
        self.names = frozenset(rules.names)
        self.servers, self.resolvers = rules.servers, rules.resolvers
        self.proxy: EgressProxy | None = rules.proxy
        self._allowed, self._denied = Networks(rules.allowed), Networks(rules.denied)

    def allows(self, name: str) -> bool:
        """`name` as a client gave it, in lower case and without its final dot."""
        return _is_name(name) and is_allowed_name(name, self.names)

    @property
    def dials(self) -> bool:
        """Whether connections come here that no name needs to decide about: their address does."""
        return bool(self._rules.headers) or self.proxy is not None

    def opens(self, address: str) -> bool:
        """Whether the policy lets an address be dialled, whatever is said there."""
        if not self.dials or not address:
            return False
        asked = IPv4Address(address)
        return is_open(asked) and (asked in self._allowed or asked not in self._denied)

    def headers_of(self, name: str) -> dict[str, str]:
        """What requests to that host are given; {}: nothing, they are not looked into."""
        return headers_of(name, self._rules.headers) if self._rules.headers and _is_name(name) else {}

    def change(self, rules: GuestRules) -> None:
        """From now on these; what they do not allow, or would have done otherwise, is cut."""
        before = {each: self._way(each) for each in self._open}
        self._take(rules)
        self._reached = {address: known for address, known in self._reached.items() if self.allows(known[0])}
        for each, way in before.items():
            if way != self._way(each) or not self._may(each):
                each.cut()

    def _way(self, connection: Open) -> tuple[object, ...]:
        return self.proxy, bool(self.headers_of(connection.name))

    def _may(self, connection: Open) -> bool:
        if connection.name:
            return self.allows(connection.name) or bool(self.headers_of(connection.name))
        return connection.address != "" and self.opens(connection.address)

    def end(self) -> None:
        self.change(GuestRules(address=self.address))

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

    @contextmanager
    def opening(self, cut: Callable[[], None]) -> Iterator[Open]:
        """Count a connection; `cut` is called when the rules do not allow it any more."""
        connection = Open(cut, wide=self._wide < config.EGRESS_WIDE_PER_GUEST)
        self._open.add(connection)
        self._wide += connection.wide
        try:
            with self.connections.taking():
                yield connection
        finally:
            self._open.discard(connection)
            self._wide -= connection.wide

    def may_have_leaf(self) -> bool:
        """Whether another certificate may be made for it: each takes milliseconds that are everybody's."""
        second = int(time.monotonic())
        if second != self._leaf_second:
            self._leaf_second, self._leaves = second, 0
        self._leaves += 1
        return self._leaves <= config.EGRESS_LEAVES_PER_S


class Shares:
    """Of connections, and of those whose TLS ends here."""

    def __init__(self) -> None:
        self.connections = Share(config.EGRESS_CONNECTIONS_MAX)
        self.inspected = Share(config.EGRESS_INSPECTED_MAX)


class Guests:
    """All sandboxes whose traffic comes here."""

    def __init__(self) -> None:
        self._guests: dict[str, Guest] = {}
        self._shares = Shares()

    def get(self, address: str) -> Guest | None:
        return self._guests.get(address)

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(self._guests)

    def set(self, rules: GuestRules) -> None:
        guest = self._guests.get(rules.address)
        if guest is None:
            self._guests[rules.address] = Guest(rules, self._shares)
        else:
            guest.change(rules)

    def forget(self, address: str) -> None:
        guest = self._guests.pop(address, None)
        if guest is not None:
            guest.end()


def _is_name(name: str) -> bool:
    return len(name) <= NAME_CHARACTERS_MAX and _NAME.fullmatch(name) is not None
