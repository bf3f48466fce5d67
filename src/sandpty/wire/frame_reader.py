"""Cuts a byte stream into frames: `u32 length, u8 type, payload`. Pure."""

from __future__ import annotations

import struct
from collections import deque

from sandpty.wire.types import MAX_FRAME_BYTES, FrameError

_LENGTH = struct.Struct("<I")
_SMALL_BYTES = 4096  # pieces and frames below it are copied rather than kept as parts of something bigger


class FrameReader:
    """Takes bytes with `push` and gives frames with `pop`, or both at once with `feed`.

    Frames are cut one by one as they are asked for, out of the pieces as they came: a flood is copied only where a
    frame lies across two pieces, and a sender of a hundred thousand tiny frames makes nobody do more than keep them.
    Raises FrameError as soon as a length is out of bounds, before waiting for its bytes.
    """

    __slots__ = ("_at", "_held", "_max_bytes", "_piece", "_rest")

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._piece = b""
        self._at = 0  # where in it the next frame begins
        self._rest: deque[bytes] = deque()  # what came after it
        self._held = 0
        self._max_bytes = max_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes pushed and not yet given out."""
        return self._held

    @property
    def ready(self) -> bool:
        """Whether `pop` has something to say now: a frame, or that the stream is broken."""
        if not self._has(4):
            return False
        (length,) = _LENGTH.unpack_from(self._piece, self._at)
        return not 1 <= length <= self._max_bytes or self._held >= 4 + length

    @property
    def broken(self) -> bool:
        """Whether `pop` would raise."""
        return self._has(4) and not 1 <= _LENGTH.unpack_from(self._piece, self._at)[0] <= self._max_bytes

    def push(self, data: bytes) -> None:
        self._held += len(data)
        if self._at == len(self._piece):
            self._piece, self._at = bytes(data), 0
        elif self._rest and len(self._rest[-1]) + len(data) <= _SMALL_BYTES:
            self._rest[-1] += data
        else:
            self._rest.append(bytes(data))

    def alone(self, data: bytes) -> bytes | None:
        """What `pop_message` would give after `push(data)`, if `data` is one small frame and nothing waits before it.

        Nothing is pushed.
        """
        size = len(data) - 4
        if self._held or not 0 < size < _SMALL_BYTES or _LENGTH.unpack_from(data)[0] != size:
            return None
        return data[4:]

    def _has(self, count: int) -> bool:
        """Make the next `count` bytes lie in one piece; False while they are not all here."""
        if len(self._piece) - self._at >= count:
            return True
        if self._held < count:
            return False
        parts = [self._piece[self._at :]]
        size = len(parts[0])
        while size < count:
            parts.append(self._rest.popleft())
            size += len(parts[-1])
        surplus = size - count
        if surplus >= _SMALL_BYTES:  # only what is needed is copied; the rest stays a piece of its own
            last = parts.pop()
            parts.append(last[: len(last) - surplus])
            self._rest.appendleft(last[len(last) - surplus :])
        self._piece, self._at = b"".join(parts), 0
        return True

    def _next(self) -> int:
        """Bytes of the next frame without its length, once it is all here in one piece; else 0."""
        if not self._has(4):
            return 0
        (length,) = _LENGTH.unpack_from(self._piece, self._at)
        if not 1 <= length <= self._max_bytes:
            raise FrameError(f"frame length {length} is out of bounds")
        return length if self._has(4 + length) else 0

    def _step(self, length: int) -> int:
        """Past the next frame; where its type stands."""
        start = self._at + 4
        self._at = start + length
        self._held -= 4 + length
        return start

    def _advance(self) -> None:
        if self._at == len(self._piece) and self._rest:
            self._piece, self._at = self._rest.popleft(), 0

    def pop(self) -> tuple[int, bytes] | None:
        """The next `(type, payload)`, or None while it is incomplete."""
        length = self._next()
        if not length:
            return None
        piece, start = self._piece, self._step(length)
        self._advance()
        return piece[start], piece[start + 1 : start + length]

    def pop_message(self, kind: int | None = None) -> bytes | memoryview | None:
        """The next frame as `type, payload` in one; None while it is incomplete, and if it is not a `kind`.

        A big one may be a view of what was received, not a copy.
        """
        length = self._next()
        if not length or (kind is not None and self._piece[self._at + 4] != kind):
            return None
        piece, start = self._piece, self._step(length)
        self._advance()
        if length < _SMALL_BYTES:
            return piece[start : start + length]
        return memoryview(piece)[start : start + length]

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """All frames that are complete after `data`."""
        self.push(data)
        frames: list[tuple[int, bytes]] = []
        while (found := self.pop()) is not None:
            frames.append(found)
        return frames
