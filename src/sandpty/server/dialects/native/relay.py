"""What runs between one client's WebSocket and one attachment.

Each binary message is `u8 type, payload`: an agent frame without its length. Two loops, each awaiting its own side, so
the kernel's flow control is the backpressure in both directions: the client's socket slows the agent's reader, the
program's input slows the client. Nothing is queued here. A third loop looks for signs of life.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import struct
from typing import cast

from aiohttp import WSCloseCode, WSMsgType, web

from sandpty import config
from sandpty.server.websocket_input import TakingSocket
from sandpty.server.websocket_output import keep_little_unsent, write_binary
from sandpty.terminal.attachment import Attachment
from sandpty.wire import frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import AgentErrorCode, Cursor, FrameError, FrameType, Target

log = logging.getLogger(__name__)
_WRITING = frozenset((FrameType.INPUT, FrameType.RESIZE, FrameType.SIGNAL, FrameType.CLOSE_STDIN))
_ENDS = frozenset((WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED))
_INPUT = int(FrameType.INPUT)
_INPUT_HEADER_BYTES = 9  # u8 type, u64 offset
_U64 = struct.Struct("<Q")
_SIZE = struct.Struct("<HH")
_SIGNAL = struct.Struct("<BB")


class Relay:
    def __init__(
        self,
        socket: TakingSocket,
        attached: Attachment,
        *,
        may_write: bool = True,
        client_acks: bool,
    ) -> None:
        self._socket = socket
        self._transport: asyncio.Transport | None = None
        self._attached = attached
        self._may_write = may_write
        self._client_acks = client_acks
        self._heard = 0  # messages from the client
        self._sent = 0  # events given to it
        self._taking = False  # the program holds the client's input back
        self._going_away = False
        self._revoked = False
        self._output_task: asyncio.Task[None] | None = None

    async def prepare(self, request: web.Request) -> None:
        """Upgrade the connection, if nobody has yet."""
        if not self._socket.prepared:
            await self._socket.prepare(request)
        self._transport = request.transport
        keep_little_unsent(self._transport)

    def cut(self) -> None:
        """The sandbox is gone or stands still."""
        self._attached.close()

    def go_away(self) -> None:
        """The server stops: say so, so that the client attaches to the next one. Does nothing when already ending."""
        self._going_away = True
        if self._output_task is not None:
            self._output_task.cancel()

    def key_revoked(self) -> None:
        """Whoever attached with it is let in no more: nothing is carried from now on."""
        self._revoked = True
        self._may_write = False
        if self._output_task is not None:
            self._output_task.cancel()

    async def run(self) -> None:
        """Until the process has ended, either side is gone, or the client breaks the protocol."""
        output = self._output_task = asyncio.create_task(self._output(), name="attachment-output")
        input_ = asyncio.create_task(self._input(), name="attachment-input")
        beat = asyncio.create_task(self._beat(), name="attachment-beat")
        tasks = (output, input_, beat)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            ended = next(task for task in tasks if task.done())  # what the agent said last goes first
        finally:
            self._socket.take = None
            # Nobody else may be reading the WebSocket while it is closed, else its closing handshake is skipped.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._revoked:
            await self._close(SandptyError("unauthenticated", "the API key was revoked"))
        elif self._going_away:
            await self._socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops; attach again")
        else:
            await self._close(ended.exception())

    def leave(self) -> None:
        """A client that has not taken everything by now never will: keep neither its bytes nor its socket."""
        if self._transport is not None and self._transport.get_write_buffer_size():
            self._transport.abort()

    async def _output(self) -> None:
        """Agent to client, until EXIT or a loss."""
        send = self._socket.send_bytes
        await send(frames.message(self._attached.info))
        self._attached.take_at_once(self._output_at_once)
        while self._attached.exit is None:
            await send(cast(bytes, await self._attached.receive_message()))  # a memoryview does as well
            self._sent += 1
            if not self._client_acks:
                self._attached.acknowledge()

    def _output_at_once(self, message: bytes | memoryview) -> bool:
        """What has just come in while `_output` waits for it; whether the client takes more without waiting."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._socket.closed:
            return False
        write_binary(transport, message)
        self._sent += 1
        if not self._client_acks:
            self._attached.acknowledge()
        return transport.get_write_buffer_size() <= config.CLIENT_UNSENT_BYTES

    async def _close(self, error: BaseException | None) -> None:
        if error is None:
            await self._socket.close(code=WSCloseCode.OK)
        elif isinstance(error, ConnectionError):
            self._abort()
        else:
            await close_with(self._socket, error)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _beat(self) -> None:
        """Ping a silent client; raise ConnectionResetError when it shows no sign of life after that.

        Input it sent, output it took and bytes that left our buffer are signs. While the program takes no input its
        messages, and so its pongs, are not read: then silence says nothing.
        """
        before: tuple[int, int, int] | None = None
        asked = False
        while True:
            await asyncio.sleep(config.WS_HEARTBEAT_S / 2)
            unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
            now = (self._heard, self._sent, unsent)
            silent = now == before
            if silent and asked and not self._taking:
                raise ConnectionResetError("the client shows no sign of life")
            before, asked = now, silent
            if silent and not unsent:
                await self._socket.ping()  # also shows whether the connection still exists

    def _take_at_once(self, message: bytes) -> bool:
        """A key that has just come in, as long as nothing before it waits. Without a turn of the event loop."""
        if self._taking or not self._is_input(message) or not self._attached.relay_input_at_once(message):
            return False
        self._heard += 1
        return True

    def _is_input(self, message: bytes) -> bool:
        """Whether it is an INPUT that can be passed on as it is."""
        size = len(message)
        return _INPUT_HEADER_BYTES < size <= config.INPUT_CHUNK_BYTES and message[0] == _INPUT and self._may_write

    async def _input(self) -> None:
        """Client to agent, until the client goes away or breaks the protocol."""
        self._socket.take = self._take_at_once
        while (message := await self._socket.receive()).type not in _ENDS:
            self._heard += 1
            if message.type is WSMsgType.BINARY:
                self._taking = True
                try:
                    await self._take(message.data)
                except FrameError as error:
                    raise SandptyError("bad_frame", str(error)) from error
                self._taking = False
            elif message.type is WSMsgType.PING:
                await self._socket.pong(message.data)
            elif message.type is WSMsgType.TEXT:
                raise SandptyError("bad_frame", "messages are binary frames; this one was text")

    async def _take(self, data: bytes) -> None:
        if not data:
            raise FrameError("an empty message is no frame")
        if self._is_input(data):
            await self._attached.relay_input(data)
            return
        kind = data[0]
        cursor = Cursor(memoryview(data)[1:])
        if kind in _WRITING and not self._may_write:
            # The agent refuses too, but the agent lives with the guest and is not who guards a viewer's role.
            await self._refuse(AgentErrorCode.READ_ONLY, "this attachment may only read")
            return
        match kind:
            case FrameType.INPUT:
                (offset,) = cursor.take(_U64)
                await self._attached.send_input(cursor.rest(), offset)
            case FrameType.RESIZE:
                await self._resize(*_fields(cursor, _SIZE))
            case FrameType.SIGNAL:
                target, number_ = _fields(cursor, _SIGNAL)
                if target > Target.TREE or not 1 <= number_ <= config.SIGNAL_MAX:
                    raise FrameError("there is no such signal or target")
                await self._attached.signal(number_, Target(target))
            case FrameType.CLOSE_STDIN:
                cursor.finish()
                await self._attached.close_stdin()
            case FrameType.ACK:
                self._attached.ack(*_fields(cursor, _U64))
            case FrameType.PING:
                await self._attached.ping(*_fields(cursor, _U64))
            case _:
                raise FrameError(f"a client does not send frames of type 0x{kind:02x}")

    async def _refuse(self, code: AgentErrorCode, message: str) -> None:
        await self._socket.send_bytes(frames.message(frames.AgentError(code, message)))

    async def _resize(self, cols: int, rows: int) -> None:
        """A bad size is answered, not punished: windows are dragged to nothing by accident."""
        try:
            await self._attached.resize(cols, rows)
        except SandptyError as error:
            if error.reason.name != "bad_window_size":
                raise
            await self._refuse(AgentErrorCode.BAD_ARGUMENT, error.message)


async def close_with(socket: web.WebSocketResponse, error: BaseException) -> None:
    """Say goodbye with an error: its code is 4000 + the HTTP status, its text begins with the reason's name."""
    if not isinstance(error, SandptyError):
        incident = secrets.token_hex(6)
        log.error("incident %s: attachment failed", incident, exc_info=error)
        error = SandptyError("internal", f"the server's log has it under incident {incident}")
    text = f"{error.reason.name}: {error.message}".encode("utf-8", "replace")[: config.WS_CLOSE_TEXT_BYTES]
    await socket.close(code=error.reason.ws_close, message=text.decode("utf-8", "ignore").encode())


def _fields(cursor: Cursor, fields: struct.Struct) -> tuple[int, ...]:
    """All of a frame's fields, before anything is done with them. Raises FrameError."""
    values = cursor.take(fields)
    cursor.finish()
    return values
