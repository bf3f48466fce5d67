"""Root inside a sandbox tries to get around its network policy. What the internet hears decides."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sandpty import config
from tests.component.fake_internet import HOST_ADDRESS, Listener
from tests.component.network_policy_world import (
    ALL,
    EVIL,
    METADATA,
    OTHER_RESOLVER,
    PRIVATE,
    RESOLVER,
    SITE,
    SPEAKS_FIRST,
    World,
    ask,
)
from tests.component.supervisor_peer import Peer, attempt, run

NAMES = {"allow_out": ["good.test", "*.wild.test", "rebind.test", "host.test"], "deny_out": [ALL]}
ICMP, TCP, UDP = 1, 6, 17
# A DNS question by hand: whom it is sent to is the point.
QUESTION = """
import socket, struct
def question(name, kind=1):
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
    return struct.pack(">HHHHHH", 4711, 0x100, 1, 0, 0, 0) + labels + bytes(1) + struct.pack(">HH", kind, 1)
def rcode(answer):
    return answer[3] & 15, struct.unpack(">H", answer[6:8])[0]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guest(peer: Peer) -> dict[str, Any]:
    """Who attacks: it may reach some names."""
    return await peer.create(network=NAMES)


def elsewhere(heard: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """What came out, but for TCP to the allowed site, and what the host says to its resolver."""
    return [each for each in heard if each not in ((4, TCP, SITE), (4, UDP, RESOLVER), (4, ICMP, RESOLVER))]


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _rss_kib(world: World) -> int:
    return int(_status(world.egress_pid())["VmRSS"].split()[0])


async def python(guest: dict[str, Any], program: str, timeout_s: float = 60) -> str:
    """What a program says that root runs in the guest."""
    return (await attempt(guest, f"python3 - <<'END'\n{program}\nEND", "root", timeout_s))[1].strip()


async def test_other_resolvers_are_not_asked(world: World, guest: dict[str, Any]) -> None:
    """Over UDP and TCP, with a forbidden name: the answer is ours, and the resolver heard nothing."""
    program = (
        QUESTION
        + f"""
for server in ("{OTHER_RESOLVER}", "8.8.8.8", "{PRIVATE}", "169.254.1.1"):
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(10)
    u.sendto(question("evil.test"), (server, 53)); print(rcode(u.recv(4096)))
    t = socket.create_connection((server, 53), 10)
    q = question("evil.test"); t.sendall(struct.pack(">H", len(q)) + q); print(rcode(t.recv(4096)[2:]))
    u.sendto(question("good.test"), (server, 53)); print(rcode(u.recv(4096)))
"""
    )
    with Listener(world.internet_pid) as listener:
        lines = (await python(guest, program)).splitlines()
        assert lines == ["(3, 0)", "(3, 0)", "(0, 1)"] * 4
        assert elsewhere(listener.heard()) == []
    assert world.other_names.asked == []
    assert "evil.test" not in world.names.asked


@pytest.mark.parametrize("kind", [28, 64, 65, 255, 12])
async def test_answers_lead_to_no_other_way(guest: dict[str, Any], kind: int) -> None:
    """No IPv6 addresses, no HTTPS records (hidden server names), nothing for ANY or unknown kinds."""
    program = (
        QUESTION
        + f"""
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(10)
u.sendto(question("good.test", {kind}), ("8.8.8.8", 53)); print(rcode(u.recv(4096)))
"""
    )
    assert await python(guest, program) == "(0, 0)"


async def test_addresses_without_a_name_are_not_reached(world: World, guest: dict[str, Any]) -> None:
    """Whatever the port, and whatever the connection says it is for: what is allowed goes where it belongs."""
    with Listener(world.internet_pid) as listener:
        for port in (22, 25, 853, SPEAKS_FIRST, 8443):
            heard = await ask(guest, f"fetch({EVIL!r}, {port}, b'SSH-2.0-x\\r\\n', wait=5)")
            assert heard in ("ConnectionResetError", "nothing"), port
        assert "good.test" in await ask(guest, f"fetch({EVIL!r}, 80, get('good.test'))")
        for name in ("evil.test", "dns.google", EVIL, "", "good.test.evil.test", "xgood.test"):
            assert await ask(guest, f"fetch({SITE!r}, 80, get({name!r}))") == "ConnectionResetError", name
        for name in ("evil.test", "dns.google", ""):
            said = await ask(guest, f"fetch({SITE!r}, 443, get('good.test'), {name!r})")
            assert said in ("SSLError", "ConnectionResetError", "SSLZeroReturnError"), name
        assert elsewhere(listener.heard()) == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\nGET /second HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.test\r\nHost: evil.test\r\n\r\n",
        b"GET http://evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"CONNECT evil.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : evil.test\r\nHost: good.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.test\r\n evil.test\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
    ],
    ids=["pipelined", "two hosts", "absolute", "connect", "two lengths", "space", "folded", "http2", "no host"],
)
async def test_requests_for_others_on_a_shared_address_do_not_pass(
    world: World, guest: dict[str, Any], request_bytes: bytes
) -> None:
    """The site at the address also serves evil.test; it never hears that name."""
    world.hosts_seen.clear()
    await ask(guest, f"fetch({SITE!r}, 80, {request_bytes!r}, wait=5)")
    assert "evil.test" not in world.hosts_seen


