"""The way to a service in a sandbox: a connection, once somebody listens; and what a request looks like to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from sandpty import config
from sandpty.server.guest_sockets import GuestSockets
from sandpty.server.ports import heads
from sandpty.server.ports.answers import TOKEN_HEADER, PortError, bad_service, not_found, port_closed
from sandpty.server.ports.exposure import without_grant
from sandpty.server.ports.heads import Header
from sandpty.server.ports.links import Link, PlainLink, TlsLink
from sandpty.server.ports.policy import PortPolicy
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

Starter = Callable[[Sandbox], Awaitable[None]]  # makes a service listen that is started only when it is wanted

# Not passed on as they came: the body's framing and the connection are ours, the token is not the guest's business.
_REPLACED = frozenset(
    (
        b"host",
        b"content-length",
        b"expect",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        TOKEN_HEADER.encode(),
    )
)


async def connect(
    guest_sockets: GuestSockets, sandbox: Sandbox, port: int, policy: PortPolicy, starter: Starter | None
) -> Link:
    """Tries again for a second while nothing listens: it may just be starting. Raises PortError."""
    for pause_s in (*config.PORT_RETRY_PAUSES_S, None):
        try:
            connected = await guest_sockets.connect(sandbox, port)
            break
        except SandptyError as error:
            if error.reason.name != "port_closed" or pause_s is None:
                raise _port_error(error, sandbox, port) from error
        if starter is not None:
            await starter(sandbox)
            starter = None
        else:
            await asyncio.sleep(pause_s)
    if port not in policy.https_ports:
        return PlainLink(connected)
    try:
        return await TlsLink.over(connected)
    except (OSError, TimeoutError) as error:
        raise bad_service(sandbox.id, port, "does not speak TLS, as its sandbox says it would") from error


def _port_error(error: SandptyError, sandbox: Sandbox, port: int) -> PortError:
    match error.reason.name:
        case "port_closed":
            return port_closed(sandbox.id, port)
        case "timeout":
            return bad_service(sandbox.id, port, "does not take connections")
        case "no_such_sandbox" | "sandbox_paused" | "sandbox_ended":
            return not_found(sandbox.id)
    return PortError(error.reason.http, error.message, sandboxId=sandbox.id, port=port)


def origin_form(request: web.Request) -> str:
    """The request's target as a service wants it. Raises PortError 400."""
    target = request.raw_path
    if target.startswith("/") or (target == "*" and request.method == "OPTIONS"):
        return target
    for scheme in ("http://", "https://"):
        if target[: len(scheme)].lower() == scheme:
            authority, slash, rest = target[len(scheme) :].partition("/")
            if authority.lower() != request.headers.get("Host", "").lower():
                raise PortError(400, "The request's target and its Host name different places")
            return slash + rest if slash else "/"
    raise PortError(400, "The request's target is malformed")


def upgrade_of(request: web.Request) -> bytes | None:
    """The protocol that a client wants to change to, if a service may be asked for it."""
    tokens = {token.strip().lower() for value in request.headers.getall("Connection", ()) for token in value.split(",")}
    protocol = request.headers.get("Upgrade", "")
    # h2c needs settings that are for the neighbour only; a client that offers it is content without.
    if "upgrade" not in tokens or not protocol or protocol.lower() == "h2c":
        return None
    return protocol.encode("utf-8", "surrogateescape")


def request_head(request: web.Request, policy: PortPolicy, port: int, added: Sequence[Header] = ()) -> bytes:
    """What the service is sent before the body; `added` replaces what came under these names. Raises PortError 400."""
    if request.method == "CONNECT":
        raise PortError(400, "CONNECT is not proxied")
    if len(request.headers.getall("Host", ())) != 1:
        raise PortError(400, "A request names one Host")
    host = policy.host_for(request.headers["Host"], port).encode("utf-8", "surrogateescape")
    replaced = _REPLACED | {name.lower() for name, _ in added}
    given = without_grant(request.raw_headers) if port in policy.wants_tokens else request.raw_headers
    headers: list[Header] = [(b"Host", host), *added, *heads.end_to_end(given, without=replaced)]
    headers += _forwarded(request, policy, host)
    if "Transfer-Encoding" in request.headers:
        headers.append((b"Transfer-Encoding", b"chunked"))
    elif (length := request.content_length) is not None:
        headers.append((b"Content-Length", b"%d" % length))
    if (protocol := upgrade_of(request)) is not None:
        headers += [(b"Connection", b"Upgrade"), (b"Upgrade", protocol)]
    else:
        headers.append((b"Connection", b"close"))
    try:
        return heads.format_request(request.method, origin_form(request).encode("utf-8", "surrogateescape"), headers)
    except heads.BadHeadError as error:
        raise PortError(400, str(error)) from error


def _forwarded(request: web.Request, policy: PortPolicy, host: bytes) -> list[Header]:
    """Who asks, added to what proxies before us said; those before us knew the name and the scheme better."""

    def given(name: str) -> list[bytes]:
        return [value.encode("utf-8", "surrogateescape") for value in request.headers.getall(name, ())]

    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    chain = [*given("X-Forwarded-For"), *([str(peer[0]).encode()] if peer else [])]
    hosts = [host] if policy.mask_host else given("X-Forwarded-Host")[:1] or [host]
    schemes = given("X-Forwarded-Proto")[:1] or [request.scheme.encode()]
    return [
        (b"X-Forwarded-For", b", ".join(chain)),
        (b"X-Forwarded-Host", hosts[0]),
        (b"X-Forwarded-Proto", schemes[0]),
    ]
