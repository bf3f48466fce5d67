"""The kernel's rules for the traffic of sandboxes: what holds for all, and each sandbox's own policy.

One nft table per data directory. What all share is replaced in one transaction, so that there is no moment without
rules; a sandbox's own policy is three chains, found by the name of its interface, which survive that:

| chain | sees | says |
|---|---|---|
| `out_N` | what the sandbox sends on | rejects what is denied and not allowed |
| `in_N` | what comes back | drops the same: a connection ends with the policy that allowed it |
| `to_N` | a connection's first packet | what of DNS and TCP goes to the egress process (egress.py) |

Both `out_N` and `in_N` are asked for every packet: nothing is remembered of an earlier policy.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from sandpty import config
from sandpty.wire.network_rules import CLOSED, Rules

EGRESS_HTTP_PORT, EGRESS_TLS_PORT, EGRESS_OTHER_PORT, NAMES_PORT = 80, 443, 1, 53
_NFT_TIMEOUT_S = 10.0
_MAPS = ("policies", "answers", "redirects")
_CHAINS = ("out", "in", "to")  # of one sandbox, in the order of the maps that lead there


def _addresses(networks: Sequence[IPv4Network | IPv4Address]) -> str:
    return f"{{ {', '.join(map(str, networks))} }}"


def ruleset(
    tag: str, subnet: IPv4Network, dns: list[IPv4Address], guarded: list[str], egress: tuple[str, IPv4Address]
) -> str:
    """The nft table of one data directory, to be loaded over an earlier one; sandboxes' own policies stay.

    guarded: uplinks on which we switched forwarding on; there the host must not become its neighbours' router.
    egress: interface and address of the egress process.
    """
    ours = f'"sp{tag}*"'
    link, address = egress
    names = f"ip daddr {_addresses(dns)} meta l4proto {{ tcp, udp }} th dport 53 accept" if dns else ""
    links = ", ".join(f'"{name}"' for name in guarded)
    guard = f"iifname {{ {links} }} oifname != {ours} ct direction original ct status & dnat == 0 drop" if links else ""
    maps = "\n".join(f"  map {name} {{ type ifname : verdict; }}" for name in _MAPS)
    return f"""
