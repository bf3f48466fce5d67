"""A server that does nothing: it gives E2B's SDK canned answers at once, so that what is left is the SDK's own time.

`python -m benchmarks.stub_server` prints its port and serves until stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from base64 import b64encode

SANDBOX = {
    "templateID": "base",
    "sandboxID": "i" + "0" * 20,
    "clientID": "stub",
    "envdVersion": "0.6.13",
    "envdAccessToken": "0" * 64,
    "domain": None,
}


def _plain(status: str, body: bytes = b"") -> bytes:
    kind = "Content-Type: application/json\r\n" if body else ""
    return f"HTTP/1.1 {status}\r\n{kind}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _chunk(message: object, flags: int = 0) -> bytes:
    content = json.dumps(message).encode()
    envelope = struct.pack(">BI", flags, len(content)) + content
    return f"{len(envelope):x}\r\n".encode() + envelope + b"\r\n"


def _stream(terminal: bool) -> bytes:
    """A Start as E2B answers it: in a terminal a prompt and no end, else an end at once."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/connect+json\r\nTransfer-Encoding: chunked\r\n\r\n"
    started = _chunk({"event": {"start": {"pid": 7}}})
    if terminal:
        return head + started + _chunk({"event": {"data": {"pty": b64encode(b"user@stub:~$ ").decode()}}})
    ended = _chunk({"event": {"end": {"exitCode": 0, "exited": True, "status": "exit status 0"}}})
    return head + started + ended + _chunk({}, flags=2) + b"0\r\n\r\n"


def _answer(head: bytes, body: bytes) -> bytes:
    method, path = head.split(b" ", 2)[:2]
    if method == b"DELETE":
        return _plain("204 No Content")
    if path.endswith(b"/sandboxes"):
        return _plain("201 Created", json.dumps(SANDBOX).encode())
    if path.endswith(b"/Start"):
        return _stream(b'"pty"' in body)
    return _plain("200 OK", b"{}")


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if fields.get(b"transfer-encoding") != b"chunked":
        return await reader.readexactly(int(fields.get(b"content-length", 0)))
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_answer(head, await _body(reader, head)))
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    """Serve on a free loopback port until stdin ends."""
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
