"""Fixtures that every kind of test may use. The real thing runs here: no mocks of agent, supervisor or server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import httpx
import pytest
import pytest_asyncio
from _pytest._code.code import TracebackEntry

from tests.component.network_policy_world import World, policy_world
from tests.component.supervisor_peer import Peer
from tests.leftovers import marked
from tests.registry_fixture import Registry, fill, running_registry
from tests.server_fixture import RunningServer, running_server
from tests.waiting import until_sync


def _line(entry: TracebackEntry) -> int:
    """CPython 3.11 knows no line of some instructions of `async with`; a time-out there would end the whole worker."""
    line: int | None = entry._rawentry.tb_lineno
    return (entry._rawentry.tb_frame.f_code.co_firstlineno if line is None else line) - 1


TracebackEntry.lineno = property(_line)  # type: ignore[assignment,method-assign]


@pytest.fixture(scope="session", autouse=True)
def nothing_of_ours_is_left() -> Iterator[None]:
    """A run fails that leaves a watcher, supervisor or server behind, and names the test that started it."""
    with marked() as left:
        yield
        with suppress(TimeoutError):
            until_sync(lambda: not left())
        assert left() == []


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """One server for all tests of a session that do not break it."""
    with running_server() as running:
        yield running


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """A registry with the stand-ins of tests/registry_fixture.py; tests may push more, each under a name of its own."""
    with running_registry() as running:
        fill(running)
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world() -> AsyncIterator[World]:
    """An internet of its own and a supervisor whose sandboxes reach it, for the tests of a file."""
    async with policy_world(0) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def peer(world: World) -> AsyncIterator[Peer]:
    """A connection to that supervisor."""
    async with world.host.peer() as connected:
        yield connected


@pytest_asyncio.fixture
async def api(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client with the server's key."""
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=30) as client:
        yield client


@pytest_asyncio.fixture
async def sandbox_id(api: httpx.AsyncClient) -> AsyncIterator[str]:
    """A sandbox of its own for one test."""
    answer = await api.post("/v1/sandboxes", json={"timeout_s": 300})
    assert answer.status_code == 201, answer.text
    created = answer.json()["id"]
    yield created
    await api.delete(f"/v1/sandboxes/{created}")
