"""E2B's network configuration: what a create may say of it, its update at run time, how info shows it.

Where the sandbox may connect to is the supervisor's NetworkPolicy; who may connect to its ports (allowPublicTraffic,
maskRequestHost, httpsPorts) is the ports' PortPolicy, which an update leaves alone.
"""

from __future__ import annotations

from aiohttp import web

from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.e2b.control_models import (
    EgressProxy,
    Identity,
    NetworkConfig,
    NetworkRule,
    NetworkUpdate,
    ProxyTls,
    Transform,
)
from sandpty.server.dialects.e2b.errors import HttpError, bad_request
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.requests import read_json
from sandpty.server.ports import policy as ports
from sandpty.wire import network_policy, network_rules
from sandpty.wire.network_policy import NetworkPolicy
from sandpty.wire.verbs import Sandbox

_TOKEN = "${e2b.identity.tokens."  # with the name of an `iam` token and a brace: one is put in by E2B's own proxy
_NO_TOKENS = "iam tokens are not supported by this server: it is no identity provider. Use a secret"


def policy_of(asked: NetworkConfig | NetworkUpdate | None, internet: bool) -> NetworkPolicy:
    """Where the sandbox may connect to. Raises HttpError 400 for entries that mean nothing, 501 for `iam` tokens."""
    if asked is None:
        return NetworkPolicy()
    allow_out, deny_out = asked.allow_out or [], asked.deny_out or []
    servers = asked.dns_servers
    try:
        network_rules.parse(allow_out, deny_out, internet=internet)
        network_rules.name_servers(servers or [])
        return network_policy.checked(
            NetworkPolicy(
                allow_out=tuple(allow_out),
                deny_out=tuple(deny_out),
                dns_servers=None if servers is None else tuple(servers),
                headers={host: _headers(host, rules) for host, rules in (asked.rules or {}).items()},
                proxy=_proxy(asked.egress_proxy),
            )
        )
    except network_rules.RuleError as error:
        raise bad_request(str(error)) from error


def _headers(host: str, rules: list[NetworkRule]) -> dict[str, str]:
    """One after the other: what a later rule sets counts. Raises RuleError."""
    headers: dict[str, tuple[str, str]] = {}  # by the name in lower case
    for rule in rules:
        given = (rule.transform.headers if rule.transform is not None else None) or {}
        if len({name.lower() for name in given}) < len(given):
            raise network_rules.RuleError(f"rules of {host[:80]!r}: two headers differ only in case")
        if any(_TOKEN in value for value in given.values()):
            raise HttpError(501, _NO_TOKENS)  # rather than send the placeholder
        headers |= {name.lower(): (name, value) for name, value in given.items()}
    return dict(headers.values())


def _proxy(asked: EgressProxy | None) -> network_policy.EgressProxy | None:
    if asked is None:
        return None
    tls = None
    if asked.tls is not None and asked.tls.enabled:
        tls = network_policy.ProxyTls(server_name=asked.tls.server_name or "", ca_cert=asked.tls.ca_cert or "")
    return network_policy.EgressProxy(
        address=asked.address, username=asked.username or "", password=asked.password or "", tls=tls
    )


def check_identity(asked: Identity | None) -> None:
    """Raises HttpError 501: nobody beyond this server would believe its tokens."""
    if asked is not None and asked.tokens:
        raise HttpError(501, _NO_TOKENS)


def shown(sandbox: Sandbox) -> NetworkConfig:
    """`network` of info. Values of headers are hidden; said back in an update, they stay what they are."""
    outward, inward = sandbox.network, ports.policy_of(sandbox)
    return NetworkConfig(
        allow_out=list(outward.allow_out) or None,
        deny_out=list(outward.deny_out) or None,
        dns_servers=None if outward.dns_servers is None else list(outward.dns_servers),
        egress_proxy=_shown_proxy(outward.proxy),
        rules={
            host: [NetworkRule(transform=Transform(headers=headers))] if headers else []
            for host, headers in outward.headers.items()
        }
        or None,
        allow_public_traffic=not inward.private,
        mask_request_host=inward.mask_host or None,
        https_ports=list(inward.https_ports) or None,
    )


def _shown_proxy(proxy: network_policy.EgressProxy | None) -> EgressProxy | None:
    if proxy is None:
        return None
    tls = None if proxy.tls is None else ProxyTls(enabled=True, server_name=proxy.tls.server_name or None)
    return EgressProxy(address=proxy.address, username=proxy.username or None, tls=tls)


class Network:
    """The handler of the update."""

    def __init__(self, context: Context) -> None:
        self._registry = context.registry

    def routes(self) -> list[Row]:
        return [("PUT", "/sandboxes/{id}/network", self.update)]

    async def update(self, request: web.Request, principal: Principal) -> web.Response:
        sandbox = self._registry.get(request.match_info["id"], principal)
        body = await read_json(request, NetworkUpdate)
        internet = body.allow_internet_access is not False
        await self._registry.set_network(sandbox.id, principal, internet, policy_of(body, internet))
        return web.Response(status=204)
