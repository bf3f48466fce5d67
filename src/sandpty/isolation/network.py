"""How sandboxes reach the internet, and what they never reach.

Each sandbox has a veth pair of its own, without a bridge: the guest end is a /32 with a default route to 169.254.1.1,
which is nobody but a static neighbour entry; the host end has a /32 route back. One nft table per data directory
masquerades what leaves and drops what is for the host itself, for private and link-local networks and for other
sandboxes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import ipaddress
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from sandpty.isolation import netlink, syscalls
from sandpty.isolation.firewall import Firewall, ruleset
from sandpty.isolation.idmap import SLOTS_MAX
from sandpty.wire.network_rules import Rules

log = logging.getLogger(__name__)

GATEWAY = IPv4Address("169.254.1.1")
GUEST_INTERFACE = "eth0"
GUEST_INDEX = 2
NAME_SERVERS_VARIABLE = "SANDPTY_NAME_SERVERS"  # for hosts whose only resolver listens on loopback
_FORWARDING_RECORD = Path("/run/sandpty-forwarding")
_POOL = IPv4Network("10.128.0.0/9")  # where the guests' addresses come from
_PREFIX = 20  # 4096 addresses per data directory
_RESOLV_CONF = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def host_routes(text: str) -> list[IPv4Network]:
    """The networks in /proc/net/route, without the default route."""
    networks = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and int(fields[7], 16):
            address = IPv4Address(int(fields[1], 16).to_bytes(4, "little"))
            mask = IPv4Address(int(fields[7], 16).to_bytes(4, "little"))
            networks.append(IPv4Network(f"{address}/{mask}", strict=False))
    return networks


def uplinks(text: str) -> list[str]:
    """The interfaces of the default routes in /proc/net/route."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return sorted({row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"})


def choose_subnet(tag: str, taken: list[IPv4Network]) -> IPv4Network:
    """A /20 for this data directory that overlaps no route of the host. Raises OSError when there is none."""
    subnets = 1 << (_PREFIX - _POOL.prefixlen)
    first = int.from_bytes(hashlib.sha256(tag.encode()).digest()[:4], "little")
    for step in range(subnets):
        base = int(_POOL.network_address) + ((first + step) % subnets) * (1 << (32 - _PREFIX))
        candidate = IPv4Network((base, _PREFIX))
        if not any(candidate.overlaps(network) for network in taken):
            return candidate
    raise OSError("every network of 10.128.0.0/9 is in use on this host")


def resolvers() -> list[IPv4Address]:
    """The DNS servers that a guest may use: SANDPTY_NAME_SERVERS, else the host's, IPv4 and not on the host itself."""
    if named := os.environ.get(NAME_SERVERS_VARIABLE):
        return [IPv4Address(word) for word in named.replace(",", " ").split()]
    for path in _RESOLV_CONF:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        found = []
        for line in lines:
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                with contextlib.suppress(ValueError):
                    address = ipaddress.ip_address(words[1])
                    if isinstance(address, IPv4Address) and not address.is_loopback:
                        found.append(address)
        if found:
            return found[:3]
    return []


@dataclass(frozen=True, slots=True)
class Link:
    """A sandbox's place in the network."""

    interface: str
    address: IPv4Address
    mac: bytes
    peer_mac: bytes


