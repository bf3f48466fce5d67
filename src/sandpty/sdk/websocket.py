"""WebSockets (RFC 6455) as bytes in and bytes out, for `_async.sockets`: a client's side, without extensions.

Libraries that do this take 40 ms to load, and a thread and a queue for each blocking connection: too much for a command
line that is to be done in a fifth of a second, and for output that is to come as fast as a terminal can say it.
"""

from __future__ import annotations

import binascii
import hashlib
import os
from collections import deque
from typing import TypeAlias

from sandpty.wire.types import MAX_FRAME_BYTES

Message: TypeAlias = str | bytes | memoryview  # texts are str

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
GOOD_END = 1000
NO_CODE = 1005  # a goodbye that says no reason
_CONTROL_BYTES_MOST = 125
_MASKED_AT_ONCE_BYTES = 4096  # stays in the nearest cache: twice as fast as all at once
_MASKED = 0x80
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class BrokenWebSocketError(Exception):
    """What came is no WebSocket's."""


class ClosedWebSocketError(Exception):
    """There are no more messages. `code` and `text` are the server's last words; 0: it said none."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text or 'closed'} ({code})" if code else text)
        self.code = code
        self.text = text


def new_key() -> bytes:
    """What a handshake proves to be answered."""
    return binascii.b2a_base64(os.urandom(16), newline=False)


def accepted(key: bytes) -> bytes:
    """The answer to it (RFC 6455, 4.2.2)."""
    return binascii.b2a_base64(hashlib.sha1(key + _GUID, usedforsecurity=False).digest(), newline=False)


def encode(kind: int, payload: bytes | memoryview) -> bytes:
    """One whole message, masked as a client's must be."""
    length = len(payload)
    if length < 126:
        head = bytes((_MASKED | kind, _MASKED | length))
    elif length < 1 << 16:
        head = bytes((_MASKED | kind, _MASKED | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((_MASKED | kind, _MASKED | 127)) + length.to_bytes(8, "big")
    mask = os.urandom(4)
    parts = [head, mask]
    for at in range(0, length, _MASKED_AT_ONCE_BYTES):
        piece = payload[at : at + _MASKED_AT_ONCE_BYTES]
        if at == 0 or len(piece) < _MASKED_AT_ONCE_BYTES:
            stream = int.from_bytes((mask * (len(piece) // 4 + 1))[: len(piece)], "little")
        parts.append((int.from_bytes(piece, "little") ^ stream).to_bytes(len(piece), "little"))
    return b"".join(parts)


def encode_close(code: int) -> bytes:
    """A goodbye."""
    return encode(CLOSE, code.to_bytes(2, "big"))


class MessageReader:
    """Cuts what comes into messages. `messages` are the program's, `controls` (kind, payload) the connection's."""

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self.controls: deque[tuple[int, bytes]] = deque()
        self._pieces: list[bytes] = []  # of a frame that is not whole
        self._missing = 0  # bytes of it, as far as is known
        self._begun: bytearray | None = None  # a message in several frames
        self._begun_kind = BINARY

    def feed(self, data: bytes) -> None:
        """Raises BrokenWebSocketError."""
        self._pieces.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        if len(self._pieces) > 1:
            data = b"".join(self._pieces)
        view, at, end = memoryview(data), 0, len(data)
        while (whole := _frame_bytes(data, at, end)) <= end - at:
            header = 2 if data[at + 1] < 126 else 4 if data[at + 1] == 126 else 10
            self._take(data[at], view[at + header : at + whole])
            at += whole
        self._pieces = [data[at:]] if at < end else []
        self._missing = whole - (end - at)

    def _take(self, first: int, payload: memoryview) -> None:
        kind, is_last = first & 0x0F, bool(first & 0x80)
        if first & 0x70:
            raise BrokenWebSocketError("an extension that nobody asked for")
        if kind == BINARY and is_last and self._begun is None:
            self.messages.append(payload)
        elif kind >= CLOSE:
            if kind > PONG or not is_last or len(payload) > _CONTROL_BYTES_MOST:
                raise BrokenWebSocketError(f"no control frame: kind {kind}, {len(payload)} bytes")
            self.controls.append((kind, bytes(payload)))
        else:
            self._join(kind, is_last, payload)

    def _join(self, kind: int, is_last: bool, payload: memoryview) -> None:
        if kind > BINARY or (kind == CONTINUATION) != (self._begun is not None):
            raise BrokenWebSocketError("frames that do not follow each other")
        if self._begun is None:
            self._begun, self._begun_kind = bytearray(), kind
        self._begun += payload
        if len(self._begun) > MAX_FRAME_BYTES:
            raise BrokenWebSocketError(f"a message is over the limit of {MAX_FRAME_BYTES} bytes")
        if is_last:
            whole, self._begun = bytes(self._begun), None
            self.messages.append(_text(whole) if self._begun_kind == TEXT else whole)


def _frame_bytes(data: bytes, at: int, end: int) -> int:
    """How long the frame is that begins there, or what must be there to know. Raises BrokenWebSocketError."""
    if end - at < 2:
        return 2
    length, more = data[at + 1], 0
    if length >= 126:
        if length > 127:
            raise BrokenWebSocketError("a server's frames are not masked")
        more = 2 if length == 126 else 8
        if end - at < 2 + more:
            return 2 + more
        length = int.from_bytes(data[at + 2 : at + 2 + more], "big")
    if length > MAX_FRAME_BYTES:
        raise BrokenWebSocketError(f"a message of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    return 2 + more + length


def closing(payload: bytes) -> tuple[int, str]:
    """Code and text of a goodbye. Raises BrokenWebSocketError."""
    if len(payload) < 2:
        return NO_CODE, ""
    return int.from_bytes(payload[:2], "big"), _text(payload[2:])


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise BrokenWebSocketError("a text that is no UTF-8") from error
