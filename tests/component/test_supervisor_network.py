"""What sandboxes reach: the internet, and nothing of the host. In namespaces of their own, with a fake internet."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from sandpty.isolation.network import resolvers
from tests.component.fake_internet import HOST_ADDRESS, UPLINK, inside, network_namespace, serve, wire
from tests.component.supervisor_peer import SERVER_UID, TEMPLATES, Peer, Supervised, attempt, run

INTERNET, METADATA, PRIVATE = "203.0.113.5", "169.254.169.254", "10.9.9.9"
RESOLVER = str((resolvers() or ["10.255.255.53"])[0])


@dataclass
class World:
    """A host between sandboxes and an internet."""

    host_pid: int
    internet_pid: int
    host: Supervised


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world() -> AsyncIterator[World]:
    """A supervisor in a namespace that has a default route, and servers on both sides of it."""
    with contextlib.ExitStack() as stack:
        host, internet = (stack.enter_context(network_namespace()) for _ in range(2))
        wire(host, internet, (INTERNET, METADATA, PRIVATE, RESOLVER))
        servers = [await serve(internet, address, 80) for address in (INTERNET, METADATA, PRIVATE, RESOLVER)]
        servers += [await serve(internet, RESOLVER, 53), await serve(host, "0.0.0.0", 8080)]
        under_test = Supervised()
        argv = [sys.executable, "-m", "sandpty.supervisor.watch", "--data-dir", str(under_test.path)]
        argv += ["--isolation", "crun", "--server-uid", str(SERVER_UID), "--pool", "1"]
        inside(host, *argv, "--templates-dir", str(TEMPLATES), "--no-base-build")
        try:
            yield World(host, internet, under_test)
        finally:
            await under_test.stop()
            for server in servers:
                server.close()
            assert "sandpty" not in inside(host, "nft", "list", "tables")
            assert inside(host, "sysctl", "-n", f"net.ipv4.conf.{UPLINK}.forwarding").strip() == "0"
            assert "sp" not in inside(host, "ip", "-br", "link").replace(UPLINK, "")


@pytest_asyncio.fixture
async def peer(world: World) -> AsyncIterator[Peer]:
    """A connection to the supervisor."""
    async with world.host.peer() as connected:
        yield connected


async def reaches(sandbox: dict[str, Any], address: str, port: int) -> bool:
    """Whether a connection from the sandbox gets its answer."""
    script = f"timeout 1 bash -c 'exec 3<>/dev/tcp/{address}/{port} && head -c 2 <&3'"
    return (await attempt(sandbox, script))[1].strip() == "ok"


async def test_a_sandbox_reaches_the_internet(peer: Peer) -> None:
    """Through the host's address; also one from the warm pool."""
    for limits in (None, {"disk_mb": 64}):
        sandbox = await peer.create(limits=limits)
        assert await reaches(sandbox, INTERNET, 80)
        await peer.call("kill", id=sandbox["id"])


@pytest.mark.parametrize(
    ("address", "port"),
    [(HOST_ADDRESS, 8080), (METADATA, 80), (PRIVATE, 80), (RESOLVER, 80), ("169.254.1.1", 8080), ("127.0.0.1", 8080)],
)
async def test_a_sandbox_reaches_nothing_of_the_host(peer: Peer, address: str, port: int) -> None:
    """Not the host's own addresses, not the cloud's metadata, not private networks."""
    sandbox = await peer.create()
    assert not await reaches(sandbox, address, port)
    await peer.call("kill", id=sandbox["id"])


async def test_the_name_server_is_reached_on_port_53_only(peer: Peer) -> None:
    """Although its address is a private one; and the guest's resolv.conf names it."""
    if RESOLVER not in [str(address) for address in resolvers()]:
        return  # this machine has no name server of its own
    sandbox = await peer.create()
    assert await reaches(sandbox, RESOLVER, 53)
    assert f"nameserver {RESOLVER}" in await run(sandbox, "cat /etc/resolv.conf")
    await peer.call("kill", id=sandbox["id"])


@pytest.mark.parametrize("disk_mb", [10240, 64], ids=["warm", "cold"])
async def test_internet_false_blocks_really(peer: Peer, disk_mb: int) -> None:
    """Neither the internet nor name servers; loopback works; root inside cannot change it."""
    sandbox = await peer.create(internet=False, limits={"disk_mb": disk_mb})
    assert not await reaches(sandbox, INTERNET, 80)
    assert not await reaches(sandbox, RESOLVER, 53)
    assert (await attempt(sandbox, "ip route add default via 169.254.1.1 dev eth0"))[0] != 0
    assert (await attempt(sandbox, "ip link set eth0 address 02:00:00:00:00:01"))[0] != 0
    assert "inet 127.0.0.1" in await run(sandbox, "ip addr show lo")
    await peer.call("kill", id=sandbox["id"])


async def test_sandboxes_do_not_reach_each_other(peer: Peer) -> None:
    """A server in one is not there for the other."""
    one, two = await peer.create(), await peer.create()
    address = (await run(one, "ip -4 -br addr show eth0")).split()[2].partition("/")[0]
    await run(one, "(setsid python3 -m http.server 8000 >/dev/null 2>&1 &)")
    await run(one, f"for i in $(seq 100); do (echo > /dev/tcp/{address}/8000) 2>/dev/null && break; sleep 0.05; done")
    assert (await attempt(one, f"timeout 1 bash -c 'echo > /dev/tcp/{address}/8000'"))[0] == 0
    assert (await attempt(two, f"timeout 1 bash -c 'echo > /dev/tcp/{address}/8000'"))[0] != 0
    for each in (one, two):
        await peer.call("kill", id=each["id"])


async def test_a_resumed_sandbox_has_the_network_it_had(peer: Peer) -> None:
    """After a pause to disk, with and without internet."""
    for internet in (True, False):
        sandbox = await peer.create(internet=internet)
        await peer.call("pause", id=sandbox["id"], memory=False)
        resumed = await peer.call("resume", id=sandbox["id"], end_at=sandbox["end_at"])
        assert await reaches(resumed, INTERNET, 80) is internet
        await peer.call("kill", id=sandbox["id"])


async def test_the_hosts_abstract_sockets_are_out_of_reach(peer: Peer) -> None:
    """An abstract unix socket of the host is another namespace's."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0sandpty-test-{os.getpid()}")
        listener.listen()
        sandbox = await peer.create()
        script = f"import socket; socket.socket(socket.AF_UNIX).connect('\\0sandpty-test-{os.getpid()}')"
        code, text = await attempt(sandbox, f'python3 -c "{script}"')
        assert code != 0
        assert "ConnectionRefusedError" in text
        await peer.call("kill", id=sandbox["id"])


async def test_the_supervisors_restart_keeps_connections(world: World, peer: Peer) -> None:
    """An established connection goes on while the supervisor is killed and comes back."""
    sandbox = await peer.create()
    script = f"exec 3<>/dev/tcp/{INTERNET}/80; sleep 2; head -c 2 <&3"
    waiting = asyncio.create_task(attempt(sandbox, script))
    killed = world.host.kill_supervisor()
    assert (await waiting)[1].strip() == "ok"
    await world.host.answering(killed)
    assert await reaches(sandbox, INTERNET, 80)
