"""An attachment that outlives its connections: it resumes output by offset, and types nothing twice.

Input is kept until the agent took it: a PING sent after it comes back once it was. After a reconnect the agent's count
of input says how much of it arrived; only the rest is sent again, numbered. While all is well input goes out without
offsets, because the count is the process's: with offsets, what another viewer typed meanwhile would swallow ours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TypeAlias

from sandpty.sdk._async.attachment import AsyncAttachment
from sandpty.sdk._async.client import AsyncClient
from sandpty.sdk._async.patience import LOST, RECONNECT_TIMEOUT_S, AsyncPatience
from sandpty.sdk._awaiting import AsyncEvent, AsyncLock
from sandpty.sdk.values import WindowSize
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import NO_OFFSET, AgentError, Attached, Exit, From, Gap, InputAck, Output, Pong, Resized

TerminalEvent: TypeAlias = Output | Gap | Resized | Exit | AgentError

# Input on the way and not known to be taken. Below what the agent lets wait (64 KiB), so that a program that reads
# nothing never keeps the server from answering heartbeats on this connection.
INPUT_WINDOW_BYTES = 32 * 1024
INPUT_KEPT_BYTES = 1024 * 1024  # above it send_input waits


class AsyncTerminal:
    """A process of a sandbox, read and typed to across lost connections and restarts of the server.

    Enter it with `async with`, then iterate: `Output`, `Gap` (output that is really lost: the log no longer held it),
    `Resized`, `Exit` (the last), `AgentError` (input that the program did not take). One task iterates, others may call
    `send_input` and `resize`. `on_connection` is told False when the connection is lost and True when it is back. After
    `reconnect_timeout_s` without a connection iterating raises `server_unreachable`.

    `process`: our id, `pid:<guest pid>` or `tag:<tag>`; or what `AsyncClient.start_attached` gave: that is started when
    this is entered, and read from its first byte.
    """

    def __init__(
        self,
        client: AsyncClient,
        sandbox_id: str,
        process: int | str | AsyncAttachment,
        *,
        origin: From = From.SCREEN,
        value: int = 0,
        read_only: bool = False,
        reconnect_timeout_s: float = RECONNECT_TIMEOUT_S,
        on_connection: Callable[[bool], None] | None = None,
    ) -> None:
        self._client = client
        self._sandbox_id = sandbox_id
        self._read_only = read_only
        self._reconnect_timeout_s = reconnect_timeout_s
        self._on_connection = on_connection or (lambda connected: None)
        if isinstance(process, AsyncAttachment):
            self._process: int | str = ""  # known when it was started
            self._attachment = process
        else:
            self._process = process
            self._attachment = self._view(origin, value)
        self._connected = False
        self._closed = False
        self._size: WindowSize | None = None
        self._unsent_size = False
        self._input_ended = False
        self._end_sent = False
        # Positions in what was given to send_input: _taken <= _sent <= _taken + len(_kept). Changed under _sending.
        self._kept = bytearray()
        self._taken = 0
        self._sent = 0
        self._resend_to = 0  # input below it is sent again, with offsets
        self._base = 0  # the agent's count of input when _taken was 0
        self._pinged = False
        self._sending = AsyncLock()
        self._room = AsyncEvent()
        self._room.set()

    @property
    def position(self) -> int:
        """The offset of the next output."""
        return self._attachment.position

    @property
    def info(self) -> Attached:
        """What was attached to, as of the present connection."""
        return self._attachment.info

    def _view(self, origin: From, value: int) -> AsyncAttachment:
        return self._client.attach(
            self._sandbox_id, self._process, origin=origin, value=value, read_only=self._read_only
        )

    async def open(self) -> None:
        """Connect for the first time: what fails here is raised, not tried again."""
        await self._attachment.open()
        self._process = self._attachment.info.process  # a tag or a pid may be another's by the next connection
        self._base = self._attachment.info.input
        self._connected = True

    async def close(self) -> None:
        """Detach. The process goes on; who iterates comes to the end."""
        self._closed = True
        self._connected = False
        self._room.set()
        await self._attachment.close()

    async def __aenter__(self) -> AsyncTerminal:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[TerminalEvent]:
        while not self._closed:
            try:
                event = await self._attachment.receive()
            except SandptyError as error:
                if self._closed:
                    return
                if error.reason.name not in LOST:
                    raise
                await self._reconnect(error)
                continue
            match event:
                case Pong(token):
                    await self._was_taken(token)
                case InputAck():
                    pass
                case Exit():
                    self._connected = False
                    await self._attachment.close()
                    yield event
                    return
                case _:
                    yield event

    # --- input -------------------------------------------------------------------------------------------------------

    async def send_input(self, data: bytes) -> None:
        """Type `data`. Returns when it is on its way or kept for the next connection; waits while too much is kept."""
        await self._room.wait()
        async with self._sending:
            self._kept += data
            if len(self._kept) >= INPUT_KEPT_BYTES and not self._closed:
                self._room.clear()
            await self._flush()

    async def close_stdin(self) -> None:
        """End of input, after all that was sent. For a process with pipes."""
        async with self._sending:
            self._input_ended = True
            await self._flush()

    async def resize(self, size: WindowSize) -> None:
        """Set the window size, now or with the next connection; it takes its place among the inputs."""
        async with self._sending:
            self._size, self._unsent_size = size, True
            await self._flush()

    async def _flush(self) -> None:
        """Send what there is and the window allows. A lost connection is the iterating task's to find."""
        if not self._connected:
            return
        try:
            await self._send_waiting()
        except SandptyError as error:
            if error.reason.name not in LOST:
                raise

    async def _send_waiting(self) -> None:
        if self._unsent_size and self._size is not None and not self._read_only:
            self._unsent_size = False
            await self._attachment.resize(cols=self._size.cols, rows=self._size.rows)
        while (room := self._taken + INPUT_WINDOW_BYTES - self._sent) > 0:
            at = self._sent - self._taken
            again = self._resend_to - self._sent
            chunk = bytes(self._kept[at : at + (min(room, again) if again > 0 else room)])
            if not chunk:
                break
            offset = self._base + self._sent if again > 0 else NO_OFFSET
            self._sent += len(chunk)  # before the await: if it fails, what counts is what the agent says it took
            await self._attachment.send_input(chunk, offset)
        if self._input_ended and not self._end_sent and self._sent == self._taken + len(self._kept):
            self._end_sent = True
            await self._attachment.close_stdin()
        if self._sent > self._taken and not self._pinged:
            self._pinged = True
            await self._attachment.ping(self._sent)

    async def _was_taken(self, position: int) -> None:
        async with self._sending:
            self._pinged = False
            self._forget_input(min(position, self._sent))
            await self._flush()

    def _forget_input(self, position: int) -> None:
        if position > self._taken:
            del self._kept[: position - self._taken]
            self._taken = position
        if len(self._kept) < INPUT_KEPT_BYTES:
            self._room.set()

    # --- reconnecting ------------------------------------------------------------------------------------------------

    async def _reconnect(self, cause: SandptyError) -> None:
        position = self._attachment.position
        self._connected = False
        await self._attachment.close()
        self._on_connection(False)
        patience = AsyncPatience(self._reconnect_timeout_s)
        while not self._closed:
            await patience.pause(cause)
            attachment = self._view(From.OFFSET, position)
            try:
                await attachment.open()
            except SandptyError as error:
                if error.reason.name == "no_such_sandbox":  # it was there when we entered
                    raise SandptyError("sandbox_ended", f"the sandbox {self._sandbox_id} has ended") from error
                if error.reason.name not in LOST:
                    raise
                cause = error
                continue
            break
        else:
            return
        async with self._sending:
            self._resume(attachment)
            self._on_connection(True)
            await self._flush()

    def _resume(self, attachment: AsyncAttachment) -> None:
        arrived = min(max(attachment.info.input - self._base, self._taken), self._sent)
        self._resend_to = max(self._resend_to, self._sent)
        self._forget_input(arrived)
        self._sent = arrived
        self._base = attachment.info.input - arrived
        self._pinged = False
        self._unsent_size = self._size is not None
        self._end_sent = False  # saying it again does no harm
        self._attachment = attachment
        self._connected = True
