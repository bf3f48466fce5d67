#!/usr/bin/env python3
"""What the documents use of websocat, for machines that have none: binary WebSocket messages to and from TCP or stdio.

    websocat -b --exit-on-eof ws-l:0.0.0.0:8081 tcp:127.0.0.1:22      a server: each WebSocket is a TCP connection
    websocat --binary -B 65536 - ws://8081-ID.localhost:3980          a client: stdin and stdout

Only the standard library: it also runs inside sandboxes.
"""

import asyncio
import base64
import hashlib
import os
import sys
from urllib.parse import urlsplit

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
BINARY, CLOSE, PING, PONG = 2, 8, 9, 10
PIECE_BYTES = 65536


def accept(key):
    """The answer to a client's key (RFC 6455, 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + GUID).digest())


def frame(kind, data, masked):
    """One frame; a client's are masked."""
    size = len(data)
    bit = 0x80 if masked else 0
    if size < 126:
        head = bytes((0x80 | kind, bit | size))
    elif size < 65536:
        head = bytes((0x80 | kind, bit | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | kind, bit | 127)) + size.to_bytes(8, "big")
    return head + (bytes(4) if masked else b"") + data  # the mask 0 leaves the data as it is


def unmasked(data, mask):
    """The data, whatever the mask."""
    if not any(mask):
        return data
    long = int.from_bytes((mask * (len(data) // 4 + 1))[: len(data)], "big")
    return (int.from_bytes(data, "big") ^ long).to_bytes(len(data), "big")


async def receive(reader):
    """The next frame: its kind and data."""
    first, second = await reader.readexactly(2)
    size = second & 0x7F
    if size > 125:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
    mask = await reader.readexactly(4) if second & 0x80 else bytes(4)
    return first & 0x0F, unmasked(await reader.readexactly(size), mask)


async def head(reader):
    """The lines of a request or an answer."""
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    fields = [line.partition(b":") for line in lines[1:] if line]
    return lines[0], {name.strip().lower(): value.strip() for name, _, value in fields}


async def carry(web, plain, masked):
    """Both ways, until one has ended. Each is a pair of reader and writer."""

    async def out():
        while data := await plain[0].read(PIECE_BYTES):
            web[1].write(frame(BINARY, data, masked))
            await web[1].drain()
        web[1].write(frame(CLOSE, b"", masked))

    async def into():
        while True:
            kind, data = await receive(web[0])
            if kind == CLOSE:
                return
            if kind == PING:
                web[1].write(frame(PONG, data, masked))
            elif data:
                plain[1].write(data)
                await plain[1].drain()

    tasks = [asyncio.create_task(out()), asyncio.create_task(into())]
    _, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for writer in (web[1], plain[1]):
        writer.close()


async def serve(listen, target):
    """ws-l:HOST:PORT to tcp:HOST:PORT."""

    async def accepted(reader, writer):
        _, fields = await head(reader)
        answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(answer + b"Sec-WebSocket-Accept: " + accept(fields[b"sec-websocket-key"]) + b"\r\n\r\n")
        await carry((reader, writer), await asyncio.open_connection(*target), masked=False)

    server = await asyncio.start_server(accepted, *listen)
    await server.serve_forever()


async def stdio():
    """stdin and stdout as streams."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def connect(url):
    """stdin and stdout to a WebSocket."""
    parts = urlsplit(url)
    secure = parts.scheme == "wss"
    # Names below localhost are this machine, also where no resolver says so (RFC 6761).
    host = "127.0.0.1" if parts.hostname.endswith("localhost") else parts.hostname
    port = parts.port or (443 if secure else 80)
    name = parts.hostname if secure else None
    reader, writer = await asyncio.open_connection(host, port, ssl=secure or None, server_hostname=name)
    key = base64.b64encode(os.urandom(16))
    request = f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n".encode()
    writer.write(
        request + b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
    )
    status, fields = await head(reader)
    if b" 101 " not in status + b" " or fields[b"sec-websocket-accept"] != accept(key):
        sys.exit(f"websocat: {status.decode(errors='replace')}")
    await carry((reader, writer), await stdio(), masked=True)


def address(text):
    """`tcp:127.0.0.1:22` -> host, port."""
    _, host, port = text.split(":")
    return host, int(port)


def main():
    """The two ways in which the documents call it."""
    words = [word for word in sys.argv[1:] if word == "-" or not word.startswith("-")]
    if words[0].startswith("ws-l:"):
        asyncio.run(serve(address(words[0]), address(words[1])))
    else:
        asyncio.run(connect(words[-1]))


if __name__ == "__main__":
    main()
