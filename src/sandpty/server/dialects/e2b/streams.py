"""The streaming methods of E2B's process.Process: Start and Connect (events out), StreamInput (input in)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from aiohttp import web

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.delivery import ClientConnection
from sandpty.server.dialects.e2b import models
from sandpty.server.dialects.e2b.connect import (
    STREAM_TYPE,
    ConnectError,
    EnvelopeReader,
    decode_keepalive_s,
    decode_message,
    decode_timeout_ms,
    end_envelope,
    envelope,
    error_from,
)
from sandpty.server.dialects.e2b.errors import NOT_FOUND_TEXT, HttpError, unexpected_connect
from sandpty.server.dialects.e2b.requests import (
    authorized_sandbox,
    guest_user,
    read_body,
)
from sandpty.server.dialects.e2b.selecting import input_of, process_error, selector_of, type_into
from sandpty.server.dialects.e2b.starting import reader_stall_ms, start_error, start_of
from sandpty.server.dialects.e2b.stream import EventStream
from sandpty.server.ends import still_runs, wait_for_the_end
from sandpty.terminal import attachment as attachments
from sandpty.terminal import control
from sandpty.terminal.attachment import Attachment
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import Attach, From, ProcessFlags, Selector
from sandpty.wire.verbs import Sandbox

# What a method attaches to, and after how many seconds its stream ends (None: never).
Opened: TypeAlias = tuple[Attachment, float | None]


class StreamService:
    """The handlers, for every sandbox of this server."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._streams: dict[tuple[str, int], set[EventStream]] = {}  # by sandbox and our process number

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/process.Process/Start", self.start),
            web.post("/process.Process/Connect", self.connect),
            web.post("/process.Process/StreamInput", self.stream_input),
        ]

    async def start(self, request: web.Request) -> web.StreamResponse:
        return await self._events(request, self._start)

    async def connect(self, request: web.Request) -> web.StreamResponse:
        return await self._events(request, self._connect)

    # --- what to attach to -----------------------------------------------------------------------------------------

    async def _start(self, sandbox: Sandbox, request: web.Request) -> Opened:
        deadline_ms = decode_timeout_ms(request.headers.get("Connect-Timeout-Ms"))
        message = decode_message(await only_message(request), models.StartRequest)
        start = start_of(message, sandbox, guest_user(request, sandbox), deadline_ms)
        try:
            attachment = await attachments.start(sandbox.socket, start)
        except SandptyError as error:
            raise start_error(error, start) from error
        # The agent kills at the deadline, and its EXIT follows the last output. Ours is for an agent that cannot.
        return attachment, deadline_ms / 1000 + config.E2B_DEADLINE_GRACE_S if deadline_ms else None

    async def _connect(self, sandbox: Sandbox, request: web.Request) -> Opened:
        timeout_ms = decode_timeout_ms(request.headers.get("Connect-Timeout-Ms"))
        selector = selector_of(decode_message(await only_message(request), models.SelectedRequest).process)
        try:
            info = await control.stat(sandbox.socket, selector)
            await self._handover(sandbox.id, info.process)
            wanted = Attach(
                Selector.process(info.process),
                may_write=False,
                origin=From.CONTINUE,
                window=config.ATTACH_WINDOW_BYTES,
                stall_ms=reader_stall_ms(pty=bool(info.flags & ProcessFlags.PTY)),
            )
            return await attachments.attach(sandbox.socket, wanted), timeout_ms / 1000 if timeout_ms else None
        except SandptyError as error:
            raise process_error(error, selector, "connect") from error

    async def _handover(self, sandbox_id: str, process: int) -> None:
        """Let go of viewers whose client has closed, so that the new one continues where they stopped.

        A client that reconnects closes one TCP connection and opens another; we may see the close a moment later.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + config.E2B_HANDOVER_S
        while streams := self._streams.get((sandbox_id, process)):
            for stream in [stream for stream in streams if stream.client_gone]:
                stream.detach()
                streams.discard(stream)
            if not streams or loop.time() >= ends_at:
                return
            await asyncio.sleep(config.E2B_HANDOVER_POLL_S)

    @contextmanager
    def _registered(self, sandbox_id: str, process: int, stream: EventStream) -> Iterator[None]:
        key = (sandbox_id, process)
        streams = self._streams.setdefault(key, set())
        streams.add(stream)
        try:
            yield
        finally:
            streams.discard(stream)
            if not streams and self._streams.get(key) is streams:
                del self._streams[key]

    # --- events out ------------------------------------------------------------------------------------------------

    async def _events(
        self, request: web.Request, open_: Callable[[Sandbox, web.Request], Awaitable[Opened]]
    ) -> web.StreamResponse:
        try:
            sandbox = await authorized_sandbox(self._context, request)
        except HttpError as error:
            return error.response()
        if request.transport is None:
            raise ConnectionResetError("the client has gone")
        keepalive_s = decode_keepalive_s(request.headers.get("Keepalive-Ping-Interval"))
        with ClientConnection(request.transport) as connection:
            stream = EventStream(request, connection, keepalive_s)
            with self._context.registry.cutting(sandbox.id, stream.cut):
                try:
                    failure = await self._carry(stream, sandbox, request, open_)
                    if stream.was_cut:
                        await stream.is_reset()
                    else:
                        await stream.finish(failure)
                except ConnectionError:
                    pass  # the client has gone, or was cut off because the sandbox has
        return stream.response

    async def _carry(
        self,
        stream: EventStream,
        sandbox: Sandbox,
        request: web.Request,
        open_: Callable[[Sandbox, web.Request], Awaitable[Opened]],
    ) -> ConnectError | None:
        """Everything but the end envelope: answers what it must say."""
        try:
            attachment, ends_in_s = await open_(sandbox, request)
            process = attachment.info.process
            with stream.attached(attachment, ends_in_s), self._registered(sandbox.id, process, stream):
                await stream.carry(attachment)
            return None
        except ConnectionError:
            raise
        except Exception as error:
            if isinstance(error, SandptyError) and error.reason.name == "agent_unreachable":
                await wait_for_the_end(self._context, sandbox)
            return self._failure(error, sandbox)

    def _failure(self, error: Exception, sandbox: Sandbox) -> ConnectError:
        if isinstance(error, ConnectError) and error.code != "unavailable":
            return error
        if isinstance(error, HttpError):  # from reading the request's body
            return ConnectError("resource_exhausted" if error.status == 413 else "invalid_argument", error.message)
        if isinstance(error, TimeoutError):
            return ConnectError("deadline_exceeded", "the stream reached its timeout")
        if not still_runs(self._context, sandbox):
            return ConnectError("unavailable", NOT_FOUND_TEXT)
        if isinstance(error, ConnectError):
            return error
        return error_from(error) if isinstance(error, SandptyError) else unexpected_connect(error)

    # --- input in --------------------------------------------------------------------------------------------------

    async def stream_input(self, request: web.Request) -> web.StreamResponse:
        """Input is typed as it arrives; the first error ends the stream at once."""
        try:
            sandbox = await authorized_sandbox(self._context, request)
        except HttpError as error:
            return error.response()
        try:
            timeout_ms = decode_timeout_ms(request.headers.get("Connect-Timeout-Ms"))
            async with asyncio.timeout(timeout_ms / 1000 if timeout_ms else None):
                await self._type_all(sandbox, request)
        except ConnectionError:
            raise
        except Exception as error:
            response = web.Response(body=end_envelope(self._failure(error, sandbox)), content_type=STREAM_TYPE)
            response.force_close()  # the rest of the request is of no use any more
            return response
        return web.Response(body=envelope(b"{}") + end_envelope(), content_type=STREAM_TYPE)

    async def _type_all(self, sandbox: Sandbox, request: web.Request) -> None:
        selector: Selector | None = None
        async for message in _messages(request):
            item = decode_message(message, models.StreamInputRequest)
            if item.start is not None:
                named = selector_of(item.start.process)
                try:
                    info = await control.stat(sandbox.socket, named)
                except SandptyError as error:
                    raise process_error(error, named, "stdin") from error
                if not info.flags & ProcessFlags.RUNNING:
                    raise process_error(SandptyError("exited", "the process has ended"), named, "stdin")
                selector = Selector.pid(info.pid)
            elif item.data is not None:
                if selector is None:
                    raise ConnectError("invalid_argument", "the first message of StreamInput must be start")
                stream, data = input_of(item.data.input)
                await type_into(sandbox.socket, selector, stream, data)


async def only_message(request: web.Request) -> bytes:
    """The one message of a request whose answer is a stream. Raises ConnectError, HttpError."""
    reader = EnvelopeReader()
    messages = reader.feed(await read_body(request, config.ENVELOPE_BYTES + config.REQUEST_BODY_BYTES))
    reader.finish()
    if len(messages) != 1:
        raise ConnectError("invalid_argument", f"the request must hold one message, not {len(messages)}")
    return messages[0]


async def _messages(request: web.Request) -> AsyncIterator[bytes]:
    """The messages of a request stream, each as soon as it is complete. Raises ConnectError."""
    reader = EnvelopeReader()
    try:
        async for chunk in request.content.iter_any():
            for message in reader.feed(chunk):
                yield message
    except web.RequestPayloadError as error:
        raise ConnectError("invalid_argument", f"the request body cannot be read: {error}") from error
    reader.finish()
