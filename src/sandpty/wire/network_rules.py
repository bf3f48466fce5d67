"""Where a sandbox may connect to: the rules of a network policy, parsed, checked and asked. Pure.

The meaning is E2B's (its OpenAPI document and its page on internet access): `allowOut` takes addresses, networks and
domain names, `denyOut` addresses and networks; what both name is allowed; what neither names is allowed;
`*.example.com` is every name below example.com and not example.com itself; naming a domain needs everything else to be
denied. Nothing that a policy says opens CLOSED.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

ENTRIES_MAX = 1000  # of one list: a policy travels in one message and is one rule of the kernel's
NAME_SERVERS_MAX = 10  # E2B's own limit
NAME_CHARACTERS_MAX = 253  # RFC 1035
ALL_TRAFFIC = IPv4Network("0.0.0.0/0")
# The host, its networks, other sandboxes, cloud metadata, multicast: never reached from a sandbox.
CLOSED = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# E2B's own words: people search for them.
NEEDS_DENY_ALL = (
    "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other "
    "traffic."
)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


class RuleError(ValueError):
    """A policy that says nothing one could hold; the message names the entry and is for the client."""


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy that was checked. `names`: lower case, no final dot; `*.` in front makes a wildcard.

    inspected: requests to some hosts are given headers. tunneled: all TCP goes through a proxy.
    """

    allowed: tuple[IPv4Network, ...] = ()
    denied: tuple[IPv4Network, ...] = ()
    names: tuple[str, ...] = ()
    inspected: bool = False
    tunneled: bool = False

    @property
    def denies_all(self) -> bool:
        return ALL_TRAFFIC in self.denied

    @property
    def turned(self) -> bool:
        """Whether any TCP goes to the egress process."""
        return bool(self.names) or self.inspected or self.tunneled

    @property
    def empty(self) -> bool:
        """Nothing is restricted: without a denial there is nothing that an allowance could change."""
        return not self.denied and not self.turned


def parse(allow_out: Sequence[str], deny_out: Sequence[str], *, internet: bool = True) -> Rules:
    """Check the lists of a policy. `internet` False denies everything that is not allowed. Raises RuleError."""
    for what, entries in (("allow", allow_out), ("deny", deny_out)):
        if len(entries) > ENTRIES_MAX:
            raise RuleError(f"{what} out has {len(entries)} entries; {ENTRIES_MAX} are the most")
    denied = [] if internet else [ALL_TRAFFIC]
    for entry in deny_out:
        network = _network(entry, "deny")
        if network is None:
            raise RuleError(f"invalid denied CIDR {entry[:NAME_CHARACTERS_MAX]}")
        if isinstance(network, IPv4Network):  # sandboxes have no IPv6: it is denied already
            denied.append(network)
    allowed, names = [], []
    for entry in allow_out:
        network = _network(entry, "allow")
        if network is None:
            names.append(name_pattern(entry))
        elif isinstance(network, IPv4Network):
            allowed.append(network)
        else:
            raise RuleError(f"invalid allow out entry: {entry[:64]}: sandboxes have no IPv6")
    rules = Rules(_collapsed(allowed), _collapsed(denied), tuple(dict.fromkeys(names)))
    if rules.names and not rules.denies_all:
        raise RuleError(NEEDS_DENY_ALL)
    return rules


def _collapsed(networks: Iterable[IPv4Network]) -> tuple[IPv4Network, ...]:
    return tuple(ipaddress.collapse_addresses(networks))


def _network(entry: str, what: str) -> IPv4Network | ipaddress.IPv6Network | None:
    """An address or network; None for what can only be a name. Host bits are cut off, as E2B does."""
    if not ("/" in entry or ":" in entry or entry.replace(".", "").isdigit()):
        return None
    try:
        return ipaddress.ip_network(entry.strip(), strict=False)
    except ValueError:
        raise RuleError(f"invalid {what} out entry: {entry[:64]!r} is not a valid CIDR, IP, or domain") from None


def ipv4(text: str) -> IPv4Address | None:
    """None: it is no such address."""
    try:
        return IPv4Address(text)
    except ValueError:
        return None


def name_pattern(entry: str, what: str = "allow out entry", labels_min: int = 2) -> str:
    """`example.com` or `*.example.com`, in normal form. labels_min: without the wildcard. Raises RuleError."""
    name = entry.strip().lower().removesuffix(".")
    labels = name.removeprefix("*.").split(".")
    fits = len(labels) >= labels_min and len(name) <= NAME_CHARACTERS_MAX and not labels[-1].isdigit()
    if not (fits and all(_LABEL.fullmatch(label) for label in labels)):
        hint = "; international names are given in punycode" if not entry.isascii() else ""
        kinds = "CIDR, IP, or domain" if what == "allow out entry" else "domain"
        text = f"invalid {what}: {entry[:NAME_CHARACTERS_MAX]!r} is not a valid {kinds}{hint}"
        raise RuleError(text)
    return name


def name_servers(entries: Sequence[str]) -> tuple[IPv4Address, ...]:
    """The `dnsServers` of a policy. Raises RuleError."""
    if len(entries) > NAME_SERVERS_MAX:
        raise RuleError(f"dnsServers has {len(entries)} entries; {NAME_SERVERS_MAX} are the most")
    try:
        return tuple(IPv4Address(entry) for entry in entries)
    except ValueError:
        raise RuleError("invalid dnsServers entry: each must be an IPv4 address") from None


def is_allowed_name(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name (in normal form) is one of the patterns or lies below a wildcard."""
    known = patterns if isinstance(patterns, frozenset | set) else frozenset(patterns)
    if name in known:
        return not name.startswith("*")
    rest = name
    while "." in rest:
        rest = rest.partition(".")[2]
        if f"*.{rest}" in known:
            return True
    return False


def is_open(address: IPv4Address) -> bool:
    """Whether an address may be reached from a sandbox at all."""
    return not any(address in network for network in CLOSED)
