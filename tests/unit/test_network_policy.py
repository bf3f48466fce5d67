"""What of a network policy is secret, what is shown of it, and what may not be in it."""

from __future__ import annotations

import pytest

from sandpty.wire.network_policy import (
    HIDDEN,
    EgressProxy,
    NetworkPolicy,
    ProxyTls,
    checked,
    filled,
    headers_of,
    hidden,
    revealed,
    secrets_in,
)
from sandpty.wire.network_rules import RuleError

POLICY = NetworkPolicy(
    headers={"good.test": {"X-Key": "t0p"}},
    proxy=EgressProxy(address="proxy.test:1080", username="me", password="pa55", tls=ProxyTls(ca_cert="PEM")),
)


def test_what_is_shown_can_be_said_back() -> None:
    """It holds no secret, and said back it means what was there; for another host or proxy there was nothing."""
    shown = hidden(POLICY)
    assert not any(secret in str((shown.headers, shown.proxy, POLICY)) for secret in ("t0p", "pa55", "PEM"))
    assert revealed(shown, POLICY) == POLICY
    elsewhere = EgressProxy(address="evil.test:1080", username="me", password=HIDDEN)
    for policy in (NetworkPolicy(headers={"evil.test": {"X-Key": HIDDEN}}), NetworkPolicy(proxy=elsewhere)):
        with pytest.raises(RuleError):
            revealed(policy, POLICY)


def test_placeholders_are_the_secrets_they_name() -> None:
    """Names compare without case; what is no placeholder stays."""
    policy = NetworkPolicy(headers={"good.test": {"A": "Bearer ${e2b.secrets.Key}", "B": "${e2b.other}", "C": "$x{}"}})
    assert secrets_in(policy) == {"key"}
    assert filled(policy.headers, {"key": "v"}) == {"good.test": {"A": "Bearer v", "B": "${e2b.other}", "C": "$x{}"}}
    assert filled(policy.headers, {})["good.test"]["A"] == "Bearer "


def test_hosts_are_found_by_their_most_exact_rule() -> None:
    """Whatever the case they were written in."""
    rules = {"*.Test": {"a": "1"}, "*.good.test": {"a": "2"}, "b.good.test.": {"a": "3"}}
    headers = checked(NetworkPolicy(headers=rules)).headers
    found = [headers_of(name, headers).get("a") for name in ("x.test", "x.y.good.test", "b.good.test", "test", "other")]
    assert found == ["1", "2", "3", None, None]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "b"),
        ("X:", "b"),
        ("X\n", "b"),
        ("\u00e9", "b"),
        ("X", " b"),
        ("X", "a\0"),
        ("X", "\ud800"),
        ("X", "a" * 8193),
    ],
)
def test_what_is_no_header_is_refused(name: str, value: str) -> None:
    """And its value is not in what is said of it."""
    with pytest.raises(RuleError) as refused:
        checked(NetworkPolicy(headers={"good.test": {name: value}}))
    assert len(value) < 3 or value not in str(refused.value)
