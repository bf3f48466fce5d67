"""One connection to an agent: frames out, frames in, with backpressure both ways.

The agent lives among hostile guests. Whatever it sends, this module raises SandptyError (`agent_unreachable` when the
connection is gone, `agent_misbehaved` when it breaks the protocol) and holds at most AGENT_BUFFER_BYTES, one frame and
what one read of the socket brings. Frames are cut from those bytes only when somebody asks for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar, cast

from sandpty import config
from sandpty.wire import frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import AgentError, AgentErrorCode, FrameError, FrameType, FromAgent, Hello

T = TypeVar("T")
_LENGTH = struct.Struct("<I")
_READ_BYTES = 64 * 1024
_OUTPUT = int(FrameType.OUTPUT)
_REASONS: dict[int, str] = {
    AgentErrorCode.BAD_FRAME: "bad_frame",
    AgentErrorCode.UNSUPPORTED_VERSION: "agent_unreachable",
    AgentErrorCode.NO_SUCH_PROCESS: "no_such_process",
    AgentErrorCode.NO_SUCH_USER: "no_such_user",
    AgentErrorCode.BAD_CWD: "bad_cwd",
    AgentErrorCode.START_FAILED: "start_failed",
    AgentErrorCode.NOT_A_PTY: "not_a_pty",
    AgentErrorCode.NOT_A_PIPE: "not_a_pipe",
    AgentErrorCode.STDIN_CLOSED: "stdin_closed",
    AgentErrorCode.EXITED: "exited",
    AgentErrorCode.LIMIT: "limit",
    AgentErrorCode.TIMEOUT: "timeout",
    AgentErrorCode.READ_ONLY: "read_only",
    AgentErrorCode.BAD_ARGUMENT: "bad_argument",
    AgentErrorCode.INTERNAL: "internal",
}


def agent_error(error: AgentError) -> SandptyError:
    """An ERROR frame as an exception. The message is the agent's, cut to 500 characters and fit for JSON."""
    text = error.message[:500].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return SandptyError(_REASONS.get(error.code, "internal"), text)


