"""WatchDir: what happens in a directory, as a stream of events until the client goes away."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec
from aiohttp import web

from sandpty.server.context import Context
from sandpty.server.delivery import ClientConnection
from sandpty.server.dialects.e2b import file_models as models
from sandpty.server.dialects.e2b.acting import acting_for, acting_user
from sandpty.server.dialects.e2b.connect import (
    CORS_HEADERS,
    STREAM_TYPE,
    ConnectError,
    decode_keepalive_s,
    decode_message,
    decode_timeout_ms,
    end_envelope,
    envelope,
    error_from,
)
from sandpty.server.dialects.e2b.errors import NOT_FOUND_TEXT, HttpError, unexpected_connect
from sandpty.server.dialects.e2b.filesystem import watch_failure
from sandpty.server.dialects.e2b.requests import authorized_sandbox, guest_user
from sandpty.server.dialects.e2b.streams import only_message
from sandpty.server.ends import still_runs, wait_for_the_end
from sandpty.terminal.files import Watch, WatchEvent, WatchEventType
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

_START = envelope(b'{"start":{}}')
_KEEPALIVE = envelope(b'{"keepalive":{}}')


class WatchService:
    """The handler, for every sandbox of this server."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._open: set[WatchStream] = set()
        context.stopping.append(self._stop)

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/filesystem.Filesystem/WatchDir", self.watch_dir)]

    def _stop(self) -> None:
        for stream in list(self._open):
            stream.cut()

    async def watch_dir(self, request: web.Request) -> web.StreamResponse:
        try:
            sandbox = await authorized_sandbox(self._context, request)
        except HttpError as error:
            return error.response()
        if request.transport is None:
            raise ConnectionResetError("the client has gone")
        with ClientConnection(request.transport) as connection:
            stream = WatchStream(request, connection)
            self._open.add(stream)
            try:
                with self._context.registry.cutting(sandbox.id, stream.cut):
                    failure = await self._carry(stream, sandbox, request)
                    if not stream.was_cut:
                        await stream.finish(failure)
            except ConnectionError:
                pass  # the client has gone, or was cut off because the sandbox has
            finally:
                self._open.discard(stream)
        return stream.response

    async def _carry(self, stream: WatchStream, sandbox: Sandbox, request: web.Request) -> ConnectError | None:
        """Everything but the end envelope: answers what it must say."""
        try:
            timeout_ms = decode_timeout_ms(request.headers.get("Connect-Timeout-Ms"))
            message = decode_message(await only_message(request), models.WatchRequest)
            async with asyncio.timeout(timeout_ms / 1000 if timeout_ms else None):
                await self._watch(stream, sandbox, guest_user(request, sandbox), message)
            return None
        except ConnectionError:
            raise
        except TimeoutError:
            return ConnectError("deadline_exceeded", "the stream reached its timeout")
        except Exception as error:
            if isinstance(error, SandptyError) and error.reason.name == "agent_unreachable":
                await wait_for_the_end(self._context, sandbox)
            if not still_runs(self._context, sandbox):
                return ConnectError("unavailable", NOT_FOUND_TEXT)
            if isinstance(error, HttpError):  # from reading the request's body
                return ConnectError("resource_exhausted" if error.status == 413 else "invalid_argument", error.message)
            if isinstance(error, ConnectError):
                return error
            return error_from(error) if isinstance(error, SandptyError) else unexpected_connect(error)

    async def _watch(self, stream: WatchStream, sandbox: Sandbox, user: str, message: models.WatchRequest) -> None:
        path = message.path
        try:
            async with acting_for(self._context, sandbox, user) as guest:
                path = guest.path(message.path)
            async with self._context.files.watching(sandbox, acting_user(sandbox)) as files:
                watch = await files.watch(
                    path,
                    recursive=message.recursive,
                    entries=message.wants_entries,
                    network_file_systems=message.allows_network,
                )
                await stream.carry(watch)
        except SandptyError as error:
            raise watch_failure(error, path, user) from error


class WatchStream:
    """One watch carried to one client."""

    def __init__(self, request: web.Request, connection: ClientConnection) -> None:
        self._request = request
        self._connection = connection
        self._keepalive_s = decode_keepalive_s(request.headers.get("Keepalive-Ping-Interval"))
        self.response = web.StreamResponse(
            headers={"Content-Type": STREAM_TYPE, "Cache-Control": "no-cache", **CORS_HEADERS}
        )
        self.was_cut = False

    def cut(self) -> None:
        """The sandbox, or this server, is going: reset the connection, at once."""
        self.was_cut = True
        self._connection.reset()

    async def _open(self) -> None:
        if not self.response.prepared:
            self.response.enable_chunked_encoding()
            await self.response.prepare(self._request)

    async def carry(self, watch: Watch) -> None:
        """Raises what ends the watch: only the client's going away is its ordinary end."""
        await self._open()
        await self.response.write(_START)
        while True:
            first = await self._next(watch)
            gone = await self._say([first] if first.type is WatchEventType.GONE else [first, *await watch.pending()])
            if gone:  # the directory itself: nothing will come, and E2B's stream stays open
                await self._stay()

    async def _stay(self) -> None:
        while True:
            await asyncio.sleep(self._keepalive_s)
            await self.response.write(_KEEPALIVE)

    async def _next(self, watch: Watch) -> WatchEvent:
        """The next event, and keepalives until it comes. Only events put the next keepalive off."""
        task = asyncio.ensure_future(watch.event())
        try:
            while not (await asyncio.wait({task}, timeout=self._keepalive_s))[0]:
                await self.response.write(_KEEPALIVE)
            return task.result()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, SandptyError):
                await task

    async def _say(self, events: list[WatchEvent]) -> bool:
        """One write for all of them. Answers whether the directory is gone; raises events_lost after what was kept."""
        envelopes = bytearray()
        for event in events:
            if (said := models.event_of(event)) is not None:
                envelopes += envelope(b'{"filesystem":' + msgspec.json.encode(said) + b"}")
        if envelopes:
            await self.response.write(envelopes)
        if any(event.type is WatchEventType.OVERFLOW for event in events):
            raise SandptyError("events_lost", "so much happened in the directory that events were lost")
        return any(event.type is WatchEventType.GONE for event in events)

    async def finish(self, error: ConnectError | None) -> None:
        await self._open()
        await self.response.write_eof(end_envelope(error))
