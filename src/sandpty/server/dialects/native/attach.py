"""The WebSocket of one attachment. Each binary message is `u8 type, payload`: an agent frame without its length.

Two loops, each awaiting its own side, so the kernel's flow control is the backpressure in both directions: the client's
socket slows the agent's reader, the program's input slows the client. Nothing is queued here.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import replace

from aiohttp import WSCloseCode, WSMsgType, web

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.native.answers import answering, number, principal
from sandpty.server.dialects.native.processes import selector
from sandpty.terminal import attachment
from sandpty.terminal.attachment import Attachment
from sandpty.wire import frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import AgentErrorCode, Attach, Cursor, Exit, FrameError, FrameType, From, Target

_WRITING = frozenset((FrameType.INPUT, FrameType.RESIZE, FrameType.SIGNAL, FrameType.CLOSE_STDIN))
_U64 = struct.Struct("<Q")
_SIZE = struct.Struct("<HH")
_SIGNAL = struct.Struct("<BB")


class Attaching:
    def __init__(self, context: Context) -> None:
        self._context = context

    def _request(self, request: web.Request) -> Attach:
        origin = request.query.get("from", "continue").upper()
        mode = request.query.get("mode", "rw")
        if origin not in From.__members__:
            raise SandptyError("bad_request", "from must be offset, tail, continue, end or screen")
        if mode not in ("rw", "ro"):
            raise SandptyError("bad_request", "mode must be rw or ro")
        return Attach(
            selector(request),
            may_write=mode == "rw",
            origin=From[origin],
            value=number(request, "value", 0, 2**63),
            window=number(request, "window", 0, 2**31),
            stall_ms=number(request, "stall_ms", 0, frames.NEVER_MS),
        )

    @answering
    async def attach(self, request: web.Request) -> web.StreamResponse:
        """Errors before the upgrade are HTTP answers; after it, close codes 4000 + status."""
        who = principal(self._context, request)
        sandbox = self._context.registry.running(request.match_info["sandbox"], who)
        wanted = self._request(request)
        client_acks = wanted.window > 0
        if not client_acks:
            wanted = replace(wanted, window=config.ATTACH_WINDOW_BYTES)
        async with await attachment.attach(sandbox.socket, wanted) as attached:
            socket = web.WebSocketResponse(
                heartbeat=config.WS_HEARTBEAT_S, max_msg_size=frames.MAX_FRAME_BYTES, compress=False
            )
            await socket.prepare(request)
            with self._context.registry.cutting(sandbox.id, attached.close):
                await _Relay(socket, attached, wanted, client_acks=client_acks).run()
            return socket


class _Relay:
    def __init__(
        self, socket: web.WebSocketResponse, attached: Attachment, wanted: Attach, *, client_acks: bool
    ) -> None:
        self._socket = socket
        self._attached = attached
        self._may_write = wanted.may_write
        self._client_acks = client_acks

    async def run(self) -> None:
        output = asyncio.create_task(self._output(), name="attachment-output")
        try:
            await self._input()
        except (SandptyError, ConnectionError) as error:
            output.cancel()
            await self._close(error)
        finally:
            output.cancel()
            await asyncio.gather(output, return_exceptions=True)

    async def _output(self) -> None:
        """Agent to client, until EXIT or a loss."""
        send = self._socket.send_bytes
        try:
            info = self._attached.info
            await send(frames.message(info))
            while True:
                event = await self._attached.receive()
                await send(frames.message(event))
                if isinstance(event, Exit):
                    await self._socket.close(code=WSCloseCode.OK, message=b"exit")
                    return
                if not self._client_acks:
                    self._attached.acknowledge()
        except (SandptyError, ConnectionError) as error:
            await self._close(error)

    async def _close(self, error: SandptyError | ConnectionError) -> None:
        with contextlib.suppress(ConnectionError):
            if isinstance(error, SandptyError):
                text = f"{error.reason.name}: {error.message}".encode()[: config.WS_CLOSE_TEXT_BYTES]
                text = text.decode("utf-8", "ignore").encode()
                await self._socket.close(code=error.reason.ws_close, message=text)
            else:
                await self._socket.close()

    async def _input(self) -> None:
        """Client to agent, until the client goes away or breaks the protocol."""
        async for message in self._socket:
            if message.type is WSMsgType.BINARY:
                try:
                    await self._take(message.data)
                except FrameError as error:
                    raise SandptyError("bad_frame", str(error)) from error
            elif message.type is WSMsgType.TEXT:
                raise SandptyError("bad_frame", "messages are binary frames; this one was text")

    async def _take(self, data: bytes) -> None:
        if not data:
            raise FrameError("an empty message is no frame")
        kind, cursor = data[0], Cursor(memoryview(data)[1:])
        if kind in _WRITING and not self._may_write:
            # The agent refuses too, but the agent lives with the guest and is not who guards a viewer's role.
            refusal = frames.AgentError(AgentErrorCode.READ_ONLY, "this attachment may only read")
            await self._socket.send_bytes(frames.message(refusal))
            return
        match kind:
            case FrameType.INPUT:
                (offset,) = cursor.take(_U64)
                await self._attached.send_input(cursor.rest(), offset)
            case FrameType.RESIZE:
                cols, rows = cursor.take(_SIZE)
                await self._resize(cols, rows)
            case FrameType.SIGNAL:
                target, number_ = cursor.take(_SIGNAL)
                if target > Target.TREE or not 1 <= number_ <= config.SIGNAL_MAX:
                    raise FrameError("there is no such signal or target")
                await self._attached.signal(number_, Target(target))
            case FrameType.CLOSE_STDIN:
                await self._attached.close_stdin()
            case FrameType.ACK:
                (offset,) = cursor.take(_U64)
                self._attached.ack(offset)
            case FrameType.PING:
                (token,) = cursor.take(_U64)
                await self._attached.ping(token)
            case _:
                raise FrameError(f"a client does not send frames of type 0x{kind:02x}")
        cursor.finish()

    async def _resize(self, cols: int, rows: int) -> None:
        """A bad size is answered, not punished: windows are dragged to nothing by accident."""
        try:
            await self._attached.resize(cols, rows)
        except SandptyError as error:
            if error.reason.name != "bad_window_size":
                raise
            await self._socket.send_bytes(frames.message(frames.AgentError(AgentErrorCode.BAD_ARGUMENT, error.message)))
