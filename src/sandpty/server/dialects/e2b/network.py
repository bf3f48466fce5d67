"""E2B's network configuration: what a create may say of it, its update at run time, how info shows it.

Where the sandbox may connect to is the supervisor's NetworkPolicy; who may connect to its ports (allowPublicTraffic,
maskRequestHost, httpsPorts) is the ports' PortPolicy, which an update leaves alone.
"""

from __future__ import annotations

from aiohttp import web

from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.e2b.control_models import NetworkConfig, NetworkUpdate
from sandpty.server.dialects.e2b.errors import HttpError, bad_request
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.requests import read_json
from sandpty.server.ports import policy as ports
from sandpty.wire import network_rules
from sandpty.wire.verbs import NetworkPolicy, Sandbox


def policy_of(asked: NetworkConfig | NetworkUpdate | None, internet: bool) -> NetworkPolicy:
    """Where the sandbox may connect to. Raises HttpError 400 for entries that mean nothing, 501 for what we lack."""
    if asked is None:
        return NetworkPolicy()
    if asked.egress_proxy is not None:
        raise HttpError(501, "egressProxy is not supported by this server: the sandbox would not be tunneled")
    if any(rule.get("transform") for rules in (asked.rules or {}).values() for rule in rules):
        raise HttpError(501, "rules with a transform are not supported by this server: no header would be added")
    allow_out, deny_out = asked.allow_out or [], asked.deny_out or []
    servers = asked.dns_servers
    try:
        network_rules.parse(allow_out, deny_out, internet=internet)
        network_rules.name_servers(servers or [])
    except network_rules.RuleError as error:
        raise bad_request(str(error)) from error
    return NetworkPolicy(
        allow_out=tuple(allow_out),
        deny_out=tuple(deny_out),
        dns_servers=None if servers is None else tuple(servers),
    )


def shown(sandbox: Sandbox) -> NetworkConfig:
    """`network` of info."""
    outward, inward = sandbox.network, ports.policy_of(sandbox)
    return NetworkConfig(
        allow_out=list(outward.allow_out) or None,
        deny_out=list(outward.deny_out) or None,
        dns_servers=None if outward.dns_servers is None else list(outward.dns_servers),
        allow_public_traffic=not inward.private,
        mask_request_host=inward.mask_host or None,
        https_ports=list(inward.https_ports) or None,
    )


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
