"""Connect streams by hand, for what the SDKs never do."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any


def envelope(message: object, flags: int = 0) -> bytes:
    """A message as it goes into a stream."""
    body = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(body)) + body


def envelopes(body: bytes) -> list[tuple[int, Any]]:
    """(flags, message) of a whole response."""
    found = []
    while body:
        flags, length = struct.unpack_from(">BI", body)
        found.append((flags, json.loads(body[5 : 5 + length])))
        body = body[5 + length :]
    return found


def events(body: bytes) -> list[dict[str, Any]]:
    """The process events of a whole response, without the end of the stream."""
    return [message["event"] for flags, message in envelopes(body) if flags == 0]


def ending(body: bytes) -> dict[str, Any]:
    """How a stream ended: {} or {"code", "message"}."""
    flags, message = envelopes(body)[-1]
    assert flags == 2, "the stream has no end envelope"
    error: dict[str, Any] = message.get("error", {})
    return error


def output(body: bytes, stream: str = "stdout") -> bytes:
    """Everything one stream of a process said."""
    return b"".join(base64.b64decode(event["data"].get(stream, "")) for event in events(body) if "data" in event)


def b64(data: bytes) -> str:
    """Bytes as proto3 JSON has them."""
    return base64.b64encode(data).decode()
