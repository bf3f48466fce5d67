"""Warm sandboxes: claimed in a moment, with what was asked for."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sandpty.supervisor import state
from sandpty.wire.errors import SandptyError
from tests.component.supervisor_peer import Peer, Supervised, alive, attempt, group, number, run, supervised
from tests.waiting import until


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def host() -> AsyncIterator[Supervised]:
    """One supervisor for this module, with two warm sandboxes."""
    async with supervised(pool=2) as running:
        yield running


@pytest_asyncio.fixture
async def peer(host: Supervised) -> AsyncIterator[Peer]:
    """A connection, once the pool is full."""
    async with host.peer() as connected:
        await until(lambda: warm(host) >= 2, 20, "a full pool")
        yield connected


def warm(host: Supervised) -> int:
    """How many sandboxes wait to be claimed."""
    kept = (state.read(directory) for directory in host.data.sandboxes.iterdir())
    return sum(meta is not None and meta.phase == "warm" for meta in kept)


async def test_a_warm_sandbox_is_claimed_and_the_pool_refills(host: Supervised, peer: Peer) -> None:
    """The claimed one was there before; another takes its place."""
    before = {path.name for path in host.data.sandboxes.iterdir()}
    assert await peer.ids() == set()  # warm ones are nobody's business
    sandbox = await peer.create(template="base")
    assert sandbox["id"] in before
    assert await run(sandbox, "hostname") == sandbox["id"] + "\n"
    await until(lambda: warm(host) >= 2, 20, "the refill")
    await peer.call("kill", id=sandbox["id"])


async def test_a_claim_gets_its_own_limits(host: Supervised, peer: Peer) -> None:
    """memory and pids differ from the warm default; a different disk size is made anew."""
    before = {path.name for path in host.data.sandboxes.iterdir()}
    sandbox = await peer.create(limits={"memory_mb": 128, "pids": 50})
    assert sandbox["id"] in before
    assert number(group(sandbox["pid"], "memory") / "memory.limit_in_bytes") == 128 << 20
    assert number(group(sandbox["pid"], "pids") / "pids.max") == 50
    small = await peer.create(limits={"disk_mb": 32})
    assert small["id"] not in before
    for each in (sandbox, small):
        await peer.call("kill", id=each["id"])


async def test_a_bad_create_costs_no_warm_sandbox(host: Supervised, peer: Peer) -> None:
    """The request is checked before a sandbox is taken."""
    before = {path.name for path in host.data.sandboxes.iterdir()}
    with pytest.raises(SandptyError, match="pids"):
        await peer.create(limits={"pids": 0})
    sandbox = await peer.create()
    assert sandbox["id"] in before
    await peer.call("kill", id=sandbox["id"])


async def test_a_claim_without_internet_has_no_way_out(peer: Peer) -> None:
    """No default route in the guest, although the warm sandbox had one."""
    sandbox = await peer.create(internet=False)
    assert "default" not in await run(sandbox, "ip route")
    code, _ = await attempt(sandbox, "timeout 1 bash -c 'echo > /dev/tcp/203.0.113.1/80'")
    assert code != 0
    assert (await attempt(sandbox, "ip route add default via 169.254.1.1 dev eth0"))[0] != 0
    await peer.call("kill", id=sandbox["id"])


async def test_a_warm_sandbox_that_died_is_not_given_out(host: Supervised, peer: Peer) -> None:
    """The pool notices before anybody asks, and makes others; the caller gets a living one."""

    def pids() -> list[int]:
        return [int(path.read_text()) for path in host.data.sandboxes.glob("*/pid")]

    before = pids()
    for pid in before:
        os.kill(pid, 9)
    await until(lambda: not any(alive(pid) for pid in before), what="their end")
    assert (await peer.create())["pid"] not in before
    await until(lambda: warm(host) >= 2 and not set(pids()) & set(before), 20, "others")
    sandbox = await peer.create()
    assert await run(sandbox, "echo alive") == "alive\n"
    for sandbox_id in await peer.ids():
        await peer.call("kill", id=sandbox_id)