@dataclass
class Network:
    """The network of one data directory. `available` says whether sandboxes get more than loopback."""

    tag: str
    state: Path  # remembers the subnet: running sandboxes keep their addresses over a restart
    available: bool = False
    detail: str = "loopback only"
    dns: list[IPv4Address] = field(default_factory=list)
    _subnet: IPv4Network | None = None
    _firewall: Firewall = field(init=False)

    def __post_init__(self) -> None:
        self._firewall = Firewall(self.tag)

    # --- what all sandboxes share ---

    def open(self) -> None:
        """Create the table. Never fails: without a network sandboxes have loopback, and `detail` says why."""
        routes = Path("/proc/thread-self/net/route").read_text(encoding="ascii")
        links = uplinks(routes)
        if not self._firewall.find():
            self.detail = "loopback only: nft is not installed (Debian: apt-get install nftables)"
        elif not links:
            self.detail = "loopback only: the host has no default route"
        else:
            try:
                self._open(routes, links)
            except (OSError, ValueError) as error:
                self.detail = f"loopback only: {error}"
        log.info("network: %s", self.detail)

    def _open(self, routes: str, links: list[str]) -> None:
        self._subnet = self._kept_subnet() or choose_subnet(self.tag, host_routes(routes))
        self.dns = resolvers()
        with _forwarding_record() as record:
            switched = [name for name in links if _forwarding(name).read_text(encoding="ascii").strip() == "0"]
            record.update(switched)
            guarded = sorted(record)
            rules = ruleset(self.tag, self._subnet, self.dns, guarded, (self.egress.interface, self.egress.address))
            self._firewall.open(rules, self._interfaces())
            self.state.write_text(f"{self._subnet}\n", encoding="ascii")
            for name in switched:
                _forwarding(name).write_text("1", encoding="ascii")
        self.available = True
        names = ", ".join(map(str, self.dns)) or "none found"
        self.detail = f"nat by {', '.join(links)} from {self._subnet}; name servers: {names}"

    def _kept_subnet(self) -> IPv4Network | None:
        try:
            return IPv4Network(self.state.read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Remove the table and switch off the forwarding that we switched on."""
        if not self.available:
            return
        self.detach(None)
        with contextlib.suppress(OSError):
            self._firewall.close()
        with contextlib.suppress(OSError), _forwarding_record() as record:
            if not self._firewall.others():
                for name in record:
                    with contextlib.suppress(OSError):
                        _forwarding(name).write_text("0", encoding="ascii")
                record.clear()
        with contextlib.suppress(FileNotFoundError):
            self.state.unlink()
        self.available = False

    def _interfaces(self) -> list[str]:
        """Those of sandboxes that an earlier supervisor left."""
        return [name for _, name in socket.if_nameindex() if name.startswith(f"sp{self.tag}n")]

    # --- one sandbox ---

    def link(self, slot: int) -> Link:
        if not 0 <= slot < SLOTS_MAX:
            raise ValueError(f"slot {slot} is out of bounds")
        return self._link(slot, f"sp{self.tag}n{slot}")

    @property
    def egress(self) -> Link:
        """The place of the egress process: after the last sandbox's."""
        return self._link(SLOTS_MAX, f"sp{self.tag}x")

    def _link(self, place: int, interface: str) -> Link:
        assert self._subnet is not None
        number = place.to_bytes(2, "big")
        head = bytes.fromhex("0253" + self.tag)
        address = self._subnet.network_address + 1 + place
        # Locally administered addresses; they are never on a wire that others share.
        return Link(interface, address, head[:2] + b"\x01" + head[3:] + number, head + number)

    def _of(self, slot: int | None) -> Link:
        return self.egress if slot is None else self.link(slot)

    def attach(self, slot: int | None, netns_fd: int) -> None:
        """Make the pair; the guest end is up and addressed, but nothing leads out yet. Raises OSError.

        slot None: of the egress process.
        """
        link = self._of(slot)
        self.detach(slot)  # of a sandbox that a crash left behind
        pair = netlink.new_veth(
            link.interface,
            link.mac,
            peer=GUEST_INTERFACE,
            peer_mac=link.peer_mac,
            peer_index=GUEST_INDEX,
            netns_fd=netns_fd,
        )
        netlink.request([pair])
        for name, value in (("ipv6", "disable_ipv6=1"), ("ipv4", "rp_filter=1"), ("ipv4", "forwarding=1")):
            key, _, number = value.partition("=")
            with contextlib.suppress(FileNotFoundError):
                Path(f"/proc/sys/net/{name}/conf/{link.interface}/{key}").write_text(number, encoding="ascii")
        index = socket.if_nametoindex(link.interface)
        netlink.request([netlink.link_up(index), netlink.new_neighbour(index, link.address, link.peer_mac)])
        with syscalls.inside_network(netns_fd):
            netlink.request(
                [
                    netlink.new_address(GUEST_INDEX, link.address),
                    netlink.link_up(GUEST_INDEX),
                    netlink.new_neighbour(GUEST_INDEX, GATEWAY, link.mac),
                    netlink.new_route(GUEST_INDEX, GATEWAY),
                ]
            )

    def allow(self, slot: int | None, netns_fd: int, internet: bool) -> None:
        """Open or close the way out, both ways. The guest has no right to change its routes."""
        link = self._of(slot)
        index = socket.if_nametoindex(link.interface)
        make = netlink.new_route if internet else netlink.delete_route
        netlink.request([make(index, link.address)], ignore=() if internet else netlink.GONE)
        with syscalls.inside_network(netns_fd):
            netlink.request([make(GUEST_INDEX, None, GATEWAY)], ignore=() if internet else netlink.GONE)

    def restrict(self, slot: int, rules: Rules) -> None:
        """From now on only what the rules allow, also for connections that exist. Raises OSError."""
        interface = self.link(slot).interface
        if rules.empty:
            self._firewall.free(slot, interface)
        else:
            self._firewall.restrict(slot, interface, rules, (self.egress.interface, self.egress.address))

    def detach(self, slot: int | None) -> None:
        """Remove the pair, and then its rules; nothing there is fine."""
        name = self._of(slot).interface
        if _interface_exists(name):
            netlink.request([netlink.delete_link(name)], ignore=netlink.GONE)
        if slot is not None:
            self._firewall.free(slot, name)

    # --- the egress process ---

    def wire_egress(self, pid: int) -> None:
        """Join its network namespace to ours, with a way out. Raises OSError."""
        netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(netns).st_ino == os.stat("/proc/thread-self/ns/net").st_ino:
                raise OSError("the egress process is in our own network")
            self.attach(None, netns)
            self.allow(None, netns, True)
        finally:
            os.close(netns)

    def egress_wired(self) -> bool:
        return self.available and _interface_exists(self.egress.interface)


def _interface_exists(name: str) -> bool:
    # Not by /sys: it shows the network namespace that it was mounted in, which may not be ours.
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _forwarding(interface: str) -> Path:
    return Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding")


@contextlib.contextmanager
def _forwarding_record() -> Iterator[set[str]]:
    """Interfaces on which forwarding was off before any of us: the last supervisor switches it off again. Locked."""
    here = str(os.stat("/proc/thread-self/ns/net").st_ino)  # of this network namespace only
    with open(_FORWARDING_RECORD, "a+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        lines = [line.split() for line in file.read().splitlines()]
        record = {line[1] for line in lines if line[0] == here}
        yield record
        file.truncate(0)
        others = [f"{line[0]} {line[1]}\n" for line in lines if line[0] != here]
        file.write("".join([*others, *(f"{here} {name}\n" for name in sorted(record))]))