async def test_a_server_name_said_late_or_in_pieces_is_read_all_the_same(world: World, guest: dict[str, Any]) -> None:
    """On a port where servers may speak first: after a silence, byte by byte."""
    program = """
import select, socket, ssl
context = ssl.create_default_context(); context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
for name in ("good.test", "evil.test"):
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    link = context.wrap_bio(inward, outward, server_hostname=name)
    try: link.do_handshake()
    except ssl.SSLWantReadError: pass
    s = socket.create_connection(("good.test", 8443), 10)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert select.select([s], [], [], 0.6)[0] == [] # the silence: both wait for the other to speak first
    try:
        for byte in outward.read(): s.sendall(bytes([byte]))
        print(name, s.recv(1) == b"\\x16")
    except OSError as error:
        print(name, type(error).__name__)
"""
    lines = (await python(guest, program)).splitlines()
    assert lines[0] == "good.test True"
    assert lines[1] in ("evil.test False", "evil.test ConnectionResetError", "evil.test BrokenPipeError")


async def test_names_that_point_at_the_host_or_its_networks_lead_nowhere(world: World, guest: dict[str, Any]) -> None:
    """Rebinding: by address, by name through the proxy, and when the answer changes between two questions."""
    assert await ask(guest, "resolve('rebind.test')") == "gaierror"
    with Listener(world.internet_pid) as listener:
        for name in ("rebind.test", "host.test"):
            for port in (80, SPEAKS_FIRST):
                heard = await ask(guest, f"fetch({SITE!r}, {port}, get({name!r}), wait=5)")
                assert "ok" not in heard, (name, port, heard)
        for address in (HOST_ADDRESS, PRIVATE, METADATA, "127.0.0.1", "10.0.0.1"):
            assert "ok" not in await ask(guest, f"fetch({address!r}, 80, get('good.test'), wait=3)")
        assert not {each[2] for each in listener.heard()} & {PRIVATE, METADATA, HOST_ADDRESS}


RAW = """
import socket, struct, time
def checksum(data):
    total = sum(struct.unpack(">%dH" % (len(data) // 2), data)); total = (total >> 16) + (total & 0xffff)
    return 0xffff - (total + (total >> 16) & 0xffff)
def packet(source, target, protocol, payload):
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(target))
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload
syn = struct.pack(">HHIIBBHHH", 4242, 80, 1, 0, 0x50, 2, 8192, 0, 0)
udp = struct.pack(">HHHH", 4242, 443, 12, 0) + b"quic"
ping = struct.pack(">BBHHH", 8, 0, 0xf7fd, 1, 1)
"""


