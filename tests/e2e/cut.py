"""A bad network: a TCP relay that can cut every connection through it, stop carrying, or close one direction."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Relay:
    """Between a client and a port of this machine. `url` is where clients connect."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.connections = 0
        self.refuse = False

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        self._writers.add(writer)
        try:
            if self.refuse:
                return
            self.connections += 1
            onward_reader, onward = await asyncio.open_connection("127.0.0.1", self._port)
            self._writers.add(onward)
            try:
                await asyncio.gather(self._carry(reader, onward), self._carry(onward_reader, writer))
            finally:
                self._writers.discard(onward)
                onward.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
            self._carrying.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Reset every connection: what is on the way is lost, on both sides."""
        for writer in list(self._writers):
            with contextlib.suppress(OSError):
                writer.transport.abort()

    def stall(self) -> None:
        """Carry nothing, until `flow`; connections stay open."""
        self._flowing.clear()

    def flow(self) -> None:
        """Carry again."""
        self._flowing.set()

    def half_close(self) -> None:
        """End one direction of every connection, as a machine that goes to sleep in the middle of its goodbye."""
        for writer in list(self._writers):
            with contextlib.suppress(OSError, RuntimeError):
                if not writer.is_closing() and writer.can_write_eof():
                    writer.write_eof()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._carrying):
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)


@asynccontextmanager
async def relay(port: int) -> AsyncIterator[Relay]:
    """A relay to `port`, closed at the end."""
    made = Relay(port)
    await made.start()
    try:
        yield made
    finally:
        await made.close()
