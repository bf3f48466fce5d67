"""The WebSocket of one attachment to a terminal: output chunks and one exit frame out, input and resizes in.

Both SDKs take the end of the connection for the end of the terminal, and a connection that ends without an exit frame
for nothing at all. So the exit frame is the last thing that is said, everything before it has left by then, and the
connection is closed only after the client has said goodbye: a socket closed with unread input in it would be reset, and
take with it what the client has not read yet.

Nor is anything said before the client has answered a ping: Node's SDK begins to listen a moment after its WebSocket is
open, and what came in one piece with the answer to the upgrade would be lost (its samples then show no prompt). Its
WebSocket answers pings by itself, and what comes after the answer is heard.

A client that goes away leaves its place in the log: for a while the program rather waits than runs past what that
client has not seen.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from sandpty import config
from sandpty.server.dialects.hyperbrowser import models
from sandpty.server.dialects.hyperbrowser.chunks import Cutter, chunk
from sandpty.terminal.attachment import Attachment
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import Exit, Gap, Output, Pong

log = logging.getLogger(__name__)
_ENDS = frozenset((WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR))
_decoder = msgspec.json.Decoder(models.TerminalMessage)
Status = Callable[[Exit | None], Awaitable[models.TerminalStatus | None]]


class BadMessageError(Exception):
    """The client sent something that is not of this protocol."""


class Resizes:
    """Resizes on their way: a question about a terminal waits for those that were asked for before it."""

    def __init__(self) -> None:
        self._sockets: dict[tuple[str, str], set[TerminalSocket]] = {}

    @contextmanager
    def registered(self, sandbox_id: str, terminal: str, socket: TerminalSocket) -> Iterator[None]:
        key = (sandbox_id, terminal)
        sockets = self._sockets.setdefault(key, set())
        sockets.add(socket)
        try:
            yield
        finally:
            sockets.discard(socket)
            if not sockets and self._sockets.get(key) is sockets:
                del self._sockets[key]

    async def settled(self, sandbox_id: str, terminal: str) -> None:
        """Returns when no resize is on its way, HYPERBROWSER_RESIZE_S from now at the latest."""
        if not (sockets := self._sockets.get((sandbox_id, terminal))):
            return
        for _ in range(3):  # what has arrived on another connection is read in the next turns of the event loop
            await asyncio.sleep(0)
        with suppress(TimeoutError):
            async with asyncio.timeout(config.HYPERBROWSER_RESIZE_S):
                for socket in list(sockets):
                    await socket.resized.wait()

    def go_away(self) -> None:
        """The server stops: streams do not end by themselves."""
        for sockets in list(self._sockets.values()):
            for socket in list(sockets):
                socket.go_away()


class TerminalSocket:
    """`run` carries the attachment until either side ends.

    `status` says how the terminal stands after its exit; without one, whether it ended with its sandbox (None: no).
    `exact`: the client has said what it has seen already, so nothing after that may be missing.
    """

    def __init__(
        self,
        socket: web.WebSocketResponse,
        transport: asyncio.Transport | None,
        attached: Attachment,
        status: Status,
        *,
        exact: bool,
    ) -> None:
        self._socket = socket
        self._transport = transport
        self._attached = attached
        self._status = status
        self._exact = exact
        self._cutter = Cutter(attached.info.start)
        self._heard = self._sent = 0
        self._taking = False
        self._pings = 0  # asked of the agent
        self._answered = asyncio.Event()
        self._listening = asyncio.Event()
        self._output_task: asyncio.Task[None] | None = None
        self._going_away = False
        self.resized = asyncio.Event()  # clear while a resize is on its way
        self.resized.set()

    def go_away(self) -> None:
        self._going_away = True
        if self._output_task is not None:
            self._output_task.cancel()

    async def run(self) -> None:
        """Until the terminal has ended and the client knows, or the client is gone and its input is typed."""
        output = self._output_task = asyncio.create_task(self._output(), name="terminal-output")
        input_ = asyncio.create_task(self._input(), name="terminal-input")
        beat = asyncio.create_task(self._beat(), name="terminal-beat")
        tasks = (output, input_, beat)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            ended = next(task for task in tasks if task.done())  # the exit frame goes first
        finally:
            # Nobody else may be reading the WebSocket while it is closed, else its closing handshake is skipped.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        error = None if ended.cancelled() else ended.exception()
        if (ended is input_ and error is None) or isinstance(error, ConnectionError):
            await self._settle()
        await self._close(error)

    # --- output ----------------------------------------------------------------------------------------------------

    async def _output(self) -> None:
        """Agent to client, until the exit frame is on its way."""
        attached = self._attached
        await self._socket.ping()
        with suppress(TimeoutError):
            async with asyncio.timeout(config.HYPERBROWSER_LISTENING_S):
                await self._listening.wait()
        while True:
            event = await self._next()
            match event:
                case Output():
                    await self._send(self._cutter.cut(event.data, attached.position))
                    attached.acknowledge()
                case Gap():
                    if self._sent or self._exact:  # later chunks would pass for what follows on the earlier ones
                        raise SandptyError("output_lost", "this client did not read for too long")
                    self._cutter = Cutter(event.end)
                case Pong(token):
                    self._ponged(token)
                case Exit():
                    await self._send(self._cutter.rest())
                    await self._say_exit(event)
                    return

    async def _next(self) -> object:
        """The next event; half a character is let go when its rest does not come."""
        if not self._cutter.held:
            return await self._attached.receive()
        while True:
            try:
                async with asyncio.timeout(config.CHARACTER_S):
                    return await self._attached.receive()
            except TimeoutError:
                await self._send(self._cutter.rest())
                return await self._attached.receive()

    async def _send(self, piece: tuple[bytes, int]) -> None:
        data, end = piece
        if data:
            await self._socket.send_str((b'{"type":"output",' + chunk(data, end) + b"}").decode())
            self._sent += 1

    async def _say_exit(self, status: Exit | None) -> None:
        if (body := await self._status(status)) is not None:
            text = msgspec.json.encode(body).decode()
            await self._socket.send_str(f'{{"type":"exit","status":{text}}}')

    # --- input -----------------------------------------------------------------------------------------------------

    async def _input(self) -> None:
        """Client to agent, until the client says goodbye or goes away."""
        while (message := await self._socket.receive()).type not in _ENDS:
            self._heard += 1
            self._listening.set()
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                self._taking = True
                await self._take(message.data)
                self._taking = False
            elif message.type is WSMsgType.PING:
                await self._socket.pong(message.data)

    async def _take(self, data: str | bytes) -> None:
        try:
            message = _decoder.decode(data)
            typed = _typed(message) if isinstance(message, models.TerminalInput) else b""
        except (msgspec.MsgspecError, UnicodeError, binascii.Error, RecursionError, ValueError) as error:
            raise BadMessageError(str(error)) from error
        if isinstance(message, models.TerminalInput):
            await self._attached.send_input(typed)
            return
        with suppress(SandptyError):  # windows are dragged to nothing by accident
            self.resized.clear()
            try:
                await self._attached.resize(message.cols, message.rows)
                await self._ping()
            except SandptyError:
                self.resized.set()
                raise

    async def _ping(self) -> None:
        self._pings += 1
        self._answered.clear()
        await self._attached.ping(self._pings)

    def _ponged(self, token: int) -> None:
        if token == self._pings:
            self.resized.set()
            self._answered.set()

    async def _settle(self) -> None:
        """The client is gone: what it typed before still goes to the program. The agent answers when all is taken.

        Output that comes meanwhile is not acknowledged: the client that comes back has not seen it.
        """
        with suppress(SandptyError, TimeoutError):
            async with asyncio.timeout(config.HYPERBROWSER_SETTLE_S):
                await self._ping()
                while not self._answered.is_set():
                    event = await self._attached.receive()
                    if isinstance(event, Pong):
                        self._ponged(event.token)

    # --- life ------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Ping a client that is silent; ConnectionResetError when it is still silent after that.

        A client that does not read is alive as long as its host says so, and is left alone: its silence may be long.
        """
        before, asked = (-1, -1), False
        while True:
            await asyncio.sleep(config.WS_HEARTBEAT_S)
            unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
            now = (self._heard, self._sent)
            silent = now == before and not unsent and not self._taking
            if silent and asked:
                raise ConnectionResetError("the client shows no sign of life")
            before, asked = now, silent
            if silent:
                await self._socket.ping()

    async def _close(self, error: BaseException | None) -> None:
        """Say goodbye, and wait until the client has read everything and does so too."""
        code, text = WSCloseCode.OK.value, ""
        if self._going_away:
            code, text = WSCloseCode.GOING_AWAY.value, "the server stops; attach again"
        elif isinstance(error, ConnectionError):
            self._abort()
            return
        elif isinstance(error, BadMessageError):
            code, text = WSCloseCode.UNSUPPORTED_DATA.value, f"bad message: {error}"
        elif isinstance(error, SandptyError):
            if error.reason.name in ("agent_unreachable", "sandbox_ended"):
                with suppress(ConnectionError, RuntimeError):
                    await self._say_exit(None)
            else:
                code, text = error.reason.ws_close, f"{error.reason.name}: {error.message}"
        elif error is not None:
            incident = secrets.token_hex(6)
            log.error("incident %s: terminal socket failed", incident, exc_info=error)
            code, text = WSCloseCode.INTERNAL_ERROR.value, f"internal error, incident {incident}"
        message = text.encode("utf-8", "replace")[: config.WS_CLOSE_TEXT_BYTES].decode("utf-8", "ignore").encode()
        try:
            async with asyncio.timeout(config.HYPERBROWSER_CLOSE_S):
                await self._socket.close(code=code, message=message)
        except (TimeoutError, ConnectionError):
            self._abort()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _typed(message: models.TerminalInput) -> bytes:
    if message.encoding == "base64":
        return base64.b64decode(message.data, validate=True)
    return message.data.encode()
