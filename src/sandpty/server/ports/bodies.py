"""Bodies of guests' responses: where they end. Pure; nothing is kept but a chunk's line."""

from __future__ import annotations

import re
from typing import Protocol

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_LINE_BYTES_MAX = 4096
_TRAILERS_BYTES_MAX = 64 * 1024
_STEPS_MAX = 256  # about half a millisecond: a guest may send thousands of chunks of a byte


class BadBodyError(ValueError):
    """The body is not framed as its head said."""


class Body(Protocol):
    """Takes what arrives, gives what belongs to the body."""

    done: bool
    rest: bytes  # of what was fed: to be fed again, after others had their turn

    def feed(self, data: bytes) -> bytes:
        """Raises BadBodyError."""

    def end(self) -> None:
        """The guest closed the connection. Raises BadBodyError when the body is not complete."""


class LengthBody:
    """As long as Content-Length says; what comes after it is nobody's."""

    rest = b""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> bytes:
        taken = data[: self._left] if len(data) > self._left else data
        self._left -= len(taken)
        self.done = self._left == 0
        return taken

    def end(self) -> None:
        if not self.done:
            raise BadBodyError("closed the connection in the middle of its answer")


class OpenBody:
    """Up to the end of the connection."""

    rest = b""

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> None:
        self.done = True


class ChunkedBody:
    """Chunks, whose trailers are ignored. Lines may end in LF alone."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self._left = 0  # of the present chunk
        self._line = bytearray()
        self._state = "size"  # size, data, gap (the line end after data), trailers
        self._trailers = 0

    def feed(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        view = memoryview(data)
        steps = _STEPS_MAX
        while view and not self.done and (steps := steps - 1):
            if self._state == "data":
                taken = view[: self._left]
                pieces.append(bytes(taken))
                self._left -= len(taken)
                view = view[len(taken) :]
                if self._left == 0:
                    self._state = "gap"
            else:
                view = self._feed_line(view)
        self.rest = b"" if self.done else bytes(view)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _feed_line(self, view: memoryview) -> memoryview:
        at = bytes(view[: _LINE_BYTES_MAX + 1]).find(b"\n")
        self._line += view if at < 0 else view[: at + 1]
        if len(self._line) > _LINE_BYTES_MAX:
            raise BadBodyError("sent an endless line between chunks")
        if at < 0:
            return view[len(view) :]
        line = bytes(self._line[:-1]).removesuffix(b"\r")
        self._line.clear()
        self._take(line)
        return view[at + 1 :]

    def _take(self, line: bytes) -> None:
        if self._state == "gap":
            if line:
                raise BadBodyError("sent more than a chunk's length")
            self._state = "size"
        elif self._state == "size":
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                raise BadBodyError("sent a malformed chunk")
            self._left = int(match[1], 16)
            self._state = "data" if self._left else "trailers"
        elif line:
            self._trailers += len(line)
            if self._trailers > _TRAILERS_BYTES_MAX:
                raise BadBodyError("sent endless trailers")
        else:
            self.done = True

    def end(self) -> None:
        if not self.done:
            raise BadBodyError("closed the connection in the middle of its answer")
