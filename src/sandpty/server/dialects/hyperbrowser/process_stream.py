"""One process carried to one client as server-sent events.

A line of `data:` is ASCII: Python's HTTP library also ends lines at U+0085, U+2028 and others.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.dialects.hyperbrowser.numbering import Ledger
from sandpty.server.dialects.hyperbrowser.process_status import JsonText
from sandpty.server.dialects.hyperbrowser.tokens import now_ms
from sandpty.terminal.attachment import Attachment
from sandpty.wire.characters import incomplete_tail
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import Exit, Gap, Output, Stream

EVENT_STREAM = "text/event-stream"
_NAMES = {Stream.PTY: b"stdout", Stream.STDOUT: b"stdout", Stream.STDERR: b"stderr"}
Encode = Callable[[int, bytes], bytes]  # (stream, bytes) -> the members `data` and, where there is one, `encoding`


def as_base64(_: int, data: bytes) -> bytes:
    return b'"data":"%s","encoding":"base64"' % base64.b64encode(data)


def as_text() -> Encode:
    """For readers that take `data` as it is."""
    texts = {stream: JsonText() for stream in _NAMES}

    def encode(stream: int, data: bytes) -> bytes:
        return b'"data":"%s"' % texts[Stream(stream)].piece(data)

    return encode


def ascii_json(value: object) -> bytes:
    return json.dumps(msgspec.to_builtins(value)).encode()


class EventStream:
    """The response. `open` sends its head."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response = web.StreamResponse(headers={"Content-Type": EVENT_STREAM, "Cache-Control": "no-cache"})

    async def open(self) -> None:
        await self.response.prepare(self._request)

    async def say(self, event: str, data: bytes) -> None:
        await self.response.write(b"event: %s\ndata: %s\n\n" % (event.encode(), data))

    async def say_in_pieces(self, event: str, pieces: AsyncIterator[bytes]) -> None:
        await self.response.write(b"event: %s\ndata: " % event.encode())
        async for piece in pieces:
            await self.response.write(piece)
        await self.response.write(b"\n\n")

    async def say_error(self, message: str, code: str) -> None:
        await self.say("error", ascii_json({"error": message, "code": code}))

    async def keep_alive(self) -> None:
        await self.response.write(b": still here\n\n")


class ProcessStream:
    """Numbered events of one attachment."""

    def __init__(self, stream: EventStream, attached: Attachment, ledger: Ledger, encode: Encode, first: int) -> None:
        self._out = stream
        self._attached = attached
        self._ledger = ledger
        self._encode = encode
        self._first = first  # events below this number are not said
        self._at = attached.info.start  # where the next event begins
        self._held = b""
        self._stream = int(Stream.STDOUT)
        self.last = 0  # the number of the last event that was said

    async def carry(self) -> Exit:
        """Events until the process has ended. Raises SandptyError output_lost when some are missing, and as receive."""
        while True:
            event = await self._next()
            match event:
                case Output(stream, _, data):
                    if stream != self._stream and self._held:
                        await self._say(len(self._held))
                    self._stream = stream
                    self._held += data
                    await self._say_what_is_due()
                    self._attached.acknowledge()
                case Gap(_, end):
                    if self.last:
                        raise SandptyError("output_lost", "this client did not read for too long")
                    self._at, self._held = end, b""
                case Exit():
                    await self._say_all()
                    return event
                case None:
                    await self._say_all()

    @property
    def acknowledged(self) -> int:
        """Up to where output was said."""
        return self._at

    async def _next(self) -> object:
        """The next event of the agent; None when what is held has waited long enough for its rest."""
        while True:
            timeout_s = config.CHARACTER_S if self._held else config.HYPERBROWSER_KEEPALIVE_S
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._attached.receive()
            except TimeoutError:
                if self._held:
                    return None
                await self._out.keep_alive()

    async def _say_what_is_due(self) -> None:
        """Events that others have decided on as they did; of the rest all but the beginning of a character."""
        while self._held:
            if (known := self._ledger.known(self._at)) is not None:
                size = known[1] - self._at
                if len(self._held) < size:
                    return
                await self._say(size)
            else:
                size = len(self._held) - incomplete_tail(self._held)
                if size:
                    await self._say(size)
                return

    async def _say_all(self) -> None:
        await self._say_what_is_due()
        if self._held and self._ledger.known(self._at) is None:
            await self._say(len(self._held))

    async def _say(self, size: int) -> None:
        """One event. Its number is decided before anything is awaited, so that two streams never decide twice."""
        data, self._held = self._held[:size], self._held[size:]
        start, self._at = self._at, self._at + size
        known = self._ledger.known(start)
        number = known[0] if known is not None else self._ledger.add(start, self._at)
        if number < self._first:
            return
        self.last = number
        body = b'{"seq":%d,"stream":"%s",%s,"timestamp":%d}'
        name = _NAMES[Stream(self._stream)]
        await self._out.say("output", body % (number, name, self._encode(self._stream, data), now_ms()))
