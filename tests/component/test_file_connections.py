"""The server's files connections: shared by those who come after each other, gone with their sandbox."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from sandpty import config
from sandpty.server.file_connections import FileConnections
from sandpty.server.registry import Registry
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox
from tests.component.fake_host import open_fds
from tests.component.fake_supervisor import FakeSupervisor
from tests.component.files_root import FilesRoot, files_root
from tests.component.test_files import refused
from tests.waiting import turn, until


class House:
    """One sandbox with a real agent, and the server's side of it."""

    def __init__(self, guest: FilesRoot, supervisor: FakeSupervisor, registry: Registry) -> None:
        self.guest = guest
        self.supervisor = supervisor
        self.registry = registry
        self.connections = FileConnections(registry)
        self.sandbox: Sandbox

    async def come(self, name: str) -> None:
        """A sandbox of that name."""
        self.sandbox = self.supervisor.add(name, self.guest.agent.path)
        await until(lambda: self.known)

    @property
    def known(self) -> bool:
        """Whether the registry has it, running."""
        try:
            return self.registry.running(self.sandbox.id) is not None
        except SandptyError:
            return False

    def become(self, event: str, **changes: object) -> None:
        """The supervisor says that it changed."""
        self.sandbox = msgspec.structs.replace(self.sandbox, **changes)
        self.supervisor._tell(event, self.sandbox)

    async def use(self, user: str = "user") -> int:
        """Ask something; how many children the guest has meanwhile."""
        async with self.connections.lease(self.sandbox, user) as files:
            await files.stat("/tmp")
            return len(self.guest.children())

    async def children(self, count: int) -> None:
        """Wait for that many."""
        await until(lambda: len(self.guest.children()) == count, timeout_s=30)


@pytest_asyncio.fixture
async def house() -> AsyncIterator[House]:
    """A guest, a supervisor that only talks, a registry."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp"))
        guest = stack.enter_context(files_root())
        supervisor = await stack.enter_async_context(FakeSupervisor(Path(directory) / "s", "me"))
        registry = await stack.enter_async_context(Registry(str(supervisor.path)))
        made = House(guest, supervisor, registry)
        await made.come("i1")
        yield made
        made.connections.close()
        await made.children(0)


async def test_one_connection_serves_who_come_after_each_other(house: House) -> None:
    """One user's; another user gets his own."""
    for _ in range(10):
        assert await house.use() == 1
    assert await house.use("root") == 2
    assert await house.use() == 2


async def test_few_stay_when_nobody_needs_them_and_none_for_long(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowd at once is served; then a few are kept, for a while."""
    monkeypatch.setattr(config, "FILE_CONNECTION_IDLE_S", 0.2)
    await asyncio.gather(*[house.use() for _ in range(40)])
    assert len(house.guest.children()) <= config.FILE_CONNECTIONS_MAX
    await house.children(0)
    assert house.connections._shelves == {}


async def test_more_than_a_sandbox_may_have_wait_for_their_turn(house: House) -> None:
    """Not refused; and who gives up waiting takes no place with him."""
    async with AsyncExitStack() as stack:
        for _ in range(config.FILE_CONNECTIONS_MAX):
            await stack.enter_async_context(house.connections.lease(house.sandbox, "user"))
        waiting = [asyncio.create_task(house.use()) for _ in range(5)]
        await turn()
        waiting[0].cancel()
        waiting[3].cancel()
        await turn()
        assert not any(task.done() for task in waiting[1:3])
        assert len(house.guest.children()) == config.FILE_CONNECTIONS_MAX
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in done] == [True, False, False, True, False]
    await house.use()


async def test_an_unfinished_one_is_not_kept(house: House) -> None:
    """Neither after an error of ours nor after a cancelled call; after an error of the guest's it is."""
    before = open_fds()

    async def stumble() -> None:
        async with house.connections.lease(house.sandbox, "user") as files, files.open("/dev/zero") as reading:
            await reading.piece()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await stumble()
    await house.children(0)
    assert open_fds() == before
    with pytest.raises(SandptyError, match="No such file"):
        async with house.connections.lease(house.sandbox, "user") as files:
            await files.stat("/missing")
    assert len(house.guest.children()) == 1


async def test_a_pause_closes_all_and_tells_who_is_in_the_middle(house: House) -> None:
    """Also the idle ones: a frozen agent must not be asked. Afterwards it goes on with new ones."""
    await house.use("root")

    async def endless() -> None:
        async with house.connections.lease(house.sandbox, "user") as files, files.open("/dev/zero") as reading:
            async for _ in reading:
                await turn()

    task = asyncio.create_task(refused(endless()))
    await house.children(2)
    house.become("changed", state="paused")
    assert await asyncio.wait_for(task, 30) == "sandbox_paused"
    await house.children(0)
    with pytest.raises(SandptyError, match="paused"):
        await house.use()
    house.become("changed", state="running")
    await until(lambda: house.known)
    assert await house.use() == 1


async def test_the_end_of_a_sandbox_is_what_is_told(house: House) -> None:
    """Not that a connection was lost; watches too."""

    async def watch() -> None:
        async with house.connections.watching(house.sandbox, "user") as files:
            await (await files.watch("/tmp")).event()

    tasks = [asyncio.create_task(refused(watch())) for _ in range(3)]
    await house.children(3)
    house.become("ended", ended="killed")
    assert await asyncio.wait_for(asyncio.gather(*tasks), 30) == ["sandbox_ended"] * 3
    await house.children(0)
    assert house.connections._shelves == {}


async def test_watches_are_bounded_and_leave_requests_their_places(house: House) -> None:
    """A watch too many is refused by name; files are served all the same."""
    async with AsyncExitStack() as stack:
        for _ in range(config.FILE_WATCHES_MAX):
            files = await stack.enter_async_context(house.connections.watching(house.sandbox, "user"))
            await files.watch("/tmp")
        with pytest.raises(SandptyError, match="watches"):
            async with house.connections.watching(house.sandbox, "user"):
                pass
        await asyncio.gather(*[house.use() for _ in range(config.FILE_CONNECTIONS_MAX)])
    await house.use()
