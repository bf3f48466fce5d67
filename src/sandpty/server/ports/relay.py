"""One exchange with a service: the request goes in, its answer comes out, both as streams with backpressure.

What is written to the client was parsed and is framed anew: a guest cannot end one answer and begin another.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest

from sandpty import config
from sandpty.server.ports import heads
from sandpty.server.ports.answers import bad_service, not_found
from sandpty.server.ports.bodies import BadBodyError, Body, ChunkedBody, LengthBody, OpenBody
from sandpty.server.ports.heads import BadHeadError, Header, ResponseHead
from sandpty.server.ports.links import Link
from sandpty.server.ports.routing import Target
from sandpty.server.ports.tunnel import tunnel
from sandpty.server.ports.upstream import upgrade_of

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_NO_BODY = frozenset((204, 304))
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends RST
_FRAMING = frozenset((b"content-length",))


class Relayed(web.StreamResponse):
    """An answer that has been written to the client already."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._stays = keep_alive

    @property
    def keep_alive(self) -> bool | None:
        return self._stays

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        pass


class Exchange:
    """Of one request with one service."""

    def __init__(self, request: web.Request, target: Target, link: Link) -> None:
        self._request = request
        self._target = target
        self._link = link
        self._begun = False  # something of the answer has been written: no other answer can follow
        self._cut = False
        self._left = b""  # read, but not part of what was parsed

    def cut(self) -> None:
        """The sandbox is gone: what streams ends as a broken connection does, not as if it were complete."""
        self._cut = True
        self._link.cut()
        if self._begun:
            _reset(self._request)

    async def run(self, head: bytes) -> web.StreamResponse:
        """Raises PortError, as long as nothing of an answer was passed on."""
        sending = None
        try:
            if self._request.can_read_body or "Transfer-Encoding" in self._request.headers:
                sending = asyncio.create_task(self._send(head), name="port request")
            else:
                await self._link.write(head)
            answer = await self._receive_head()
            return await (self._tunnel(answer) if answer.upgrades else self._relay(answer))
        except (BadHeadError, BadBodyError) as error:
            raise self._failed(str(error)) from error
        except (ConnectionError, TimeoutError) as error:
            raise self._failed("closed the connection without an answer") from error
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            self._link.close()

    def _failed(self, what: str) -> Exception:
        if self._begun:
            _reset(self._request)  # an end by FIN could look like the end of the body
            return ConnectionResetError(what)
        if self._cut:
            return not_found(self._target.sandbox_id)
        return bad_service(self._target.sandbox_id, self._target.port, what)

    # --- there ---

    async def _send(self, head: bytes) -> None:
        chunked = "Transfer-Encoding" in self._request.headers
        try:
            await self._link.write(head)
            async for data in self._request.content.iter_any():
                await self._link.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
            if chunked:
                await self._link.write(b"0\r\n\r\n")
        except ConnectionError:
            pass  # the service wants no more; what it answers is read all the same
        except web.RequestPayloadError:
            self._link.cut()  # the client broke off: the service must not take this for the whole

    # --- and back ---

    async def _receive_head(self) -> ResponseHead:
        """The first head that is more than "wait a moment"."""
        for _ in range(config.PORT_INTERIM_ANSWERS_MAX):
            head = heads.parse_response(await self._read_head(), config.PORT_HEADERS_MAX)
            if head.upgrades:
                if upgrade_of(self._request) is None:
                    raise BadHeadError("switched protocols without being asked")
                return head
            if head.status >= 200:
                return head
        raise BadHeadError("sent endless interim answers")

    async def _read_head(self) -> bytes:
        buffer = self._left
        searched = 0
        limit: asyncio.Timeout
        # A service may think for as long as its client waits, but not dribble a head.
        async with asyncio.timeout(config.PORT_HEAD_TIMEOUT_S if buffer else None) as limit:
            while (found := _END_OF_HEAD.search(buffer, searched)) is None:
                if len(buffer) > config.PORT_HEAD_BYTES:
                    raise BadHeadError("sent endless headers")
                searched = max(0, len(buffer) - 3)
                data = await self._link.read()
                if not data:
                    text = "in the middle of its headers" if buffer else "without an answer"
                    raise BadHeadError(f"closed the connection {text}")
                if not buffer:
                    limit.reschedule(asyncio.get_running_loop().time() + config.PORT_HEAD_TIMEOUT_S)
                buffer += data
        self._left = buffer[found.end() :]
        return buffer[: found.start()]

    def _write(self, data: bytes) -> None:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client went away")
        transport.write(data)
        self._begun = True

    async def _relay(self, answer: ResponseHead) -> Relayed:
        request = self._request
        old = request.version < (1, 1)
        body = self._body(answer)
        headers = heads.end_to_end(answer.headers, without=_FRAMING)
        chunked = False
        if body is None:
            if answer.length is not None and answer.status != 204:
                headers.append((b"Content-Length", b"%d" % answer.length))
        elif answer.length is not None:
            headers.append((b"Content-Length", b"%d" % answer.length))
        elif not old:
            chunked = True
            headers.append((b"Transfer-Encoding", b"chunked"))
        keep_alive = bool(request.keep_alive) and not (old and body is not None and answer.length is None)
        headers += _connection(old, keep_alive)
        head = heads.format_response(answer.status, answer.reason, headers)
        if body is None:
            self._write(head)
        else:
            await self._relay_body(head, body, chunked)
        return Relayed(keep_alive=keep_alive)

    def _body(self, answer: ResponseHead) -> Body | None:
        if self._request.method == "HEAD" or answer.status in _NO_BODY:
            return None
        if answer.chunked:
            return ChunkedBody()
        return OpenBody() if answer.length is None else LengthBody(answer.length)

    async def _relay_body(self, head: bytes, body: Body, chunked: bool) -> None:
        """The head goes out with what there is of the body, so that a small answer is one write."""
        pending, data = head, self._left
        while True:
            while data:
                if payload := body.feed(data):
                    pending += b"%x\r\n%s\r\n" % (len(payload), payload) if chunked else payload
                if data := body.rest:
                    await asyncio.sleep(0)
            if body.done and chunked:
                pending += b"0\r\n\r\n"
            if pending:
                self._write(pending)
                await self._request.writer.drain()
                pending = b""
            if body.done:
                return
            data = await self._link.read()
            if not data:
                body.end()

    async def _tunnel(self, answer: ResponseHead) -> Relayed:
        upgrade = [header for header in answer.headers if header[0].lower() == b"upgrade"]
        headers = [*heads.end_to_end(answer.headers, without=_FRAMING), (b"Connection", b"Upgrade"), *upgrade]
        self._write(heads.format_response(101, answer.reason, headers) + self._left)
        await tunnel(self._request, self._link)
        return Relayed(keep_alive=False)


def _connection(old: bool, keep_alive: bool) -> list[Header]:
    if old and keep_alive:
        return [(b"Connection", b"keep-alive")]
    return [] if keep_alive or old else [(b"Connection", b"close")]


def _reset(request: web.Request) -> None:
    transport = request.transport
    if transport is None:
        return
    plain: socket.socket | None = transport.get_extra_info("socket")
    if plain is not None:
        with contextlib.suppress(OSError):
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
