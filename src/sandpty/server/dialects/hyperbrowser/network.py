"""Where a sandbox may connect to, as Hyperbrowser's clients say it."""

from __future__ import annotations

import msgspec
from aiohttp import web

from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser import models
from sandpty.server.dialects.hyperbrowser.errors import bad_request, json_response
from sandpty.server.dialects.hyperbrowser.requests import read_json
from sandpty.server.dialects.hyperbrowser.tokens import running
from sandpty.wire import network_rules
from sandpty.wire.network_policy import NetworkPolicy
from sandpty.wire.verbs import Sandbox


def policy_of(
    body: models.NetworkBody, internet: bool = True, before: NetworkPolicy | None = None
) -> tuple[bool, NetworkPolicy]:
    """(internet, policy): what the body does not say stays as it was. Raises HyperbrowserError 400."""
    known = before or NetworkPolicy()
    internet = internet if body.allow_internet_access is None else body.allow_internet_access
    allow_out = known.allow_out if body.allow_out is None else tuple(body.allow_out)
    deny_out = known.deny_out if body.deny_out is None else tuple(body.deny_out)
    try:
        network_rules.parse(allow_out, deny_out, internet=internet)
    except network_rules.RuleError as error:
        raise bad_request(str(error)) from error
    return internet, msgspec.structs.replace(known, allow_out=allow_out, deny_out=deny_out)


def shown(sandbox: Sandbox) -> models.Network:
    policy = sandbox.network
    return models.Network(
        allow_internet_access=sandbox.internet, allow_out=list(policy.allow_out), deny_out=list(policy.deny_out)
    )


class Networks:
    """The handler of /sandbox/{id}/network."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def update(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        """What is not allowed any more has ended when this answers."""
        body = await read_json(request, models.NetworkBody)
        sandbox = running(self._context, request.match_info["id"], principal)
        changed = await self._context.registry.change_network(
            sandbox.id, principal, lambda now: policy_of(body, now.internet, now.network)
        )
        return json_response({"network": shown(changed)})
