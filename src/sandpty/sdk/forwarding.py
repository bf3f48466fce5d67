"""A port of this machine that leads to a port of a sandbox."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType

from sandpty.sdk._async.client import AsyncClient
from sandpty.sdk._async.port import PIECE_BYTES, AsyncPortConnection
from sandpty.sdk._blocking import JOIN_TIMEOUT_S
from sandpty.sdk.settings import LOCAL_HOST
from sandpty.wire.errors import SandptyError

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends RST


class PortForward:
    """Accepts connections here and carries each to the sandbox, from `async with` on until its end.

        async with sandbox.forward_port(8000) as forward:
            await httpx.AsyncClient().get(f"http://127.0.0.1:{forward.port}/")

    `port` is this machine's. `on_error` is told of each connection that could not be made or broke; the others go on.
    """

    def __init__(
        self,
        client: AsyncClient,
        sandbox_id: str,
        guest_port: int,
        local_port: int = 0,
        *,
        host: str = LOCAL_HOST,
        on_error: Callable[[SandptyError], None] | None = None,
    ) -> None:
        self._client = client
        self._sandbox_id = sandbox_id
        self._on_error = on_error or (lambda error: None)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.guest_port = guest_port
        self.host = host
        self.port = local_port

    async def open(self) -> None:
        """Raises conflict when the local port is in use, bad_argument when it cannot be had at all."""
        try:
            self._server = await asyncio.start_server(self._accepted, self.host, self.port, limit=PIECE_BYTES)
        except (OSError, OverflowError) as error:
            reason = "conflict" if isinstance(error, OSError) else "bad_argument"
            what = " ".join(str(getattr(error, "strerror", None) or error).split())
            raise SandptyError(reason, f"port {self.port} of this machine cannot be had: {what}") from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Ends what is under way too."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def __aenter__(self) -> PortForward:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer), name=f"port {self.guest_port}")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection. What was not carried to both ends is reset here, so that it looks as broken as it is."""
        try:
            async with self._client.connect_port(self._sandbox_id, self.guest_port) as guest:
                await _joined(reader, writer, guest)
            writer.close()
        except SandptyError as error:
            _reset(writer)
            self._on_error(error)
        except BaseException as error:
            _reset(writer)
            if not isinstance(error, OSError):
                raise


class BlockingPortForward:
    """The same for programs that block: a thread carries it, from `with` on until its end.

        with sandbox.forward_port(8000) as forward:
            httpx.get(f"http://127.0.0.1:{forward.port}/")

    `on_error` is called in that thread.
    """

    def __init__(self, forward: PortForward) -> None:
        self._forward = forward
        self._opened: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._stopping: asyncio.Event
        self._thread = threading.Thread(target=self._run, name=f"port {forward.guest_port}", daemon=True)

    @property
    def port(self) -> int:
        """This machine's."""
        return self._forward.port

    def open(self) -> None:
        """Raises conflict when the local port is in use, bad_argument when it cannot be had at all."""
        self._thread.start()
        self._opened.result()

    def close(self) -> None:
        """Ends what is under way too. Safe to repeat."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # its loop has ended
                self._opened.result().call_soon_threadsafe(self._stopping.set)
            self._thread.join(JOIN_TIMEOUT_S)

    def __enter__(self) -> BlockingPortForward:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._carry())
        except BaseException as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    async def _carry(self) -> None:
        self._stopping = asyncio.Event()
        async with self._forward:
            self._opened.set_result(asyncio.get_running_loop())
            await self._stopping.wait()


async def _joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, guest: AsyncPortConnection) -> None:
    """Until both directions have ended. Raises SandptyError when the sandbox's side breaks, OSError for this one."""
    ways = (asyncio.create_task(_from_here(reader, guest)), asyncio.create_task(_from_guest(writer, guest)))
    try:
        await asyncio.gather(*ways)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
    await guest.wait_closed()


async def _from_here(reader: asyncio.StreamReader, guest: AsyncPortConnection) -> None:
    while data := await reader.read(PIECE_BYTES):
        await guest.send(data)
    await guest.send_end()


async def _from_guest(writer: asyncio.StreamWriter, guest: AsyncPortConnection) -> None:
    while data := await guest.receive():
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):  # it has gone, having read all
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
