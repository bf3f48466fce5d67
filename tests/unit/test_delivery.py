"""What counts as delivered: what TCP says has arrived."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from sandpty.server.delivery import ClientConnection, Delivery, chunked_bytes
from tests.waiting import until


@pytest.fixture
async def pair() -> AsyncIterator[tuple[asyncio.Transport, socket.socket]]:
    """A server's transport and its client's plain socket."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[asyncio.Transport] = loop.create_future()

    class Accept(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            made.set_result(transport)

    server = await loop.create_server(Accept, "127.0.0.1", 0)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await loop.sock_connect(client, server.sockets[0].getsockname())
    transport = await made
    yield transport, client
    client.close()
    transport.abort()
    server.close()
    await server.wait_closed()


def test_a_chunk_is_as_long_as_aiohttp_writes_it() -> None:
    """Size in hex, two line ends."""
    for size in (1, 15, 16, 4096, 65536):
        assert chunked_bytes(b"x" * size) == len(f"{size:x}\r\n".encode()) + size + 2


async def test_output_counts_once_the_clients_host_has_it(pair: tuple[asyncio.Transport, socket.socket]) -> None:
    """Written is not delivered; acknowledged by TCP is."""
    transport, _ = pair
    with ClientConnection(transport) as connection:
        delivery = Delivery(connection, 100)
        transport.write(b"x" * 10)
        delivery.wrote(10, 105)
        await until(lambda: delivery.advance() or not delivery.pending)
        assert delivery.offset == 105
        assert not delivery.pending


async def test_what_a_client_that_does_not_read_cannot_hold_is_not_delivered(
    pair: tuple[asyncio.Transport, socket.socket],
) -> None:
    """It will be said again to whoever connects next; everything that fits its buffers will not."""
    transport, client = pair
    with ClientConnection(transport) as connection:
        delivery = Delivery(connection, 0)
        for at in range(1, 513):
            transport.write(b"x" * 4096)
            delivery.wrote(4096, at)
        await until(delivery.advance, what="the first bytes to arrive")
        client.close()
        await until(lambda: connection.gone)
        delivery.settle()
        assert 0 < delivery.offset < 512


async def test_a_client_that_has_closed_is_known_at_once(pair: tuple[asyncio.Transport, socket.socket]) -> None:
    """Before our event loop has run: a reconnect may come in the same breath."""
    transport, client = pair
    with ClientConnection(transport) as connection:
        assert not connection.gone
        client.close()
        assert connection.gone


async def test_a_reset_is_a_reset(pair: tuple[asyncio.Transport, socket.socket]) -> None:
    """RST, not FIN: what the SDKs take for the end of the sandbox."""
    transport, client = pair
    with ClientConnection(transport) as connection:
        connection.reset()
        connection.reset()  # safe to repeat
    with pytest.raises(ConnectionResetError):
        await asyncio.get_running_loop().sock_recv(client, 1)
