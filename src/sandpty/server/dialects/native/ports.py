"""The WebSocket of one TCP connection to a port of a sandbox, loopback included.

Each binary message is a piece of the stream, an empty one its end in that direction. Two loops, each awaiting its own
side, so the kernel's flow control is the backpressure in both directions; nothing is queued here. Silence means nothing
on such a connection, and neither side may be reading: dead clients are the kernel's keepalive's to find.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Sequence

from aiohttp import ClientConnectionResetError, WSCloseCode, WSMsgType, web

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.native.answers import SANDBOX, answering, principal
from sandpty.server.ports.links import PlainLink
from sandpty.wire import frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

log = logging.getLogger(__name__)
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends RST
_ENDS = frozenset((WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR))


class Ports:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._open: Counter[str] = Counter()  # by sandbox
        self._tunnels: set[_Tunnel] = set()
        context.stopping.append(self._going_away)

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return [web.get(SANDBOX + "/ports/{port}", self.connect)]

    def _going_away(self) -> None:
        for tunnel in self._tunnels:
            tunnel.cut(None)

    @answering
    async def connect(self, request: web.Request) -> web.StreamResponse:
        """Errors before the upgrade are HTTP answers; after it, close codes 4000 + status."""
        who = principal(self._context, request)
        sandbox = await self._context.registry.awake(request.match_info["sandbox"], who)
        port = request.match_info["port"]
        if not (port.isascii() and port.isdigit() and len(port) <= 5):
            raise SandptyError("bad_argument", "name a port by its number")
        client = web.WebSocketResponse(
            timeout=config.WS_CLOSE_TIMEOUT_S,
            max_msg_size=frames.MAX_FRAME_BYTES,
            compress=False,
            writer_limit=config.PORT_READ_BYTES,
        )
        if not client.can_prepare(request):
            raise SandptyError("bad_request", "ports are WebSockets; this request does not ask for one")
        with self._counted(sandbox.id):
            guest = await self._context.guest_sockets.connect(sandbox, int(port))
            await self._carry(request, client, sandbox, who, guest)
        return client

    async def _carry(
        self,
        request: web.Request,
        client: web.WebSocketResponse,
        sandbox: Sandbox,
        who: Principal,
        guest: socket.socket,
    ) -> None:
        registry = self._context.registry
        tunnel = _Tunnel(client, guest)

        def gone() -> None:
            paused = sandbox.id in registry
            reason, what = ("sandbox_paused", "was paused") if paused else ("sandbox_ended", "has ended")
            tunnel.cut(SandptyError(reason, f"sandbox {sandbox.id} {what}"))

        try:
            with registry.cutting(sandbox.id, gone):
                registry.running(sandbox.id, who)  # it may have been paused while we connected
                await client.prepare(request)
                _notice_death(request.transport)
                revoked = SandptyError("unauthenticated", "the API key was revoked")
                self._context.auth.when_revoked(request, who, lambda: tunnel.cut(revoked))
                self._tunnels.add(tunnel)
                await tunnel.run()
        finally:
            self._tunnels.discard(tunnel)
            tunnel.close()
            if request.transport is not None and request.transport.get_write_buffer_size():
                request.transport.abort()  # a client that has not taken everything by now never will

    @contextlib.contextmanager
    def _counted(self, sandbox_id: str) -> Iterator[None]:
        most = config.PORT_TUNNELS_PER_SANDBOX_MAX
        if self._open[sandbox_id] >= most:
            raise SandptyError("limit", f"sandbox {sandbox_id} has {most} connections to its ports already")
        self._open[sandbox_id] += 1
        try:
            yield
        finally:
            self._open[sandbox_id] -= 1
            if not self._open[sandbox_id]:
                del self._open[sandbox_id]


def _notice_death(transport: asyncio.Transport | None) -> None:
    """A client that vanished without a word is found in about two minutes, however quiet the connection may be."""
    if transport is not None and not transport.is_closing():
        client = transport.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, config.PORT_TUNNEL_KEEPALIVE_S)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, config.PORT_TUNNEL_KEEPALIVE_S)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _broken() -> SandptyError:
    return SandptyError("port_closed", "the service broke the connection")


class _Tunnel:
    """Between a client's WebSocket and a connected socket of a guest's network, which it takes over."""

    def __init__(self, client: web.WebSocketResponse, guest: socket.socket) -> None:
        self._client = client
        self._guest = guest
        self._link = PlainLink(guest)
        self._client_ended = asyncio.Event()
        self._refused = False  # the service takes no more of what the client sends
        self._whole = False  # both directions came to their ends
        self._cutting: asyncio.Future[SandptyError | None] = asyncio.get_running_loop().create_future()

    def cut(self, error: SandptyError | None) -> None:
        """End both sides at once, and say why; None: the server stops. Does nothing when already ending."""
        if not self._cutting.done():
            self._cutting.set_result(error)

    def close(self) -> None:
        """What was cut off must not look complete to the guest: it is reset."""
        if not self._whole:
            with contextlib.suppress(OSError):
                self._guest.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._link.close()

    async def run(self) -> None:
        """Until both directions have ended, either side is gone, or the client breaks the protocol."""
        to_client = asyncio.create_task(self._to_client(), name="port-to-client")
        to_guest = asyncio.create_task(self._to_guest(), name="port-to-guest")
        try:
            await asyncio.wait((to_client, to_guest, self._cutting), return_when=asyncio.FIRST_COMPLETED)
            failed = next((task.exception() for task in (to_client, to_guest) if task.done()), None)
        finally:
            # Nobody else may be reading the WebSocket while it is closed, else its closing handshake is skipped.
            for task in (to_client, to_guest):
                task.cancel()
            await asyncio.gather(to_client, to_guest, return_exceptions=True)
        if self._cutting.done():
            error = self._cutting.result()
            await (self._say(error) if error else self._client.close(code=WSCloseCode.GOING_AWAY))
        elif failed is not None:
            await self._say(failed)
        else:
            self._whole = True
            await self._client.close(code=WSCloseCode.OK)

    async def _to_client(self) -> None:
        """Returns when both directions have ended well."""
        try:
            while data := await self._link.read():
                await self._client.send_bytes(data)
        except OSError as error:
            if self._client.closed or isinstance(error, ClientConnectionResetError):
                raise
            raise _broken() from error
        await self._client.send_bytes(b"")
        await self._client_ended.wait()
        if self._refused:
            raise _broken()

    async def _to_guest(self) -> None:
        """Never returns: after its own end too, a client that goes away ends everything."""
        while (message := await self._client.receive()).type not in _ENDS:
            if message.type is not WSMsgType.BINARY:
                raise SandptyError("bad_frame", "messages are binary pieces of the stream; this one was text")
            if self._client_ended.is_set() and not self._refused:
                raise SandptyError("bad_frame", "after the end of a stream nothing of it can come")
            if not message.data:
                self._link.end()
                self._client_ended.set()
            elif not self._refused:
                try:
                    await self._link.write(message.data)
                except OSError:  # what the service said before is passed on all the same
                    self._refused = True
                    self._client_ended.set()
        raise ConnectionResetError("the client went away")

    async def _say(self, error: BaseException) -> None:
        if isinstance(error, ConnectionError):
            await self._client.close(code=WSCloseCode.OK)  # answers a goodbye; nothing to a connection that is gone
            return
        if not isinstance(error, SandptyError):
            incident = secrets.token_hex(6)
            log.error("incident %s: a connection to a port failed", incident, exc_info=error)
            error = SandptyError("internal", f"the server's log has it under incident {incident}")
        text = f"{error.reason.name}: {error.message}".encode("utf-8", "replace")[: config.WS_CLOSE_TEXT_BYTES]
        await self._client.close(code=error.reason.ws_close, message=text.decode("utf-8", "ignore").encode())
