"""The middleware that sends requests for sandboxes' ports there, instead of to a dialect."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.ports import answers, routing, upstream
from sandpty.server.ports.answers import TOKEN_HEADER, PortError
from sandpty.server.ports.exposure import Exposure
from sandpty.server.ports.policy import admits, policy_of
from sandpty.server.ports.relay import Exchange
from sandpty.server.ports.routing import OWN_PORT, BadTargetError, Target
from sandpty.server.tls import asked_name
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

log = logging.getLogger(__name__)
# What a sandbox's own host serves; the rest of this server (the control plane) is not to be had there.
_OWN_PATHS = re.compile(r"/(?:process\.Process/|filesystem\.Filesystem/|(?:files|health|metrics|envs)(?:/|$))")


class Proxy:
    """Of one server."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._domain = context.settings.domain
        self._exposure = Exposure(context.tokens, context.auth)
        self._open: Counter[str] = Counter()  # requests and tunnels under way, by sandbox
        self._all_open = 0

    def middleware(self) -> Middleware:
        @web.middleware
        async def route(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                target = routing.target_of(request, self._domain)
                if target is not None and target.named and _misdirected(request):
                    raise PortError(421, "This connection was made for another name")
                if target is None or (target.port == OWN_PORT and _is_own_path(request, target)):
                    return await handler(request)
                return await self._serve(request, target)
            except BadTargetError as error:
                return PortError(400, str(error)).response(request)
            except PortError as error:
                return error.response(request)

        return route

    async def _serve(self, request: web.Request, target: Target) -> web.StreamResponse:
        """Raises PortError."""
        if target.port == OWN_PORT:
            raise answers.reserved(request.path)
        sandbox = await self._sandbox(request, target)
        if (answer := self._exposure.admit(request, target, sandbox)) is not None:
            return answer
        with self._counted(sandbox.id):
            try:
                return await self._exchange(request, target, sandbox)
            except SandptyError as error:
                raise PortError(error.reason.http, error.message, sandboxId=sandbox.id, port=target.port) from error
            except (PortError, ConnectionError, asyncio.CancelledError):
                raise
            except Exception:
                incident = secrets.token_hex(6)
                log.exception("incident %s: %s to port %d", incident, request.method, target.port)
                raise PortError(500, f"internal error, incident {incident}", sandboxId=sandbox.id) from None

    async def _sandbox(self, request: web.Request, target: Target) -> Sandbox:
        """The running sandbox, if the request may reach it."""
        try:
            sandbox = self._context.registry.get(target.sandbox_id)
        except SandptyError as error:
            raise answers.not_found(target.sandbox_id) from error
        token = request.headers.get(TOKEN_HEADER, "")
        if not admits(sandbox, token):
            raise answers.token_invalid(sandbox.id) if token else answers.token_missing(sandbox.id)
        try:
            return await self._context.registry.awake(sandbox.id)
        except SandptyError as error:
            if error.reason.name in ("no_such_sandbox", "sandbox_paused"):
                raise answers.not_found(sandbox.id) from error
            if error.reason.name == "conflict":
                raise answers.in_transition(sandbox.id) from error
            raise PortError(error.reason.http, error.message, sandboxId=sandbox.id) from error

    async def _exchange(self, request: web.Request, target: Target, sandbox: Sandbox) -> web.StreamResponse:
        policy = policy_of(sandbox)
        preparer = self._context.port_preparers.get(target.port)
        added = preparer(request, sandbox) if preparer else []
        head = upstream.request_head(request, policy, target.port, added)
        starter = self._context.port_starters.get(target.port)
        connected = await upstream.connect(self._context.guest_sockets, sandbox, target.port, policy, starter)
        exchange = Exchange(request, target, connected)
        with self._context.registry.cutting(sandbox.id, exchange.cut):
            return await exchange.run(head)

    @contextmanager
    def _counted(self, sandbox_id: str) -> Iterator[None]:
        if self._open[sandbox_id] >= config.PORT_CONNECTIONS_PER_SANDBOX_MAX:
            raise answers.too_many(sandbox_id, config.PORT_CONNECTIONS_PER_SANDBOX_MAX)
        if self._all_open >= config.PORT_CONNECTIONS_MAX:
            raise PortError(503, "This server has too many connections to sandboxes", sandboxId=sandbox_id)
        self._open[sandbox_id] += 1
        self._all_open += 1
        try:
            yield
        finally:
            self._all_open -= 1
            self._open[sandbox_id] -= 1
            if not self._open[sandbox_id]:
                del self._open[sandbox_id]


def _misdirected(request: web.Request) -> bool:
    """Whether the request names another host than the connection was made for."""
    name = asked_name(request)
    return name is not None and routing.hostname(request.headers.get("Host", "")) != name.lower()


def _is_own_path(request: web.Request, target: Target) -> bool:
    return not target.named or _OWN_PATHS.match(request.path) is not None