table inet sandpty_{tag} {{
{maps}
  chain input {{ type filter hook input priority -10; policy accept; }}
  chain guest {{ }}
  chain reply {{ }}
  chain forward {{ type filter hook forward priority -10; policy accept; }}
  chain prerouting {{ type nat hook prerouting priority -100; policy accept; }}
  chain postrouting {{ type nat hook postrouting priority 100; policy accept; }}
}}
flush chain inet sandpty_{tag} input
flush chain inet sandpty_{tag} guest
flush chain inet sandpty_{tag} reply
flush chain inet sandpty_{tag} forward
flush chain inet sandpty_{tag} prerouting
flush chain inet sandpty_{tag} postrouting
table inet sandpty_{tag} {{
  chain input {{
    iifname {ours} drop
  }}
  chain guest {{
    meta nfproto ipv6 drop
    ip saddr != {subnet} drop
    fib saddr . iif oif missing drop
    iifname "{link}" oifname {ours} ct state established ct direction reply accept
    iifname vmap @policies
    oifname "{link}" ip daddr {address} ct status dnat accept
    oifname "sp*" drop
    {names}
    ip daddr {_addresses(CLOSED)} drop
    accept
  }}
  chain reply {{
    oifname vmap @answers
    ct state established,related accept
    drop
  }}
  chain forward {{
    iifname {ours} jump guest
    oifname {ours} jump reply
    {guard}
  }}
  chain prerouting {{
    iifname vmap @redirects
  }}
  chain postrouting {{
    oifname "sp*" accept
    ip saddr {subnet} masquerade
  }}
}}
"""


def policy_chains(slot: int, rules: Rules, egress: tuple[str, IPv4Address]) -> dict[str, list[str]]:
    """The rules of one sandbox's chains, by the chains' names."""
    link, address = egress
    allowed = _addresses(rules.allowed)
    rate = f"{config.EGRESS_NEW_PER_S}/second burst {config.EGRESS_NEW_PER_S} packets"
    out = [
        # Before anything else costs us time: a guest may ask as often as it likes.
        f'oifname "{link}" meta l4proto udp limit rate over {rate} drop',
        f'oifname "{link}" meta l4proto tcp ct state new limit rate over {rate} drop',
        f'oifname "{link}" return',
    ]
    back = []
    if turned := _turned_by_address(rules):
        # What was connected before it was turned. The networks that never open hold our name servers, perhaps.
        out.append(f"ip daddr != {_addresses(CLOSED)} {turned.format('dport')} reject with tcp reset")
        back.append(f"ip saddr != {_addresses(CLOSED)} {turned.format('sport')} drop")
    if rules.allowed:
        out.append(f"ip daddr {allowed} return")
        back.append(f"ip saddr {allowed} return")
    if rules.denied:
        denied = _addresses(rules.denied)
        out += [
            f"ip daddr {denied} ip protocol tcp reject with tcp reset",
            f"ip daddr {denied} reject with icmpx type admin-prohibited",
        ]
        back.append(f"ip saddr {denied} drop")
    return {f"out_{slot}": out, f"in_{slot}": back, f"to_{slot}": _first_packets(rules, address)}


def _turned_by_address(rules: Rules) -> str:
    """TCP that goes to the egress process though its address is open: to web servers, or all; "" for none."""
    if rules.tunneled:
        return "ip protocol tcp"
    return f"tcp {{}} {{{{ {EGRESS_HTTP_PORT}, {EGRESS_TLS_PORT} }}}}" if rules.inspected else ""


def _first_packets(rules: Rules, address: IPv4Address) -> list[str]:
    if not rules.turned:
        return []
    web = [f"tcp dport {port} dnat ip to {address}:{port}" for port in (EGRESS_HTTP_PORT, EGRESS_TLS_PORT)]
    rest = f"meta l4proto tcp dnat ip to {address}:{EGRESS_OTHER_PORT}"
    by_address = [*web, rest] if rules.tunneled else web if rules.inspected else []
    first = []
    if rules.names:
        first.append(f"meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {address}:{NAMES_PORT}")
    first.append(f"ip daddr {_addresses(CLOSED)} return")
    if rules.allowed:
        allowed = f"ip daddr {_addresses(rules.allowed)}"
        first += [f"{allowed} {rule}" for rule in (*by_address, "return")]
    if rules.names:  # then all else is denied
        return [*first, *web, rest]
    if rules.denied:
        first.append(f"ip daddr {_addresses(rules.denied)} return")
    return [*first, *by_address]


class Firewall:
    """The table of one data directory. Methods raise OSError, and have changed nothing then."""

    def __init__(self, tag: str) -> None:
        self._table = f"inet sandpty_{tag}"
        self._tag = tag
        self._nft = ""
        self._restricted: set[str] = set()  # interfaces that have a policy

    def find(self) -> bool:
        """Whether nft is on this machine."""
        self._nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin") or ""
        return bool(self._nft)

    def open(self, rules: str, interfaces: Sequence[str]) -> None:
        """Load what all share; the policies that an earlier supervisor set go on holding.

        interfaces: those of sandboxes that exist. When the earlier table cannot be kept (it is of another version),
        they are cut off until their policies are set again.
        """
        self._restricted = self._kept()
        try:
            self._load(rules)
        except OSError:
            blocked = ", ".join(f'"{name}" : drop' for name in interfaces)
            shut = [f"add element {self._table} {name} {{ {blocked} }}" for name in _MAPS[:2] if blocked]
            self._load("\n".join([f"table {self._table}", f"delete table {self._table}", rules, *shut]))
            self._restricted = set()

    def _kept(self) -> set[str]:
        done = self._run(["-j", "list", "map", *self._table.split(), _MAPS[0]])
        if done.returncode != 0:
            return set()
        objects = json.loads(done.stdout).get("nftables", [])
        elements = [element for each in objects for element in each.get("map", {}).get("elem", [])]
        return {str(element[0]) for element in elements}

    def restrict(self, slot: int, interface: str, rules: Rules, egress: tuple[str, IPv4Address]) -> None:
        """From now on this policy holds, whole and at once."""
        lines = []
        for chain, chain_rules in policy_chains(slot, rules, egress).items():
            lines += [f"add chain {self._table} {chain}", f"flush chain {self._table} {chain}"]
            lines += [f"add rule {self._table} {chain} {rule}" for rule in chain_rules]
        if interface not in self._restricted:
            lines += [
                f'add element {self._table} {name} {{ "{interface}" : jump {chain}_{slot} }}'
                for name, chain in zip(_MAPS, _CHAINS, strict=True)
            ]
        self._load("\n".join(lines))
        self._restricted.add(interface)

    def free(self, slot: int, interface: str) -> None:
        """Remove the policy; nothing there is fine."""
        if interface not in self._restricted:
            return
        lines = [f'delete element {self._table} {name} {{ "{interface}" }}' for name in _MAPS]
        lines += [f"delete chain {self._table} {chain}_{slot}" for chain in _CHAINS]
        self._load("\n".join(lines))
        self._restricted.discard(interface)

    def close(self) -> None:
        self._load(f"table {self._table}\ndelete table {self._table}\n")
        self._restricted = set()

    def others(self) -> bool:
        """Whether another data directory has a table; True when that cannot be known."""
        try:
            done = self._run(["list", "tables"])
        except OSError:
            return True
        return "sandpty_" in done.stdout

    def _load(self, rules: str) -> None:
        done = self._run(["-f", "-"], rules)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            raise OSError(f"nft refuses the rules: {lines[0] if lines else done.returncode}")

    def _run(self, arguments: list[str], words: str | None = None) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self._nft, *arguments],
                input=words,
                text=True,
                capture_output=True,
                timeout=_NFT_TIMEOUT_S,
                check=False,
                stdin=subprocess.DEVNULL if words is None else None,
            )
        except subprocess.SubprocessError as error:
            raise OSError(f"nft does not answer: {error}") from error