async def _connect(
    loop: asyncio.AbstractEventLoop, protocol: type[AgentConnection], path: str
) -> tuple[asyncio.BaseTransport, AgentConnection]:
    """A unix socket is connected at once or not at all: asked for directly, it costs no turn of the event loop."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except BlockingIOError:  # the agent has not accepted its backlog yet
        sock.close()
        return await loop.create_unix_connection(protocol, path)
    except BaseException:
        sock.close()
        raise
    return await loop.create_unix_connection(protocol, sock=sock)


class AgentConnection(asyncio.Protocol):
    """Open with `await AgentConnection.open(path)`; close with `close()` or `async with`."""

    def __init__(self) -> None:
        self._reader = frames.FrameReader()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._latest = b""  # waits for a slow agent; see send_latest
        self._reading = True
        self._turn = 0  # frames given out since others last had their turn
        self._failure: SandptyError | None = None
        self.hello: Hello | None = None
        # Called with output that comes in while somebody waits in `receive_message`, who is not woken for it. It says
        # whether it would take more; if not, what comes next is for `receive_message`.
        self.take: Callable[[bytes | memoryview], bool] | None = None
        self._taking: Callable[[bytes | memoryview], bool] | None = None  # the same, while it may be called

    @classmethod
    async def open(cls, path: str, first: bytes = b"") -> AgentConnection:
        """Connect, say HELLO and `first` in one write, and wait for the agent's HELLO.

        Raises SandptyError: agent_unreachable, agent_misbehaved.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(config.AGENT_CONNECT_TIMEOUT_S):
                _, connection = await _connect(loop, cls, path)
        except (OSError, TimeoutError) as error:
            raise SandptyError("agent_unreachable", "the sandbox does not answer; is it still running?") from error
        try:
            connection.send(frames.encode_hello() + first)
            hello = await connection.reply(config.AGENT_CONNECT_TIMEOUT_S)
            if not isinstance(hello, Hello) or hello.version != frames.PROTOCOL_VERSION:
                raise SandptyError("agent_misbehaved", "the agent does not speak this protocol version")
        except BaseException:
            connection.close()
            raise
        connection.hello = hello
        return connection

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        transport.set_write_buffer_limits(high=config.CLIENT_WRITE_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        if self._taking is not None and (message := self._reader.alone(data)) and message[0] == _OUTPUT:
            if not self._taking(message):
                self._taking = None
            return
        self._reader.push(data)
        if self._taking is not None:
            self._offer(self._taking)
        if not self._reader.ready:
            return
        if self._reader.held_bytes > config.AGENT_BUFFER_BYTES:
            self._pause()
        self._wake()

    def _offer(self, take: Callable[[bytes | memoryview], bool]) -> None:
        """What else has come is left for who waits."""
        for _ in range(config.AGENT_FRAMES_PER_TURN):
            if self._reader.broken or (message := self._reader.pop_message(_OUTPUT)) is None:
                return
            if not take(message):
                self._taking = None
                return

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self._failure is None:
            self._rescue()
        if self._failure is None:
            self._failure = SandptyError("agent_unreachable", "the connection to the sandbox was lost")
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)
        latest, self._latest = self._latest, b""
        if latest and self._failure is None:
            self.send(latest)

    # --- ours ---

    def _rescue(self) -> None:
        """Take what the agent said before it closed, and the kernel still holds.

        An ACK that crosses the agent's EXIT fails to be written, and the event loop then gives the socket up unread.
        """
        assert self._transport is not None
        descriptor = self._transport.get_extra_info("socket").fileno()
        with contextlib.suppress(OSError):  # nothing there any more
            for _ in range(config.AGENT_RESCUE_READS):
                if not (data := os.read(descriptor, _READ_BYTES)):
                    break
                self._reader.push(data)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: SandptyError) -> None:
        """Cut the agent off: who receives is told `error`."""
        if self._failure is None:
            self._failure = error
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _pause(self) -> None:
        if self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def _resume(self) -> None:
        if not self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    @property
    def pending(self) -> bool:
        """Whether `receive` would answer at once."""
        return self._reader.ready

    async def receive(self) -> FromAgent:
        """The next frame, decoded. What arrived before a loss is delivered before the loss is raised."""
        kind, payload = await self.receive_frame()
        try:
            return frames.decode(kind, payload)
        except FrameError as error:
            raise self._misbehaved(error) from error

    async def receive_frame(self) -> tuple[int, bytes]:
        """The next frame's type and payload, for who passes frames on. As `receive` in all else."""
        return await self._next(self._reader.pop)

    async def receive_message(self) -> bytes | memoryview:
        """The next frame as a message of the native dialect: type and payload in one. As `receive` in all else."""
        return await self._next(self._reader.pop_message)

    async def _next(self, pop: Callable[[], T | None]) -> T:
        self._turn += 1
        if self._turn >= config.AGENT_FRAMES_PER_TURN:  # a flood of tiny frames is no reason for others to wait
            self._turn = 0
            await asyncio.sleep(0)
        try:
            while (found := pop()) is None:
                if self._failure is not None:
                    raise self._failure
                self._resume()
                self._turn = 0
                self._waiter = asyncio.get_running_loop().create_future()
                self._taking = self.take
                try:
                    await self._waiter
                finally:
                    self._taking = None
            if not self._reading and self._reader.held_bytes <= config.AGENT_BUFFER_BYTES // 2:
                self._resume()
            return found
        except FrameError as error:
            raise self._misbehaved(error) from error

    def _misbehaved(self, error: FrameError) -> SandptyError:
        failure = SandptyError("agent_misbehaved", str(error))
        self.fail(failure)
        return failure

    async def reply(self, timeout_s: float | None) -> FromAgent:
        """The answer to a request; None waits for it without limit.

        Raises SandptyError: what an ERROR frame says, agent_unreachable when nothing comes in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self.receive()
        except TimeoutError as error:
            raise SandptyError("agent_unreachable", f"no answer from the sandbox within {timeout_s:g} s") from error
        if isinstance(answer, AgentError):
            raise agent_error(answer)
        return answer

    def send(self, data: bytes) -> None:
        """Queue frames for the agent. Follow with `drain` unless they are few and small."""
        if self._failure is not None or self._transport is None:
            raise self._failure or SandptyError("agent_unreachable", "the connection to the sandbox was lost")
        self._transport.write(data)

    def send_message(self, message: bytes) -> None:
        """As `send`, for a frame that a client sent as a WebSocket message (type and payload)."""
        self.send(_LENGTH.pack(len(message)) + message)

    def send_message_at_once(self, message: bytes) -> bool:
        """As `send_message` when a `drain` after it would neither wait nor raise. Else False, and nothing is sent."""
        if self._failure is not None or self._writable is not None or self._transport is None:
            return False
        self._transport.write(_LENGTH.pack(len(message)) + message)
        return True

    def send_latest(self, data: bytes) -> None:
        """Send a frame that makes earlier ones of its kind needless: while the agent does not read, only the newest
        is kept.
        """
        if self._writable is not None:
            self._latest = data
        else:
            self.send(data)

    async def drain(self) -> None:
        """Wait until the agent has taken enough; raises the connection's failure."""
        writable = self._writable
        if writable is not None:
            await asyncio.shield(writable)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Close at once; what was received stays readable, what was typed is sent if the agent takes it in time.

        Safe to repeat.
        """
        if self._failure is None:
            self._failure = SandptyError("agent_unreachable", "the connection to the sandbox was closed")
        transport = self._transport
        if transport is not None and not transport.is_closing():
            unsent = transport.get_write_buffer_size()
            transport.close()
            if unsent:  # an agent that never reads must not keep the socket
                asyncio.get_running_loop().call_later(config.AGENT_CLOSE_GRACE_S, transport.abort)
        self._wake()
        self.resume_writing()

    async def __aenter__(self) -> AgentConnection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
