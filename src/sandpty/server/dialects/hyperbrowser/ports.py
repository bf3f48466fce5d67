"""Ports of a sandbox: none can be reached from outside until it is exposed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec
from aiohttp import web

from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser import models
from sandpty.server.dialects.hyperbrowser.errors import HyperbrowserError, json_response
from sandpty.server.dialects.hyperbrowser.requests import read_json
from sandpty.server.dialects.hyperbrowser.tokens import iso, origin, running
from sandpty.server.ports.exposure import grant_url
from sandpty.server.ports.policy import KEY, PortPolicy, policy_of
from sandpty.server.ports.routing import OWN_PORT
from sandpty.wire.verbs import Sandbox

Change: TypeAlias = Callable[[Mapping[int, bool]], dict[int, bool]]
_RESERVED = frozenset((OWN_PORT, 4001))  # ours, and the vendor's runtime's


def checked(ports: list[models.ExposeBody]) -> dict[int, bool]:
    """Ports with whether they want a token. Raises HyperbrowserError 400."""
    for body in ports:
        if body.port in _RESERVED:
            raise HyperbrowserError(400, f"port {body.port} cannot be exposed", "bad_request")
    return {body.port: bool(body.auth) for body in ports}


def exposed_url(request: web.Request, sandbox: Sandbox, port: int) -> str:
    scheme, _, host = origin(request).partition("://")
    return f"{scheme}://{port}-{sandbox.id}.{host}/"


def exposed_ports(request: web.Request, sandbox: Sandbox) -> list[models.ExposedPort]:
    """What a sandbox's detail says of them."""
    ports = policy_of(sandbox).exposed or {}
    return [
        models.ExposedPort(port=port, auth=auth, url=exposed_url(request, sandbox, port))
        for port, auth in sorted(ports.items())
    ]


class Ports:
    """The handlers of /sandbox/{id}/expose and /unexpose."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def expose(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        """Exposing again changes `auth`."""
        body = await read_json(request, models.ExposeBody)
        sandbox = running(self._context, request.match_info["id"], principal)
        wanted = checked([body])
        sandbox = await self._change(sandbox, principal, lambda ports: {**ports, **wanted})
        url = exposed_url(request, sandbox, body.port)
        said = models.ExposedPort(port=body.port, auth=bool(body.auth), url=url)
        if body.auth:
            browser_url, expires = grant_url(self._context.tokens, sandbox, body.port, principal.key, url)
            said = msgspec.structs.replace(said, browser_url=browser_url, browser_url_expires_at=iso(expires))
        return json_response(said)

    async def unexpose(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        """What is not exposed stays so."""
        body = await read_json(request, models.UnexposeBody)
        sandbox = running(self._context, request.match_info["id"], principal)

        def without(ports: Mapping[int, bool]) -> dict[int, bool]:
            return {port: auth for port, auth in ports.items() if port != body.port}

        await self._change(sandbox, principal, without)
        return json_response({"port": body.port, "exposed": False})

    async def _change(self, sandbox: Sandbox, principal: Principal, change: Change) -> Sandbox:
        def changed(annotations: dict[str, Any]) -> dict[str, Any]:
            policy = msgspec.convert(annotations.get(KEY) or {}, PortPolicy, str_keys=True)
            return {
                **annotations,
                **msgspec.structs.replace(policy, exposed=change(policy.exposed or {})).annotations(),
            }

        return await self._context.registry.annotate(sandbox.id, principal, changed)
