"""What a network policy says: how entries are read, which win, and what is refused with which words."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from sandpty.isolation.firewall import policy_chains
from sandpty.wire.network_rules import (
    ALL_TRAFFIC,
    ENTRIES_MAX,
    NEEDS_DENY_ALL,
    RuleError,
    Rules,
    is_allowed_name,
    is_open,
    name_servers,
    parse,
)

EGRESS = ("spab12x", IPv4Address("10.200.31.161"))
ALL = "0.0.0.0/0"


def test_nothing_said_restricts_nothing() -> None:
    """An allowance without a denial changes nothing, as E2B documents."""
    assert parse([], []).empty
    assert parse(["1.1.1.1"], []).empty
    assert not parse([], ["1.1.1.1"]).empty


def test_addresses_networks_and_names_may_be_mixed() -> None:
    """Host bits are cut off, duplicates and what lies within another are merged, names are put in normal form."""
    rules = parse(["1.1.1.1", "8.8.8.9/24", "8.8.8.8", "Example.COM.", "*.Foo.bar", "example.com"], [ALL])
    assert rules.allowed == (IPv4Network("1.1.1.1/32"), IPv4Network("8.8.8.0/24"))
    assert rules.names == ("example.com", "*.foo.bar")
    assert rules.denies_all


def test_no_internet_is_everything_denied() -> None:
    """allow_internet_access false and denyOut 0.0.0.0/0 are the same; so names need no other denial then."""
    assert parse([], [], internet=False) == parse([], [ALL])
    assert parse(["example.com"], [], internet=False).names == ("example.com",)
    assert parse(["example.com"], ["0.0.0.0/1", "128.0.0.0/1"]).denied == (ALL_TRAFFIC,)


@pytest.mark.parametrize(
    ("allow", "deny", "words"),
    [
        (["example.com"], [], NEEDS_DENY_ALL),
        (["example.com"], ["1.1.1.1"], NEEDS_DENY_ALL),
        ([], ["example.com"], "invalid denied CIDR example.com"),
        (["1.2.3"], [ALL], "'1.2.3' is not a valid CIDR, IP, or domain"),
        (["1.2.3.4/33"], [], "'1.2.3.4/33' is not a valid CIDR, IP, or domain"),
        ([], ["300.1.1.1"], "'300.1.1.1' is not a valid CIDR, IP, or domain"),
        (["*"], [ALL], "'\\*' is not a valid"),
        (["*.*.com"], [ALL], "not a valid"),
        (["a.*.com"], [ALL], "not a valid"),
        (["localhost"], [ALL], "not a valid"),
        (["exa mple.com"], [ALL], "not a valid"),
        (["example.com;drop"], [ALL], "not a valid"),
        (["-a.com"], [ALL], "not a valid"),
        (["a" * 64 + ".com"], [ALL], "not a valid"),
        ([".".join(["a" * 60] * 5)], [ALL], "not a valid"),
        (["bücher.de"], [ALL], "punycode"),
        (["2001:db8::1"], [ALL], "no IPv6"),
        (["example.com:443"], [ALL], "not a valid"),
        (["1.1.1.1"] * (ENTRIES_MAX + 1), [], "the most"),
        ([""], [ALL], "not a valid"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(allow: list[str], deny: list[str], words: str) -> None:
    """In E2B's words where it has some."""
    with pytest.raises(RuleError, match=words):
        parse(allow, deny)


def test_ipv6_may_be_denied() -> None:
    """It is not there anyway."""
    assert parse([], ["::/0", "1.1.1.1"]).denied == (IPv4Network("1.1.1.1/32"),)


def test_a_wildcard_is_every_name_below_and_not_the_name_itself() -> None:
    """At any depth."""
    patterns = ("example.com", "*.wild.org")
    assert is_allowed_name("example.com", patterns)
    assert is_allowed_name("a.wild.org", patterns)
    assert is_allowed_name("a.b.wild.org", patterns)
    for name in ("wild.org", "www.example.com", "notexample.com", "example.com.evil.org", "a.wild.org.evil", "org", ""):
        assert not is_allowed_name(name, patterns), name
    assert not is_allowed_name("*.wild.org", ("*.wild.org",))


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "172.31.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "224.0.0.1"],
)
def test_some_addresses_are_never_open(address: str) -> None:
    """The host, its networks, other sandboxes, metadata."""
    assert not is_open(IPv4Address(address))
    assert is_open(IPv4Address("1.1.1.1"))


def test_name_servers_are_ipv4_addresses() -> None:
    """At most ten, as with E2B."""
    assert name_servers(["1.1.1.1"]) == (IPv4Address("1.1.1.1"),)
    for bad in (["dns.google"], ["::1"], ["1.1.1.1"] * 11):
        with pytest.raises(RuleError, match="dnsServers"):
            name_servers(bad)


def test_allowed_is_asked_before_denied() -> None:
    """In both directions; and what no name can open stays denied."""
    chains = policy_chains(3, parse(["1.1.1.1"], [ALL]), EGRESS)
    out, back = chains["out_3"], chains["in_3"]
    assert out.index("ip daddr { 1.1.1.1/32 } return") < out.index(
        "ip daddr { 0.0.0.0/0 } reject with icmpx type admin-prohibited"
    )
    assert back == ["ip saddr { 1.1.1.1/32 } return", "ip saddr { 0.0.0.0/0 } drop"]
    assert chains["to_3"] == []


def test_with_names_dns_and_tcp_go_to_the_egress_process() -> None:
    """All of DNS; TCP unless its address is allowed or never open."""
    chain = policy_chains(3, parse(["1.1.1.1", "example.com"], [ALL]), EGRESS)["to_3"]
    assert "th dport 53 dnat ip to 10.200.31.161:53" in chain[0]
    assert chain[-1] == "meta l4proto tcp dnat ip to 10.200.31.161:1"
    assert chain.index("ip daddr { 1.1.1.1/32 } return") == 2


def test_rules_without_denial_make_no_chain_that_denies() -> None:
    """Only the limit on the egress process is left, which nothing reaches."""
    chains = policy_chains(3, Rules(), EGRESS)
    assert chains["in_3"] == chains["to_3"] == []
    assert not any("reject" in rule for rule in chains["out_3"])
