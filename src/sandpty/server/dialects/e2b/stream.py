"""One attachment carried to one client as process events: the body of a `Start` or `Connect` answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from aiohttp import web

from sandpty import config
from sandpty.server.delivery import ClientConnection, Delivery, chunked_bytes
from sandpty.server.dialects.e2b import events
from sandpty.server.dialects.e2b.connect import CORS_HEADERS, STREAM_TYPE, ConnectError, end_envelope
from sandpty.terminal.attachment import Attachment
from sandpty.wire.characters import incomplete_tail
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import Exit, ExitReason, Gap, Output, ProcessFlags, Stream

ACK_BYTES = config.ATTACH_WINDOW_BYTES // 4  # acknowledge at least this often, so that the window never runs dry


class EventStream:
    """Made before the attachment, so that a sandbox that ends meanwhile cuts it."""

    def __init__(self, request: web.Request, connection: ClientConnection, keepalive_s: float) -> None:
        self._request = request
        self._connection = connection
        self._keepalive_s = keepalive_s
        self._response = web.StreamResponse(
            headers={"Content-Type": STREAM_TYPE, "Cache-Control": "no-cache", **CORS_HEADERS}
        )
        self._loop = asyncio.get_running_loop()
        self._attachment: Attachment | None = None
        self._delivery = Delivery(connection, 0)
        self._acked = 0
        self._held = b""  # the beginning of a character whose rest has not come
        self._held_until = math.inf
        self._keepalive_at = math.inf
        self._ends_at = math.inf
        self._poll_s = config.DELIVERY_POLL_MIN_S
        self.was_cut = False
        self._reset = asyncio.Event()

    # --- from outside ---

    def cut(self) -> None:
        """The sandbox is gone or paused: reset the connection and end the attachment, as soon as it is known what
        arrived, so that the stream after a resume goes on from there."""
        self.was_cut = True
        self._cut_by(self._loop.time() + config.E2B_CUT_WAIT_S)

    def _cut_by(self, latest: float) -> None:
        arriving = self._delivery.pending and self._connection.undelivered_bytes > 0 and not self._connection.gone
        if arriving and self._loop.time() < latest:
            self._loop.call_later(config.E2B_CUT_POLL_S, self._cut_by, latest)
            return
        self._delivery.settle(cut=True)
        self._connection.reset()
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            self._tell(attachment)  # a frozen agent hears of it when it is thawed
            attachment.close()
        self._reset.set()

    async def is_reset(self) -> None:
        """Wait for the end of what `cut` began."""
        await self._reset.wait()

    @property
    def client_gone(self) -> bool:
        return self._connection.gone

    def detach(self) -> None:
        """Say what was delivered and let go of the process. Safe to repeat."""
        attachment, self._attachment = self._attachment, None
        if attachment is None:
            return
        self._delivery.settle()
        self._tell(attachment)
        attachment.close()

    @contextmanager
    def attached(self, attachment: Attachment, deadline_s: float | None) -> Iterator[None]:
        """Carry `attachment`; the stream ends `deadline_s` seconds from now (None: never)."""
        self._attachment = attachment
        self._delivery.offset = self._acked = attachment.info.start
        if deadline_s is not None:
            self._ends_at = self._loop.time() + deadline_s
        try:
            if self.was_cut:
                raise ConnectionResetError("the sandbox ended or was paused")
            yield
        finally:
            self.detach()

    # --- the stream ---

    async def carry(self, attachment: Attachment) -> None:
        """Events until the process ends. Raises ConnectError for any other end of the stream.

        Who watches a process die at its deadline is told of a timeout, which says why; who comes later gets the end
        event that is kept, which says how.
        """
        await self._open()
        await self._write(events.start_event(attachment.info.pid))
        self._keepalive_at = self._loop.time() + self._keepalive_s
        ran = bool(attachment.info.flags & ProcessFlags.RUNNING)
        said_anything = False
        while True:
            match await self._next(attachment):
                case Output(stream, _, data):
                    said_anything = True
                    await self._say(stream, data, attachment.position)
                    if attachment.position - self._acked >= ACK_BYTES or not attachment.pending:
                        self._acknowledge(attachment)
                case Gap(start, end):
                    await self._let_go(start)
                    # Before the first output the gap lies in the past: nobody was told of it and nobody can be. Later
                    # it breaks off what this client is reading, and must not pass for continuous output.
                    if said_anything:
                        raise ConnectError("data_loss", gap_text(end - start))
                case Exit() as status:
                    await self._let_go(status.end)
                    if ran and status.reason is ExitReason.DEADLINE:
                        raise ConnectError("deadline_exceeded", "the process was killed at its timeout")
                    await self._write(events.end_event(status), status.end)
                    return

    async def finish(self, error: ConnectError | None = None) -> None:
        """The end of the stream: how it went. Waits for as long as the client takes to read."""
        self._ends_at = math.inf
        await self._open()
        await self._write(end_envelope(error))
        await self._response.write_eof()

    @property
    def response(self) -> web.StreamResponse:
        return self._response

    async def _open(self) -> None:
        """Send the response's head, once. HTTP 200 whatever comes: JavaScript loses the message of any other status."""
        if not self._response.prepared:
            self._response.enable_chunked_encoding()
            await self._response.prepare(self._request)

    async def _next(self, attachment: Attachment) -> object:
        """The next event; meanwhile keepalives, late acknowledgements, and the deadline."""
        while True:
            now = self._loop.time()
            if now >= self._ends_at:
                raise ConnectError("deadline_exceeded", "the stream reached its timeout")
            if attachment.pending:
                return await attachment.receive()
            look_at = now + self._poll_s if self._delivery.pending else math.inf
            wake_at = min(self._keepalive_at, self._ends_at, self._held_until, look_at)
            try:
                async with asyncio.timeout_at(wake_at if wake_at < math.inf else None):
                    return await attachment.receive()
            except TimeoutError:
                self._acknowledge(attachment)
            if self._loop.time() >= self._held_until:
                await self._let_go(attachment.position)
            if self._loop.time() >= self._keepalive_at:
                await self._write(events.KEEPALIVE)
                self._keepalive_at = self._loop.time() + self._keepalive_s

    async def _say(self, stream: int, data: bytes, end: int) -> None:
        """One data event. A terminal's are cut between characters: the documents' samples decode each for itself."""
        if stream == Stream.PTY:
            data = self._held + data
            tail = incomplete_tail(data)
            self._held, data = data[len(data) - tail :], data[: len(data) - tail]
            self._held_until = self._loop.time() + config.CHARACTER_S if tail else math.inf
        if data:
            await self._write(events.data_event(stream, data), end - len(self._held))
            self._keepalive_at = self._loop.time() + self._keepalive_s

    async def _let_go(self, end: int) -> None:
        """The rest of the character does not come: half of one is still output."""
        held, self._held, self._held_until = self._held, b"", math.inf
        if held:
            await self._write(events.data_event(Stream.PTY, held), end)

    async def _write(self, envelope: bytes, offset: int | None = None) -> None:
        """One event, one write. Waits while the client does not read; the deadline ends that wait."""
        if self.was_cut:  # what a dying sandbox still says is not its processes' end
            await self.is_reset()
            raise ConnectionResetError("the sandbox ended or was paused")
        self._delivery.wrote(chunked_bytes(envelope), offset)
        if self._ends_at == math.inf:
            await self._response.write(envelope)
            return
        try:
            async with asyncio.timeout_at(self._ends_at):
                await self._response.write(envelope)
        except TimeoutError as error:
            raise ConnectError("deadline_exceeded", "the stream reached its timeout") from error

    def _acknowledge(self, attachment: Attachment) -> None:
        if self._delivery.advance():
            self._poll_s = config.DELIVERY_POLL_MIN_S
        else:
            self._poll_s = min(self._poll_s * 2, config.DELIVERY_POLL_MAX_S)
        self._tell(attachment)

    def _tell(self, attachment: Attachment) -> None:
        if self._delivery.offset > self._acked:
            self._acked = self._delivery.offset
            with suppress(SandptyError):  # the agent is gone: `receive` says so
                attachment.ack(self._acked)


def gap_text(missing_bytes: int) -> str:
    return (
        f"{missing_bytes} bytes of output were dropped because this client did not read for too long; "
        "connect to the process again to continue with what is kept"
    )