async def test_no_other_protocol_gets_out(world: World, guest: dict[str, Any]) -> None:
    """UDP and QUIC, ping, GRE, SCTP, fragments: by ordinary and by raw sockets, to allowed and to other addresses."""
    program = (
        RAW
        + f"""
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); own.connect(("8.8.8.8", 9)); me = own.getsockname()[0]
for target in ("{SITE}", "{EVIL}"):
    for port in (443, 80, 123, 853, 5353): plain.sendto(b"hello", (target, port))
    for protocol, payload in ((17, udp), (1, ping), (47, b"gre-gre-"), (132, b"sctpsctp"), (50, b"espespes")):
        try: raw.sendto(packet(me, target, protocol, payload), (target, 0))
        except OSError: pass
print("done")
"""
    )
    with Listener(world.internet_pid) as listener:
        assert await python(guest, program) == "done"
        assert "good.test" in await ask(guest, "fetch('good.test', 80, get('good.test'))")  # after all of them
        assert elsewhere(listener.heard()) == []


async def test_spoofed_addresses_get_nobody_out(world: World, peer: Peer, guest: dict[str, Any]) -> None:
    """As a sandbox that may do everything, as the egress process, as the host; by raw IP, raw frames, IPv6."""
    free = await peer.create()
    address = (await run(free, "ip -4 -br addr show eth0")).split()[2].partition("/")[0]
    program = f"""{RAW}
try: socket.socket(socket.AF_PACKET, socket.SOCK_RAW); print("frames of its own")
except OSError: pass
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
egress = ".".join("{address}".split(".")[:2]) + ".%d.161" % (int("{address}".split(".")[2]) // 16 * 16 + 15)
for source in ("{address}", egress, "{HOST_ADDRESS}", "{SITE}", "127.0.0.1"):
    for protocol, payload in ((6, syn), (17, udp)):
        try: raw.sendto(packet(source, "{EVIL}", protocol, payload), ("{EVIL}", 0))
        except OSError: pass
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_RAW):
    try:
        six = socket.socket(socket.AF_INET6, kind, 17 if kind == socket.SOCK_RAW else 0)
        six.setblocking(False); six.connect(("2001:db8::1", 80)); six.send(b"x")
    except OSError: pass
print("done")
"""
    with Listener(world.internet_pid) as listener:
        assert await python(guest, program) == "done"
        assert "good.test" in await ask(guest, "fetch('good.test', 80, get('good.test'))")
        assert elsewhere(listener.heard()) == []
    await peer.call("kill", id=free["id"])


@pytest.mark.parametrize(
    "command",
    [
        "ip route add 203.0.113.20/32 dev eth0",
        "ip route replace default dev eth0",
        "ip addr add 10.0.0.1/32 dev eth0",
        "ip link set eth0 address 02:00:00:00:00:01",
        "ip neigh replace 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0",
        "ip rule add from all lookup 100",
        "ip tunnel add t0 mode ipip remote 203.0.113.20 local any",
        "nft add table inet x",
        "sysctl -w net.ipv4.ip_forward=1",
        "sysctl -w net.ipv6.conf.eth0.disable_ipv6=0",
    ],
)
async def test_root_inside_changes_nothing_of_its_network(guest: dict[str, Any], command: str) -> None:
    """It has no right to."""
    assert (await attempt(guest, command))[0] != 0


async def test_the_egress_process_is_no_way_to_others(world: World, peer: Peer, guest: dict[str, Any]) -> None:
    """Sandboxes without domains do not reach it; with domains nobody reaches it by its own address."""
    free = await peer.create()
    own = (await run(free, "ip -4 -br addr show eth0")).split()[2].partition("/")[0].split(".")
    egress = f"{own[0]}.{own[1]}.{int(own[2]) // 16 * 16 + 15}.161"
    for sandbox in (free, guest):
        for port in (1, 80, 443):
            assert "web" not in await ask(sandbox, f"fetch({egress!r}, {port}, get('good.test'), wait=1)")
    status = _status(world.egress_pid())
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert "0" not in status["Uid"].split()
    assert status["NoNewPrivs"] == "1"
    await peer.call("kill", id=free["id"])


