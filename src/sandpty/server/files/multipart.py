"""`multipart/form-data` as it arrives: one piece in memory, file names with everything that is in them.

aiohttp's own reader drops the slash a file name begins with, which is where an upload's full path begins.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message

from sandpty import config
from sandpty.wire.errors import SandptyError

_PARAMETER = re.compile(rb'\s*;\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))', re.S)
_ESCAPED = re.compile(rb'\\([()<>@,;:\\"/\[\]?=])')


def boundary_of(content_type: str) -> bytes:
    """The boundary of a `multipart/form-data` header. Raises bad_request."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= config.MULTIPART_BOUNDARY_BYTES:
        raise SandptyError("bad_request", "the multipart body has no boundary")
    return boundary.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Part:
    """`file_name` is None where there is none; its bytes are kept (surrogateescape)."""

    name: str
    file_name: str | None


class MultipartReader:
    """`async for part in reader`, and of each part `async for piece in reader.pieces()`.

    Raises bad_request for what is no such body, and whatever `source` raises.
    """

    def __init__(self, source: AsyncIterator[bytes], boundary: bytes) -> None:
        self._source = source
        self._buffer = bytearray(b"\r\n")  # the first delimiter needs no line before it
        self._delimiter = b"\r\n--" + boundary
        self._in_part = True  # what lies before the first part is passed over like one
        self._ended = False

    def __aiter__(self) -> AsyncIterator[Part]:
        return self._parts()

    async def _parts(self) -> AsyncIterator[Part]:
        while True:
            async for _ in self.pieces():
                pass
            if await self._line_after_delimiter():
                return
            part = await self._head()
            self._in_part = True
            yield part

    async def pieces(self) -> AsyncIterator[bytes]:
        """The content of the current part."""
        keep = len(self._delimiter) - 1
        while self._in_part:
            at = self._buffer.find(self._delimiter)
            if at >= 0:
                self._in_part = False
                piece = bytes(memoryview(self._buffer)[:at])
                del self._buffer[: at + len(self._delimiter)]
            else:
                at = max(0, len(self._buffer) - keep)
                piece = bytes(memoryview(self._buffer)[:at])
                del self._buffer[:at]
            if piece:
                yield piece
            elif self._in_part:
                await self._more()

    async def _more(self) -> None:
        try:
            self._buffer += await anext(self._source)
        except StopAsyncIteration:
            raise SandptyError("bad_request", "the multipart body ends before its last boundary") from None

    async def _until(self, mark: bytes) -> bytes:
        """Everything up to `mark`, which is taken too; at most MULTIPART_HEAD_BYTES."""
        while (at := self._buffer.find(mark)) < 0:
            if len(self._buffer) > config.MULTIPART_HEAD_BYTES:
                raise SandptyError("bad_request", "the head of a part of the multipart body is too long")
            await self._more()
        taken = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        return taken

    async def _line_after_delimiter(self) -> bool:
        """Whether that was the last one. What follows the last one is the client's own affair."""
        while len(self._buffer) < 2:
            await self._more()
        if self._buffer[:2] == b"--":
            return True
        if (await self._until(b"\r\n")).strip():
            raise SandptyError("bad_request", "a boundary of the multipart body does not end its line")
        return False

    async def _head(self) -> Part:
        # A part without any header has an empty line at once: the line's end before it belongs to the boundary.
        self._buffer[:0] = b"\r\n"
        for line in (await self._until(b"\r\n\r\n")).split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-disposition":
                return _disposition(value)
        return Part("", None)


def _disposition(value: bytes) -> Part:
    found: dict[bytes, bytes] = {}
    _, _, rest = value.partition(b";")
    for key, quoted, token in _PARAMETER.findall(b";" + rest):
        found.setdefault(key.lower(), _ESCAPED.sub(rb"\1", quoted) or token)
    name = found.get(b"name", b"").decode("utf-8", "surrogateescape")
    file_name = found.get(b"filename")
    return Part(name, None if file_name is None else file_name.decode("utf-8", "surrogateescape"))
