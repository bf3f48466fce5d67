"""Connect streams by hand, for what the SDKs never do."""

from __future__ import annotations

import base64
import http.client
import json
import struct
from typing import Any
from urllib.parse import urlparse

import httpx

from tests.conformance.conftest import Envd

STREAM = {"Content-Type": "application/connect+json"}
UNKNOWN = "i00000000000000000000"


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


def check_error(answer: httpx.Response, status: int) -> str:
    """Every error is {"code": <the status>, "message": <text>}: Python raises KeyError on anything less."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["code"] == status
    assert body["message"]
    return str(body["message"])


def asked(*argv: str, **more: Any) -> dict[str, Any]:
    """A StartRequest."""
    return {"process": {"cmd": argv[0], "args": list(argv[1:])}, **more}


def run(envd: Envd, message: object, **headers: str) -> bytes:
    """Start a process and read its whole stream."""
    answer = envd.raw("process.Process/Start", envelope(message), **STREAM, **headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/connect+json"
    return answer.content


class Stream:
    """A process stream read event by event."""

    def __init__(self, envd: Envd, method: str, message: object, **headers: str) -> None:
        parts = urlparse(envd.url)
        self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        self.connection.request(
            "POST", f"/process.Process/{method}", envelope(message), {**envd.headers, **STREAM, **headers}
        )
        self.response = self.connection.getresponse()
        self.pid = 0

    def next(self) -> Any:
        """The next message; ("end", error) for the last."""
        flags, length = struct.unpack(">BI", self.response.read(5))
        message = json.loads(self.response.read(length))
        if flags:
            return "end", message.get("error")
        event = message["event"]
        self.pid = event.get("start", {}).get("pid", self.pid)
        return event

    def close(self) -> None:
        """Go away without a word."""
        self.response.close()
        self.connection.close()
