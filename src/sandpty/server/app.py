"""The composition root: one listener, every dialect.

sandpty serve -> serve(settings) -> Registry (supervisor's truth) + Authenticator -> dialects' routes -> aiohttp
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import resource
import secrets
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sandpty import __version__, config, disk_room
from sandpty.server.auth import Authenticator
from sandpty.server.builds.builds import Builds
from sandpty.server.context import Context
from sandpty.server.decoding import decoded_bodies
from sandpty.server.dialects import e2b, hyperbrowser, native
from sandpty.server.file_connections import FileConnections
from sandpty.server.first_request import FirstRequests
from sandpty.server.guest_sockets import GuestSockets
from sandpty.server.metrics import Metrics
from sandpty.server.ports.interpreter import Interpreters
from sandpty.server.ports.proxy import Proxy
from sandpty.server.registry import Registry
from sandpty.server.runtime_tokens import SignedTokens
from sandpty.server.settings import Settings
from sandpty.server.ssh_identity import SshIdentity
from sandpty.server.tls import Tls
from sandpty.wire import interpreter
from sandpty.wire.errors import SandptyError

log = logging.getLogger(__name__)


@web.middleware
async def _no_traceback_leaves(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Dialects answer in their own shapes; what escapes them is our fault and gets an incident id."""
    try:
        return await handler(request)
    except (web.HTTPException, asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        incident = secrets.token_hex(6)
        log.exception("incident %s: %s %s", incident, request.method, request.path)
        message = f"internal error; the server's log has it under incident {incident}"
        return web.json_response({"code": 500, "message": message}, status=500)


def make_app(context: Context, *middlewares: Middleware) -> web.Application:
    """The application with every dialect's routes and `/healthz`."""
    app = web.Application(
        client_max_size=config.REQUEST_BODY_BYTES,
        middlewares=[
            *middlewares,
            context.auth.middleware(),
            Proxy(context).middleware(),
            decoded_bodies(),
            _no_traceback_leaves,
        ],
    )

    async def healthz(_: web.Request) -> web.Response:
        ready = context.registry.ready
        disk = (
            "almost full" if disk_room.is_scarce(context.settings.data_dir.root) else "ok"
        )  # who runs is served still
        body = {"status": "ok" if ready else "supervisor down", "version": __version__, "disk": disk}
        return web.json_response(body, status=200 if ready else 503)

    async def stopping(_: web.Application) -> None:
        for callback in context.stopping:
            callback()

    app.on_shutdown.append(stopping)
    app.router.add_get("/healthz", healthz)
    for dialect in (native, e2b, hyperbrowser):
        app.add_routes(dialect.routes(context))
    return app


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError, for example when the port is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by accepted connections. Small: what lies in it after Ctrl-C is stale output nobody can take back.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.CLIENT_SEND_BUFFER_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(config.LISTEN_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def listener_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _serve_tls(
    listener: socket.socket, registry: Registry, protocols: Callable[[], asyncio.Protocol], stack: AsyncExitStack
) -> None:
    """The second listener, and what keeps its certificate fresh. Raises SandptyError."""
    tls = Tls(registry)
    await tls.load()
    server = await asyncio.get_running_loop().create_server(
        protocols, sock=listener, backlog=config.LISTEN_BACKLOG, ssl=tls.context
    )
    stack.callback(server.close)
    refreshing = asyncio.create_task(tls.run(), name="certificate")
    stack.callback(refreshing.cancel)


def _local_domain(listener: socket.socket) -> str | None:
    """Where nobody named a domain: browsers and curl find every name below `localhost` on this machine."""
    host, port = listener.getsockname()[:2]
    return f"localhost:{port}" if host in ("127.0.0.1", "0.0.0.0", "::1", "::") else None


def _write_info(settings: Settings, url: str) -> None:
    """Tell `sandpty env` and friends where we are. After the drop of privileges only a prepared file is writable."""
    try:
        info = {"url": url, "domain": settings.domain}
        settings.data_dir.server_info.write_text(json.dumps(info) + "\n")
    except OSError as error:
        log.warning("cannot write %s: %s", settings.data_dir.server_info.name, error.strerror)


def _allow_open_files() -> None:
    """Two descriptors per attachment: the customary soft limit of 1024 would end at 500 of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve_ssh(listener: socket.socket, context: Context, identity: SshIdentity, stack: AsyncExitStack) -> None:
    """The listener of the SSH gateway, which is imported only where there is one."""
    from sandpty.server.dialects.ssh.gateway import Gateway

    gateway = Gateway(context, identity)
    server = await gateway.serve(listener)
    stack.callback(server.close)


def _ssh_identity(settings: Settings, listener: socket.socket | None) -> SshIdentity | None:
    """Raises bad_argument for a host key that is none."""
    if listener is None:
        return None
    host, port = listener.getsockname()[:2]
    return SshIdentity(settings.ssh_host_key, settings.runtime_secret, host, port)


def make_context(
    settings: Settings,
    registry: Registry,
    auth: Authenticator,
    stack: ExitStack,
    ssh_listener: socket.socket | None = None,
) -> Context:
    """What every dialect is given; `stack` closes what is opened for it."""
    files = FileConnections(registry)
    stack.callback(files.close)
    guest_sockets = GuestSockets(str(settings.data_dir.guest_sockets), registry.cutting)
    stack.callback(guest_sockets.close)
    tokens = SignedTokens(settings.runtime_secret)
    interpreters = Interpreters(guest_sockets)
    return Context(
        settings,
        registry,
        auth=auth,
        files=files,
        guest_sockets=guest_sockets,
        metrics=Metrics(registry),
        tokens=tokens,
        builds=Builds(registry, settings.data_dir.builds),
        ssh=_ssh_identity(settings, ssh_listener),
        port_starters={interpreter.PORT: interpreters.start},
        port_preparers={interpreter.PORT: interpreters.prepare},
    )


async def serve(
    settings: Settings,
    *,
    listener: socket.socket | None = None,
    tls_listener: socket.socket | None = None,
    ssh_listener: socket.socket | None = None,
    listening: Callable[[str], None] | None = None,
) -> None:
    """Serve until cancelled. `listening` is called with the URL once requests are answered.

    Raises OSError when the port cannot be had, SandptyError supervisor_down when there is no supervisor.
    """
    _allow_open_files()
    async with AsyncExitStack() as stack:
        listener = listener or open_listener(settings.host, settings.port)
        stack.callback(listener.close)
        settings = replace(settings, domain=settings.domain or _local_domain(listener))
        auth = Authenticator(settings.api_key)
        registry = Registry(str(settings.data_dir.supervisor_socket), auth.replace, auth)
        auth.on_revoked.append(lambda revoked: registry.cut_made_by(revoked.keys, revoked.teams))
        await stack.enter_async_context(registry)
        context = make_context(settings, registry, auth, stack.enter_context(ExitStack()), ssh_listener)
        await stack.enter_async_context(context.metrics)
        await stack.enter_async_context(context.builds)
        first_requests = FirstRequests()
        runner = web.AppRunner(
            make_app(context, first_requests.middleware()),
            access_log=None,
            handler_cancellation=True,
            auto_decompress=False,  # decoding.py
            keepalive_timeout=config.HTTP_KEEPALIVE_S,
            shutdown_timeout=config.SHUTDOWN_GRACE_S,
            max_line_size=config.HTTP_LINE_BYTES,
            max_field_size=config.HTTP_LINE_BYTES,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        assert runner.server is not None
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            first_requests.protocol_factory(runner.server), sock=listener, backlog=config.LISTEN_BACKLOG
        )
        stack.callback(server.close)
        if tls_listener is not None:
            await _serve_tls(tls_listener, registry, first_requests.protocol_factory(runner.server), stack)
        if ssh_listener is not None and context.ssh is not None:
            await _serve_ssh(ssh_listener, context, context.ssh, stack)
        url = listener_url(listener)
        _write_info(settings, url)
        log.info("listening on %s, isolation tier %s", url, registry.host.tier)
        # What is here now stays: collections need not look at it again, and a key does not wait for them.
        gc.collect()
        gc.freeze()
        if listening is not None:
            listening(url)
        await asyncio.Event().wait()


__all__ = ["SandptyError", "listener_url", "make_app", "open_listener", "serve"]
