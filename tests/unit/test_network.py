"""The pure parts of the sandbox network: routes, subnets, rules, messages."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from sandpty.isolation import netlink
from sandpty.isolation.firewall import ruleset
from sandpty.isolation.network import Network, choose_subnet, host_routes, resolvers, uplinks

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
br0\t0000800A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""
SUBNET = IPv4Network("10.200.16.0/20")
EGRESS = ("spab12x", IPv4Address("10.200.31.161"))


def test_the_hosts_routes_and_uplinks_are_read() -> None:
    """As /proc/net/route shows them."""
    assert host_routes(ROUTES) == [IPv4Network("192.0.2.0/24"), IPv4Network("10.128.0.0/16")]
    assert uplinks(ROUTES) == ["eth0"]
    assert uplinks("Iface\n") == []


def test_the_subnet_overlaps_no_route_of_the_host() -> None:
    """Whatever is taken, another is found; the same tag gets the same subnet."""
    free = choose_subnet("abcd", [])
    assert free.prefixlen == 20
    assert free == choose_subnet("abcd", [])
    assert not choose_subnet("abcd", [free]).overlaps(free)
    with pytest.raises(OSError, match="in use"):
        choose_subnet("abcd", [IPv4Network("10.0.0.0/8")])


def test_every_slot_has_its_own_interface_address_and_mac() -> None:
    """Names fit the kernel's 15 characters; macs are locally administered unicast."""
    network = Network("ab12", Path("/nonexistent"))
    network._subnet = SUBNET
    links = [network.link(slot) for slot in (0, 1, 3999)]
    assert len({link.interface for link in links}) == len({link.address for link in links}) == 3
    assert all(len(link.interface) <= 15 and link.address in SUBNET for link in links)
    macs = {mac for link in links for mac in (link.mac, link.peer_mac)}
    assert len(macs) == 6
    assert all(len(mac) == 6 and mac[0] & 3 == 2 for mac in macs)
    with pytest.raises(ValueError, match="out of bounds"):
        network.link(4000)


def test_the_rules_deny_the_host_and_private_networks() -> None:
    """Input is dropped, name servers are an exception for port 53, other sandboxes are dropped."""
    rules = ruleset("ab12", SUBNET, [IPv4Address("10.0.0.53")], [], EGRESS)
    assert 'iifname "spab12*" drop' in rules
    assert "ip daddr { 10.0.0.53 } meta l4proto { tcp, udp } th dport 53 accept" in rules
    for network in ("169.254.0.0/16", "10.0.0.0/8", "192.168.0.0/16", "172.16.0.0/12", "100.64.0.0/10", "224.0.0.0/4"):
        assert network in rules
    assert 'oifname "sp*" drop' in rules
    assert "ct direction original" not in rules
    assert rules.index("dport 53 accept") < rules.index("169.254.0.0/16")


def test_where_we_switch_forwarding_on_the_host_is_nobodys_router() -> None:
    """New connections from the uplink to elsewhere are dropped, unless the host itself forwards that port."""
    rules = ruleset("ab12", SUBNET, [], ["eth0"], EGRESS)
    assert 'iifname { "eth0" } oifname != "spab12*" ct direction original ct status & dnat == 0 drop' in rules
    assert "dport 53" not in rules


def test_configured_name_servers_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """For hosts whose only resolver listens on loopback."""
    monkeypatch.setenv("SANDPTY_NAME_SERVERS", "198.51.100.1, 198.51.100.2")
    assert resolvers() == [IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2")]


def test_netlink_messages_are_aligned_and_nested() -> None:
    """A veth request names both ends; attribute lengths count their headers."""
    kind, flags, body = netlink.new_veth(
        "spx", b"\x02" * 6, peer="eth0", peer_mac=b"\x06" * 6, peer_index=2, netns_fd=9
    )
    assert (kind, flags) == (16, 0x600)
    assert len(body) % 4 == 0
    assert b"veth" in body
    assert b"eth0\0" in body
    length, number = struct.unpack_from("=HH", body, 16)
    assert (length, number) == (4 + len("spx\0"), 3)


def test_a_refused_netlink_request_is_an_error() -> None:
    """Deleting what is not there raises, unless that is expected."""
    with pytest.raises(OSError, match="rtnetlink"):
        netlink.request([netlink.delete_link("spnothing")])
    netlink.request([netlink.delete_link("spnothing")], ignore=netlink.GONE)
