"""A host with a supervisor before a fake internet that has names, sites and a shared address, for tests of policies."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.component.fake_internet import (
    HOST_ADDRESS,
    UPLINK,
    Authority,
    NameServer,
    inside,
    listening,
    network_namespace,
    serve,
    wire,
)
from tests.component.supervisor_peer import SERVER_UID, TEMPLATES, Supervised, attempt

RESOLVER, OTHER_RESOLVER = "203.0.113.53", "203.0.113.54"
PROXY = "203.0.113.30"
SITE, EVIL, PRIVATE, METADATA = "203.0.113.10", "203.0.113.20", "10.9.9.9", "169.254.169.254"
ALL = "0.0.0.0/0"
# good and evil live at one address, as behind a content network.
RECORDS = {
    ("good.test", "A"): [SITE],
    ("good.test", "AAAA"): ["2001:db8::1"],
    ("good.test", "TXT"): ['"hello"'],
    ("alias.test", "CNAME"): ["cdn.other.test"],
    ("cdn.other.test", "A"): [SITE],
    ("evil.test", "A"): [EVIL],
    ("a.wild.test", "A"): [SITE],
    ("a.b.wild.test", "A"): [SITE],
    ("wild.test", "A"): [SITE],
    ("proxy.test", "A"): [PROXY],
    ("rebind.test", "A"): [PRIVATE, METADATA, "127.0.0.1"],
    ("host.test", "A"): [HOST_ADDRESS],
}
HTTP, TLS, SPEAKS_FIRST, ECHO, OTHER_TLS = 80, 443, 2222, 7000, 8443

# In the guest. `fetch` tells what a server says, or the name of the error.
GUEST = """
import socket, ssl, sys
def fetch(address, port, say=b"", name=None, wait=20):
    try:
        with socket.create_connection((address, port), wait) as plain:
            plain.settimeout(wait)
            link = plain
            if name is not None:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                link = context.wrap_socket(plain, server_hostname=name or None)
            if say:
                link.sendall(say)
            heard = b""
            while data := link.recv(65536):
                heard += data
            return heard.decode() or "nothing"
    except Exception as error:
        return type(error).__name__
def get(name):
    return b"GET / HTTP/1.1\\r\\nHost: " + name.encode() + b"\\r\\nConnection: close\\r\\n\\r\\n"
def resolve(name):
    try:
        return sorted({each[4][0] for each in socket.getaddrinfo(name, 80, proto=socket.IPPROTO_TCP)})
    except OSError as error:
        return type(error).__name__
"""


@dataclass
class World:
    """What a test needs of it."""

    host_pid: int
    internet_pid: int
    host: Supervised
    names: NameServer
    other_names: NameServer
    authority: Authority
    hosts_seen: list[str] = field(default_factory=list)  # by the sites' web servers
    heads: list[str] = field(default_factory=list)  # the same, whole
    connections: set[asyncio.StreamWriter] = field(default_factory=set)  # of the sites

    @property
    def env(self) -> tuple[str, ...]:
        """What programs on the host are told of this internet."""
        return f"SANDPTY_NAME_SERVERS={RESOLVER}", f"SSL_CERT_FILE={self.authority.pem}"

    def egress_pid(self) -> int:
        return int((self.host.path / "egress" / "pid").read_text())


async def ask(sandbox: dict[str, Any], expression: str, user: str = "root") -> Any:
    """The value of a Python expression in the guest, with GUEST's functions."""
    code, text = await attempt(sandbox, f"python3 - <<'END'\n{GUEST}\nprint(repr({expression}))\nEND", user, 60)
    assert code == 0, text
    return eval(text.strip().splitlines()[-1])  # our own repr, from our own program


async def _web(world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says which host was asked for, keeps the connection while it is asked."""
    with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            world.heads.append(head)
            world.hosts_seen.append(fields.get("host", ""))
            if "upgrade" in fields:
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                await _echo(reader, writer)
                break
            while " /flood " in head:
                writer.write(bytes(65536))
                await writer.drain()
            sent = await _body(reader, fields)
            said = head if " /head " in head else f"web {fields.get('host')}" + (f" {len(sent)}" if sent else "")
            body = said.encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
            if fields.get("connection") == "close":
                break
    writer.close()


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if fields.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(fields.get("content-length", 0)))
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


async def _first(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"welcome")
    writer.close()


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _servers(world: World) -> list[asyncio.Server]:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        world.connections.add(writer)
        await _web(world, reader, writer)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        world.connections.add(writer)
        await _echo(reader, writer)

    tls = world.authority.context("good.test", "*.wild.test", "cdn.other.test")
    pid = world.internet_pid
    servers = []
    for address in (SITE, EVIL):
        for port, answer, context in (
            (HTTP, web, None),
            (TLS, web, tls),
            (SPEAKS_FIRST, _first, None),
            (ECHO, echo, None),
            (OTHER_TLS, web, tls),
        ):
            servers.append(await asyncio.start_server(answer, sock=listening(pid, address, port), ssl=context))
    servers += [await serve(pid, address, HTTP) for address in (PRIVATE, METADATA)]
    servers.append(await serve(world.host_pid, "0.0.0.0", HTTP))
    return servers


@asynccontextmanager
async def world_before_a_supervisor() -> AsyncIterator[World]:
    """The internet and the host, on which nothing of ours runs yet. Checks that nothing is left behind."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sp-")))
        host, internet = (stack.enter_context(network_namespace()) for _ in range(2))
        wire(host, internet, (PROXY, SITE, EVIL, PRIVATE, METADATA, RESOLVER, OTHER_RESOLVER))
        world = World(host, internet, Supervised(), NameServer(), NameServer(), Authority(directory))
        world.names.records = dict(RECORDS)
        world.other_names.records = {("good.test", "A"): [EVIL]}
        transports = [
            await world.names.open(internet, RESOLVER),
            await world.other_names.open(internet, OTHER_RESOLVER),
        ]
        servers = await _servers(world)
        try:
            yield world
        finally:
            await world.host.stop()
            for server in servers:
                server.close()
            for connection in world.connections:
                connection.transport.abort()
            for transport in transports:
                transport.close()
            assert "sandpty" not in inside(host, "nft", "list", "tables")
            assert "sp" not in inside(host, "ip", "-br", "link").replace(UPLINK, "")


@asynccontextmanager
async def policy_world(pool: int = 1) -> AsyncIterator[World]:
    """With a supervisor, ended at the end."""
    async with world_before_a_supervisor() as world:
        argv = [sys.executable, "-m", "sandpty.supervisor.watch", "--data-dir", str(world.host.path)]
        argv += ["--isolation", "crun", "--server-uid", str(SERVER_UID), "--pool", str(pool)]
        argv += ["--templates-dir", str(TEMPLATES), "--no-base-build"]
        inside(world.host_pid, "env", *world.env, *argv)
        yield world
