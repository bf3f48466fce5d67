"""An internet for tests: network namespaces, a host between sandboxes and the world, servers on made-up addresses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from cryptography import x509

from sandpty.certificates import signing
from sandpty.isolation import syscalls
from tests.component.supervisor_peer import program
from tests.waiting import until_sync

_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 3, 0x0800, 0x86DD
UPLINK, HOST_ADDRESS, ROUTER_ADDRESS = "up0", "198.51.100.2", "198.51.100.1"


@contextlib.contextmanager
def network_namespace() -> Iterator[int]:
    """The pid of a process in a network namespace of its own."""
    holder = subprocess.Popen(["unshare", "-n", "sleep", "900"])
    try:
        ours = os.readlink("/proc/self/ns/net")
        until_sync(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != ours, 30)
        yield holder.pid
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()


def inside(pid: int, *argv: str) -> str:
    """Run a program in the namespace."""
    done = program("nsenter", f"--net=/proc/{pid}/ns/net", *argv)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def in_namespace(pid: int) -> Iterator[None]:
    """This thread is there; no await inside."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        with syscalls.inside_network(fd):
            yield
    finally:
        os.close(fd)


def listening(pid: int, address: str, port: int) -> socket.socket:
    """A TCP listener in the namespace."""
    with in_namespace(pid):
        return socket.create_server((address, port))


async def serve(pid: int, address: str, port: int) -> asyncio.Server:
    """A server in the namespace that says `ok`."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ok\n")
        writer.close()

    return await asyncio.start_server(answer, sock=listening(pid, address, port))


def wire(host: int, internet: int, addresses: Sequence[str]) -> None:
    """The host's uplink, and everything that lies behind it."""
    program("ip", "link", "add", UPLINK, "netns", str(host), "type", "veth", "peer", "net0", "netns", str(internet))
    for line in (f"addr add {HOST_ADDRESS}/24 dev {UPLINK}", f"link set {UPLINK} up", "link set lo up"):
        inside(host, "ip", *line.split())
    inside(host, "ip", *f"route add default via {ROUTER_ADDRESS}".split())
    for line in (f"addr add {ROUTER_ADDRESS}/24 dev net0", "link set net0 up", "link set lo up"):
        inside(internet, "ip", *line.split())
    for address in addresses:
        inside(internet, "ip", "addr", "add", f"{address}/32", "dev", "lo")


class Listener:
    """Hears every IP packet that comes out of the host. Use as a context manager around what must be silent."""

    def __init__(self, internet: int) -> None:
        with in_namespace(internet):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
            self._socket.bind(("net0", _ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.setblocking(False)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def heard(self) -> list[tuple[int, int, str]]:
        """IP version, protocol and destination of what came until now, but for the host's own link-local multicast."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data, (_, kind, way, *_rest) = self._socket.recvfrom(2048)
                if way == socket.PACKET_OUTGOING or len(data) < 20:
                    continue
                if kind == _ETH_P_IP:
                    found.append((4, data[9], socket.inet_ntoa(data[16:20])))
                elif kind == _ETH_P_IPV6 and data[24:26] != b"\xff\x02":
                    found.append((6, data[6], socket.inet_ntop(socket.AF_INET6, data[24:40])))
        return found


class NameServer(asyncio.DatagramProtocol):
    """A resolver in the namespace. `records`: (name, type) -> texts, which tests may change; `asked`: what came."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.asked: list[str] = []
        self.ttl_s = 60

    async def open(self, pid: int, address: str) -> asyncio.DatagramTransport:
        with in_namespace(pid):
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind((address, 53))
        udp.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=udp)
        return transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where answers go."""
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        """Answer at once, with the whole chain of aliases."""
        query = dns.message.from_wire(data)
        question = query.question[0]
        self.asked.append(question.name.to_text(omit_final_dot=True))
        reply = dns.message.make_response(query)
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        known = False
        while (name, "CNAME") in self.records:
            known = True
            target = self.records[name, "CNAME"][0]
            reply.answer.append(dns.rrset.from_text(name + ".", self.ttl_s, "IN", "CNAME", target + "."))
            name = target
        if (name, kind) in self.records:
            reply.answer.append(dns.rrset.from_text(name + ".", self.ttl_s, "IN", kind, *self.records[name, kind]))
        elif not known and not any(each == name for each, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(reply.to_wire(), address)


class Authority:
    """Vouches for sites of this internet. `pem`: what who believes it has in SSL_CERT_FILE."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = signing.new_key()
        self._certificate = signing.authority("authority of a test", self._key, 2)
        self.pem = directory / "authority.pem"
        self.pem.write_bytes(signing.pem(self._certificate))

    def context(self, *names: str) -> ssl.SSLContext:
        """A server's, for these names."""
        key = signing.new_key()
        listed: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        leaf = signing.leaf(self._certificate, self._key, key.public_key(), listed, title=names[0], days=2)
        path = self._directory / f"{names[0]}.pem"
        path.write_bytes(signing.pem(leaf) + signing.key_pem(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


class SocksProxy:
    """A SOCKS5 proxy in the namespace, for one user or for everybody. `asked`: where it was told to go."""

    def __init__(self, pid: int, user: str = "", password: str = "") -> None:
        self._pid = pid
        self._login = (user.encode(), password.encode())
        self.asked: list[tuple[str, int]] = []
        self.refused = 0

    async def open(self, address: str, port: int, tls: ssl.SSLContext | None = None) -> asyncio.Server:
        """Close what it returns."""
        return await asyncio.start_server(self._accepted, sock=listening(self._pid, address, port), ssl=tls)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError):
            if not await self._greeted(reader, writer):
                self.refused += 1
                writer.close()
                return
            await reader.readexactly(4)
            address = socket.inet_ntoa(await reader.readexactly(4))
            port = int.from_bytes(await reader.readexactly(2), "big")
            self.asked.append((address, port))
            with in_namespace(self._pid):
                there = socket.create_connection((address, port), 10)
            there.setblocking(False)
            far, to_far = await asyncio.open_connection(sock=there)
            writer.write(bytes.fromhex("05000001000000000000"))
            await asyncio.gather(_pass(reader, to_far), _pass(far, writer))

    async def _greeted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        methods = await reader.readexactly((await reader.readexactly(2))[1])
        wanted = 2 if self._login[0] else 0
        writer.write(bytes([5, wanted if wanted in methods else 255]))
        if wanted == 2:
            await reader.readexactly(1)
            said = tuple([await reader.readexactly((await reader.readexactly(1))[0]) for _ in range(2)])
            writer.write(bytes([1, said != self._login]))
            return said == self._login
        return wanted in methods


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
