"""One client on one process: output from an offset, input in order.

An attachment checks the agent's word: offsets must be contiguous and EXIT must stand at the end, else the agent is cut
off (`agent_misbehaved`). It holds no output of its own beyond the connection's bounded queue.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

from sandpty import config
from sandpty.terminal.connection import AgentConnection
from sandpty.wire import frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import (
    NO_OFFSET,
    AgentError,
    Attach,
    Attached,
    Exit,
    FrameError,
    FrameType,
    FromAgent,
    Gap,
    InputAck,
    Output,
    Pong,
    Resized,
    Start,
    Started,
    Target,
)

Event: TypeAlias = Output | Gap | Resized | Exit | InputAck | Pong | AgentError


class Attachment:
    """Made by `start` and `attach`. `info` says what was attached to; `position` is the offset of the next output."""

    def __init__(self, connection: AgentConnection, info: Attached) -> None:
        self._connection = connection
        # As `relay_input` where that would not wait. False: it would, or the connection is lost; nothing was done.
        self.relay_input_at_once = connection.send_message_at_once
        self.info = info
        self.position = info.start
        self.exit: Exit | None = None
        self._delivered = info.start
        self._acknowledged = info.start
        self._ack_timer: asyncio.TimerHandle | None = None

    @property
    def pending(self) -> bool:
        """Whether another event is here already (then a sender may coalesce)."""
        return self._connection.pending

    async def receive(self) -> Event:
        """The next event; after Exit there is none.

        Raises SandptyError: agent_unreachable when the connection is lost, agent_misbehaved on a broken law.
        """
        if self.exit is not None:
            raise SandptyError("exited", "the process has ended and everything was received")
        return self._taken(await self._connection.receive())

    async def receive_message(self) -> bytes | memoryview:
        """As `receive`, as a WebSocket message of the native dialect.

        Output is checked and passed on as it is: a third of what a key costs the server was to decode and encode it.
        """
        if self.exit is not None:
            raise SandptyError("exited", "the process has ended and everything was received")
        message = await self._connection.receive_message()
        if message[0] == FrameType.OUTPUT:
            self._check(message)
            return message
        try:
            return frames.message(self._taken(frames.decode(message[0], bytes(message[1:]))))
        except FrameError as error:
            raise self._misbehaved(str(error)) from error

    def take_at_once(self, take: Callable[[bytes | memoryview], bool]) -> None:
        """`take` is called with output that comes in while `receive_message` waits, as that would give it.

        It says whether it would take more; if not, what comes next is for `receive_message`.
        """

        def checked(message: bytes | memoryview) -> bool:
            try:
                start, end = frames.output_span(message, before=1)
                if start != self.position or end >= NO_OFFSET:
                    self._check(message)
                self.position = end
                return take(message)
            except FrameError as error:  # `receive_message` raises it, and the other
                self._misbehaved(str(error))
                return False
            except SandptyError:
                return False

        self._connection.take = checked

    def _check(self, message: bytes | memoryview) -> None:
        """Of an OUTPUT, and step over it."""
        try:
            start, end = frames.output_span(message, before=1)
        except FrameError as error:
            raise self._misbehaved(str(error)) from error
        self._expect(start)
        self._advance(end)

    def _taken(self, event: FromAgent) -> Event:
        match event:
            case Output():
                self._expect(event.offset)
                self._advance(event.offset + len(event.data))
            case Gap():
                self._expect(event.start)
                if event.end <= event.start:
                    raise self._misbehaved("a gap that ends before it starts")
                self._advance(event.end)
            case Exit():
                self._expect(event.end)
                self.exit = event
            case Resized() | InputAck() | Pong() | AgentError():
                pass
            case _:
                raise self._misbehaved(f"unexpected {type(event).__name__} on an attachment")
        return event

    def _expect(self, offset: int) -> None:
        if offset != self.position:
            raise self._misbehaved(f"offset {offset} where {self.position} was due")

    def _advance(self, offset: int) -> None:
        if offset >= NO_OFFSET:  # no log is that long, and ACK could not say it
            raise self._misbehaved(f"offset {offset} does not exist")
        self.position = offset

    def _misbehaved(self, what: str) -> SandptyError:
        error = SandptyError("agent_misbehaved", what)
        self._connection.fail(error)
        return error

    def ack(self, offset: int) -> None:
        """All output below `offset` is with the client: opens the window, and `continue` resumes from there."""
        self._connection.send_latest(frames.encode_ack(offset))

    def acknowledge(self) -> None:
        """ACK what was received: at once when much came since the last time, else within ACK_DELAY_S.

        Call it after each event went to the client. The delay keeps the ACK of a key's echo out of the way of the next
        key (it is a third of what a key costs), and one ACK then serves many small frames.
        """
        self._delivered = self.position
        due = self._delivered - self._acknowledged
        if due >= config.ACK_EVERY_BYTES:
            self._acknowledge_now()
        elif due and self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(config.ACK_DELAY_S, self._acknowledge_now)

    def _acknowledge_now(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._delivered > self._acknowledged:
            self._acknowledged = self._delivered
            with contextlib.suppress(SandptyError):  # lost; whoever receives next is told
                self.ack(self._delivered)

    async def send_input(self, data: bytes, offset: int = NO_OFFSET) -> None:
        """Type `data`; returns when the connection took it. A numbered input may be sent again after a reconnect."""
        for at in range(0, len(data), config.INPUT_CHUNK_BYTES):
            chunk = data[at : at + config.INPUT_CHUNK_BYTES]
            self._connection.send(frames.encode_input(chunk, NO_OFFSET if offset == NO_OFFSET else offset + at))
            await self._connection.drain()

    async def relay_input(self, message: bytes) -> None:
        """As `send_input`, for an INPUT of at most INPUT_CHUNK_BYTES as the client sent it (type and payload)."""
        self._connection.send_message(message)
        await self._connection.drain()

    async def resize(self, cols: int, rows: int) -> None:
        """Set the window size; takes its place among the inputs. Raises bad_window_size."""
        check_window_size(cols, rows)
        self._connection.send(frames.encode_resize(cols, rows))
        await self._connection.drain()

    async def signal(self, signal: int, target: Target = Target.GROUP) -> None:
        self._connection.send(frames.encode_signal(signal, target))
        await self._connection.drain()

    async def close_stdin(self) -> None:
        self._connection.send(frames.encode_close_stdin())
        await self._connection.drain()

    async def ping(self, token: int) -> None:
        self._connection.send(frames.encode_ping(token))
        await self._connection.drain()

    def close(self) -> None:
        """Detach. The process goes on."""
        self._acknowledge_now()
        self._connection.close()

    async def __aenter__(self) -> Attachment:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_window_size(cols: int, rows: int) -> None:
    """Raise bad_window_size unless both are 1 .. 10,000."""
    if not (1 <= cols <= frames.MAX_WINDOW_CELLS and 1 <= rows <= frames.MAX_WINDOW_CELLS):
        raise SandptyError("bad_window_size", f"{cols} x {rows} is not a window size: cols and rows go from 1 to 10000")


async def _attached(connection: AgentConnection) -> Attachment:
    reply = await connection.reply(config.AGENT_REPLY_TIMEOUT_S)
    if not isinstance(reply, Attached):
        raise SandptyError("agent_misbehaved", f"{type(reply).__name__} where ATTACHED was due")
    return Attachment(connection, reply)


def _encode_start(request: Start) -> bytes:
    try:
        return frames.encode_start(request)
    except frames.FrameError as error:
        raise SandptyError("too_large", f"arguments and environment are too big: {error}") from error


async def start(socket: str, request: Start) -> Attachment:
    """Start a process and attach to it from its first byte.

    Raises SandptyError: no_such_user, bad_cwd, start_failed, limit, too_large, agent_unreachable, agent_misbehaved.
    """
    connection = await AgentConnection.open(socket, _encode_start(request))
    try:
        reply = await connection.reply(config.AGENT_REPLY_TIMEOUT_S)
        if not isinstance(reply, Started):
            raise SandptyError("agent_misbehaved", f"{type(reply).__name__} where STARTED was due")
        return await _attached(connection)
    except BaseException:
        connection.close()
        raise


async def start_detached(socket: str, request: Start) -> Started:
    """Start a process without attaching (the caller sets StartFlags.REPLY_ONLY). Raises as `start`."""
    async with await AgentConnection.open(socket, _encode_start(request)) as connection:
        reply = await connection.reply(config.AGENT_REPLY_TIMEOUT_S)
        if not isinstance(reply, Started):
            raise SandptyError("agent_misbehaved", f"{type(reply).__name__} where STARTED was due")
        return reply


async def attach(socket: str, request: Attach) -> Attachment:
    """Attach to a process. Raises SandptyError: no_such_process, bad_argument (offset beyond the end), limit, ..."""
    connection = await AgentConnection.open(socket, frames.encode_attach(request))
    try:
        return await _attached(connection)
    except BaseException:
        connection.close()
        raise