async def test_updates_leave_no_gap(world: World, peer: Peer) -> None:
    """While policies change, all of which deny it, an address is tried all the time: nothing of it comes out."""
    guest = await peer.create(network={"deny_out": [EVIL]})
    policies = [NAMES, {"deny_out": [EVIL]}, {"deny_out": [ALL]}, {"allow_out": [SITE], "deny_out": [ALL]}]
    program = f"""
import socket, time
until = time.monotonic() + 2
while time.monotonic() < until:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        s = socket.socket(socket.AF_INET, kind); s.setblocking(False)
        try: s.connect(("{EVIL}", 7)); s.send(b"x")
        except OSError: pass
        s.close()
print("done")
"""
    with Listener(world.internet_pid) as listener:
        trying = asyncio.create_task(python(guest, program))
        while not trying.done():
            for policy in policies:
                await peer.call("network", id=guest["id"], policy=policy)
        assert await trying == "done"
        assert [each for each in listener.heard() if each[2] == EVIL] == []
    await peer.call("kill", id=guest["id"])


async def test_a_flood_of_one_costs_the_others_nothing(world: World, peer: Peer, guest: dict[str, Any]) -> None:
    """Garbage and questions as fast as it can, and hundreds of connections that say nothing."""
    program = (
        QUESTION
        + """
import os, time
held = []
for _ in range(700):
    s = socket.socket(); s.setblocking(False)
    try: s.connect(("203.0.113.10", 443))
    except OSError: pass
    held.append(s)
u = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(50)]
until = time.monotonic() + 2
n = 0
while time.monotonic() < until:
    n += 1
    try: u[n % 50].sendto(os.urandom(60) if n % 2 else question("a%d.wild.test" % n), ("8.8.8.8", 53))
    except OSError: pass
print("done")
"""
    )
    attacker = await peer.create(network=NAMES)
    attacking = asyncio.create_task(python(attacker, program))
    worked = 0
    while not attacking.done():
        assert "good.test" in await ask(guest, "fetch('good.test', 80, get('good.test'), wait=30)")
        worked += 1
    assert await attacking == "done"
    assert worked
    assert _rss_kib(world) < 128 << 10
    await peer.call("kill", id=attacker["id"])


async def test_connections_that_are_looked_into_hold_little_memory(world: World, peer: Peer) -> None:
    """As many as there can be, with answers that nobody reads and heads that never end; somebody else's go on."""
    program = """
import socket, ssl
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
held = []
for n in range(136):
    try:
        plain = socket.create_connection(("203.0.113.10", 443), 20)
        s = context.wrap_socket(plain, server_hostname="good.test")
        head = b"GET /flood HTTP/1.1\\r\\nHost: good.test\\r\\n"
        s.sendall(head + (b"\\r\\n" if n % 8 == 0 else b"X-Long: " + b"a" * 60_000))
        held.append(s)
    except OSError:
        pass
print(len(held))
"""
    headers = {"headers": {"good.test": {"X-Key": "secret"}}}
    attacker, other = [await peer.create(network=headers) for _ in range(2)]
    before = _rss_kib(world)
    attacking = asyncio.create_task(python(attacker, program))
    worked = most = 0
    while not attacking.done():
        assert "good.test" in await ask(other, "fetch('good.test', 443, get('good.test'), 'good.test', wait=30)")
        worked, most = worked + 1, max(most, _rss_kib(world))
    held = int((await attacking).splitlines()[0])
    assert 100 <= held <= config.EGRESS_INSPECTED_PER_GUEST
    assert worked
    assert most - before < 64 << 10  # asyncio's own buffers for so many would be all of that
    for sandbox in (attacker, other):
        await peer.call("kill", id=sandbox["id"])
