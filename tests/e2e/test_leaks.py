"""A thousand times the same thing leaves the server, the supervisor and the agent as they were (law 9)."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from sandpty.server.supervisor_client import SupervisorClient
from tests.e2e.native import Box, sandbox
from tests.server_fixture import RunningServer, running_server
from tests.waiting import until

MIB = 1024 * 1024


@dataclass(frozen=True)
class Held:
    """What a process of the host holds."""

    fds: int
    threads: int
    children: int
    rss_bytes: int

    @classmethod
    def by(cls, pid: int) -> Held:
        """Look now."""
        status = Path(f"/proc/{pid}/status").read_text()
        number = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE)}
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return cls(len(os.listdir(f"/proc/{pid}/fd")), number["Threads"], len(children), number["VmRSS"] * 1024)


async def back_to(pid: int, before: Held, grown_bytes: int, spare: int = 0) -> None:
    """Wait until a process holds no more than before; its memory may be `grown_bytes` bigger."""
    now = Held.by(pid)

    def same() -> bool:
        nonlocal now
        now = Held.by(pid)
        return (
            now.fds <= before.fds + spare and now.threads <= before.threads + spare and now.children <= before.children
        )

    try:
        await until(same, 10)
    except TimeoutError:
        raise AssertionError(f"{now} is more than {before}") from None
    assert now.rss_bytes - before.rss_bytes < grown_bytes, f"{now} is more than {before}"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server of its own: nobody else's connections are counted."""
    with running_server("--pool", "0") as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def box(server: RunningServer) -> AsyncIterator[Box]:
    """One sandbox for this file."""
    async with sandbox(server) as made:
        yield made


@pytest_asyncio.fixture(scope="module")
async def agent_pid(box: Box) -> int:
    """The sandbox's agent on the host."""
    pids: dict[str, int] = {}
    path = str(box.server.data_dir / "run" / "supervisor.sock")
    async with SupervisorClient(
        path, lambda found: pids.update({item.id: item.pid for item in found}), lambda *_: None
    ):
        return pids[box.id]


def server_pid(box: Box) -> int:
    """The server's process."""
    assert box.server.process is not None
    return box.server.process.pid


async def in_parallel(times: int, at_once: int, what: object) -> None:
    """Call `what(number)` so many times, never more than `at_once` at the same time."""
    gate = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with gate:
            await what(number)  # type: ignore[operator]

    await asyncio.gather(*(one(number) for number in range(times)))


async def test_a_thousand_attachments_leave_nothing(box: Box, agent_pid: int) -> None:
    """Attach, see output, leave: politely, or by losing the connection; for a live and an ended process."""
    live = await box.terminal("sh", "-c", "printf hello; exec sleep 1000")
    ended = await box.start("printf", "hello")
    await box.wait(ended)

    async def look(number: int) -> None:
        async with box.attach(live if number % 4 else ended, "from=offset&mode=ro") as terminal:
            await terminal.until(b"hello")
            if number % 3 == 0:
                terminal.cut()

    await in_parallel(100, 20, look)
    server, agent = Held.by(server_pid(box)), Held.by(agent_pid)
    await in_parallel(1000, 20, look)
    await back_to(agent_pid, agent, MIB // 4)
    await back_to(server_pid(box), server, 4 * MIB)
    assert (await box.process(live))["attachments"] == 0
    await box.signal(live, "KILL")


async def test_three_hundred_processes_leave_nothing(box: Box, agent_pid: int) -> None:
    """Start, and kill with its children: terminals and pipes; no zombie, no descriptor, no timer."""

    async def live_and_die(number: int) -> None:
        script = "sleep 1000 & setsid sleep 1000 & echo $$; sleep 1000"
        process = await (box.terminal if number % 2 else box.start)("sh", "-c", script, deadline_s=500)
        assert (await box.signal(process, "KILL")).status_code == 204

    await in_parallel(150, 10, live_and_die)  # more than the agent keeps of ended ones
    server, agent = Held.by(server_pid(box)), Held.by(agent_pid)
    await in_parallel(300, 10, live_and_die)
    await back_to(agent_pid, agent, MIB)
    await back_to(server_pid(box), server, 4 * MIB)


async def test_failed_starts_and_bad_requests_leave_nothing(box: Box, agent_pid: int) -> None:
    """What cannot be started costs nothing either."""

    async def fail(number: int) -> None:
        wanted = [
            {"argv": ["/no/such/program"]},
            {"argv": ["true"], "cwd": "/no/such/directory", "pty": {"cols": 80, "rows": 24}},
            {"argv": ["true"], "user": "nobody-here"},
        ][number % 3]
        answer = await box.api.post(f"{box.path}/processes", json={"user": "user", **wanted})
        assert answer.status_code in (400, 401)
        assert (await box.api.get(f"{box.path}/processes/999999")).status_code == 404

    await in_parallel(30, 10, fail)
    server, agent = Held.by(server_pid(box)), Held.by(agent_pid)
    await in_parallel(300, 10, fail)
    await back_to(agent_pid, agent, MIB // 4)
    await back_to(server_pid(box), server, 4 * MIB)


async def test_clients_that_wait_and_leave_leave_nothing(box: Box, agent_pid: int) -> None:
    """A long poll that is given up ends at the agent too."""
    process = await box.start("sleep", "1000")
    server, agent = Held.by(server_pid(box)), Held.by(agent_pid)

    async def give_up(_: int) -> None:
        waiting = asyncio.create_task(box.api.get(f"{box.path}/processes/{process}/wait", timeout=60))
        await asyncio.wait([waiting], timeout=0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    await in_parallel(100, 20, give_up)
    await back_to(agent_pid, agent, MIB // 4)
    await back_to(server_pid(box), server, 4 * MIB)
    await box.signal(process, "KILL")


async def test_a_viewer_that_never_reads_costs_a_bounded_amount(box: Box) -> None:
    """One stuck viewer beside a flood: under 2 MiB in the server, and the reader beside it gets everything."""
    process = await box.start("sh", "-c", "read go; seq 1 700000")
    server = Held.by(server_pid(box))
    async with box.attach(process) as stuck, box.attach(process) as reader:
        stuck.socket._response.connection.transport.pause_reading()  # type: ignore[union-attr]
        await reader.type(b"\n")
        await reader.until_offset(3_000_000)
        assert Held.by(server_pid(box)).rss_bytes - server.rss_bytes < 2 * MIB
        await reader.until_exit()
        assert reader.gaps == []
        assert len(reader.data) == sum(len(str(number)) + 1 for number in range(1, 700_001))
        stuck.cut()
    await back_to(server_pid(box), server, 2 * MIB)


async def test_sandboxes_that_come_and_go_leave_the_supervisor_as_it_was(server: RunningServer) -> None:
    """Forty sandboxes, created and killed: descriptors, threads, children and memory of the supervisor."""

    async def come_and_go(_: int) -> None:
        async with sandbox(server) as own:
            await own.start("sleep", "1000")

    await in_parallel(10, 4, come_and_go)
    pid = server.supervisor_pid()
    before = Held.by(pid)
    await in_parallel(40, 4, come_and_go)
    await back_to(pid, before, 4 * MIB, spare=8)  # a few networks and threads ready, more or fewer at a time
