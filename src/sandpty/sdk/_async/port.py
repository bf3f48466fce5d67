"""One TCP connection to a port of a sandbox, over a WebSocket: each binary message is a piece of the stream."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from sandpty.sdk._async.sockets import AsyncWebSocket, async_connect_socket, closed_socket
from sandpty.sdk.websocket import GOOD_END, ClosedWebSocketError
from sandpty.wire.errors import SandptyError

PIECE_BYTES = 128 * 1024  # sent at a time


class AsyncPortConnection:
    """Made by `AsyncClient.connect_port`, to be entered with `async with`. One task may read while another writes.

    Leaving it before both sides came to their ends resets the connection for the service in the sandbox. A connection
    that breaks does not heal: what was on its way is nobody's to send again.
    """

    def __init__(self, url: str, path: str, headers: Mapping[str, str]) -> None:
        self._url = url
        self._path = path
        self._headers = headers
        self._socket: AsyncWebSocket | None = None
        self._received_end = False

    async def open(self) -> None:
        """Connect. Raises port_closed, no_such_sandbox, sandbox_paused, limit, timeout, server_unreachable."""
        # Its reader may wait for as long as it likes, so it need not answer heartbeats in time.
        self._socket = await async_connect_socket(self._url, self._path, self._headers, patient=True)

    async def close(self) -> None:
        """End the connection, whatever is still on its way."""
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    async def __aenter__(self) -> AsyncPortConnection:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def receive(self) -> bytes:
        """What the service says; empty once it has said all. Raises port_closed when the connection broke."""
        if self._received_end:
            return b""
        try:
            message = await self._connected().receive()
        except ClosedWebSocketError as error:
            raise closed_socket(self._url, error) from error
        self._received_end = not message
        return message.encode() if isinstance(message, str) else bytes(message)

    async def send(self, data: bytes) -> None:
        """Returns when there is room for more. Raises port_closed when the connection broke."""
        for at in range(0, len(data), PIECE_BYTES):
            await self._send(data[at : at + PIECE_BYTES])

    async def send_end(self) -> None:
        """Nothing more is sent; the service may go on."""
        await self._send(b"")

    async def _send(self, data: bytes) -> None:
        try:
            await self._connected().send(data)
        except ClosedWebSocketError as error:
            raise closed_socket(self._url, error) from error

    async def wait_closed(self) -> None:
        """Until the server has confirmed the end of both directions. Raises port_closed when the connection broke."""
        try:
            while True:
                await self._connected().receive()
        except ClosedWebSocketError as error:
            if error.code != GOOD_END:
                raise closed_socket(self._url, error) from error

    def _connected(self) -> AsyncWebSocket:
        if self._socket is None:
            raise SandptyError("conflict", "the connection is not open")
        return self._socket
