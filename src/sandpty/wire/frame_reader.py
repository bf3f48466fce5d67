"""Cuts a byte stream into frames: `u32 length, u8 type, payload`. Pure."""

from __future__ import annotations

import struct

from sandpty.wire.types import MAX_FRAME_BYTES, FrameError

_LENGTH = struct.Struct("<I")


class FrameReader:
    """Takes bytes with `push` and gives frames with `pop`, or both at once with `feed`.

    Frames are cut one by one as they are asked for: a sender of a hundred thousand tiny frames makes nobody do more
    than copy its bytes. Raises FrameError as soon as a length is out of bounds, before waiting for its bytes.
    """

    __slots__ = ("_at", "_buffer", "_max_bytes")

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._at = 0  # where the next frame begins; what lies before is deleted in bulk
        self._max_bytes = max_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes pushed and not yet given out."""
        return len(self._buffer) - self._at

    @property
    def ready(self) -> bool:
        """Whether `pop` has something to say now: a frame, or that the stream is broken."""
        size = len(self._buffer) - self._at
        if size < 4:
            return False
        (length,) = _LENGTH.unpack_from(self._buffer, self._at)
        return not 1 <= length <= self._max_bytes or size >= 4 + length

    def push(self, data: bytes) -> None:
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def pop(self) -> tuple[int, bytes] | None:
        """The next `(type, payload)`, or None while it is incomplete."""
        buffer, at = self._buffer, self._at
        size = len(buffer) - at
        if size < 4:
            return None
        (length,) = _LENGTH.unpack_from(buffer, at)
        if not 1 <= length <= self._max_bytes:
            raise FrameError(f"frame length {length} is out of bounds")
        end = at + 4 + length
        if size < 4 + length:
            return None
        kind, payload = buffer[at + 4], bytes(memoryview(buffer)[at + 5 : end])
        if end == len(buffer):
            buffer.clear()
            end = 0
        self._at = end
        return kind, payload

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """All frames that are complete after `data`."""
        self.push(data)
        frames: list[tuple[int, bytes]] = []
        while (found := self.pop()) is not None:
            frames.append(found)
        return frames
