"""The supervisor killed without warning, alone or with everything else: no sandbox notices."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.e2e.native import Box, sandbox
from tests.server_fixture import RunningServer, running_server
from tests.waiting import until


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """A server of its own for each test."""
    with running_server("--pool", "1") as running:
        yield running


def parent_of(pid: int) -> int:
    """The parent of a process: of the supervisor, its watcher."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("PPid:\t")[1].split()[0])


async def gone(box: Box) -> bool:
    """Whether the sandbox does not exist any more."""
    return (await box.api.get(box.path)).status_code == 404


async def new_supervisor(server: RunningServer, old: int) -> None:
    """Wait until another supervisor than `old` serves and the server has found it."""

    def another() -> bool:
        with suppress(OSError, ValueError):
            return server.supervisor_pid() != old and Path(f"/proc/{server.supervisor_pid()}").exists()
        return False

    await until(another, 20, "the watcher starts a new supervisor")

    async def ready() -> bool:
        async with httpx.AsyncClient(base_url=server.url) as api:
            return (await api.get("/healthz")).status_code == 200

    await until(ready, 20, "the server finds it")


async def works(box: Box, process: int) -> None:
    """Everything that can be done with a sandbox and beside it."""
    found = await box.process(process)
    assert found["running"]
    other = await box.start("printf", "fine")
    async with box.attach(other) as terminal:
        await terminal.until_exit()
        assert terminal.data == b"fine"
    async with sandbox(box.server) as fresh:
        assert (await fresh.wait(await fresh.start("true")))["code"] == 0
        listed = [item["id"] for item in (await box.api.get("/v1/sandboxes")).json()["sandboxes"]]
        assert {box.id, fresh.id} <= set(listed)
    assert (await box.api.get(fresh.path)).status_code == 404
    assert (await box.api.post(f"{box.path}/pause")).status_code == 200
    assert (await box.api.post(f"{box.path}/resume")).status_code == 200
    assert (await box.process(process))["running"]


async def test_kill_9_of_the_supervisor_is_not_noticed_by_terminals(server: RunningServer) -> None:
    """An attachment goes on without a hitch; afterwards create, kill, pause and list work as before."""
    async with sandbox(server) as box:
        process = await box.terminal("sh", "-c", "stty -echo; printf ready; cat")
        async with box.attach(process) as terminal:
            await terminal.until(b"ready")
            supervisor = server.supervisor_pid()
            os.kill(supervisor, signal.SIGKILL)
            await terminal.type(b"still here\r")
            await terminal.until(b"still here\r\n")
            await new_supervisor(server, supervisor)
            await terminal.type(b"and now\r")
            await terminal.until(b"and now\r\n")
        await works(box, process)
        assert (await box.api.delete(box.path)).status_code == 204
        assert await gone(box)


async def test_a_flood_survives_kill_9_of_the_supervisor(server: RunningServer) -> None:
    """The supervisor is not on the path of a byte."""
    async with sandbox(server) as box:
        process = await box.start("sh", "-c", "read go; seq 1 500000")
        async with box.attach(process) as terminal:
            await terminal.type(b"\n")
            await terminal.until_offset(1_000_000)
            supervisor = server.supervisor_pid()
            os.kill(supervisor, signal.SIGKILL)
            await terminal.until_exit()
        assert terminal.gaps == []
        assert bytes(terminal.data) == b"".join(b"%d\n" % number for number in range(1, 500_001))
        await new_supervisor(server, supervisor)


async def test_deadlines_are_kept_by_the_supervisor_that_follows(server: RunningServer) -> None:
    """One that falls due afterwards, and one that fell due while nobody watched."""
    async with sandbox(server, timeout_s=2.5) as later, sandbox(server, timeout_s=0.3) as meanwhile:
        started = time.monotonic()
        supervisor = server.supervisor_pid()
        os.kill(supervisor, signal.SIGKILL)
        await new_supervisor(server, supervisor)
        await until(lambda: gone(meanwhile), 10)
        assert time.monotonic() - started < 2.4 or await gone(later)
        await until(lambda: gone(later), 10)


async def test_a_request_during_the_crash_is_answered(server: RunningServer) -> None:
    """While there is no supervisor: supervisor_down (503), at once; processes of running sandboxes work."""
    async with sandbox(server) as box:
        watcher = parent_of(server.supervisor_pid())
        supervisor = server.supervisor_pid()
        os.kill(watcher, signal.SIGSTOP)  # so that it cannot start another yet
        try:
            os.kill(supervisor, signal.SIGKILL)

            async def down() -> bool:
                return (await box.api.get("/healthz")).status_code == 503

            await until(down)
            answer = await box.api.post("/v1/sandboxes")
            assert (answer.status_code, answer.json()["error"]["reason"]) == (503, "supervisor_down")
            answer = await box.api.delete(box.path)
            assert (answer.status_code, answer.json()["error"]["reason"]) == (503, "supervisor_down")
            assert (await box.wait(await box.start("true")))["code"] == 0
        finally:
            os.kill(watcher, signal.SIGCONT)
        await new_supervisor(server, supervisor)
        assert (await box.api.delete(box.path)).status_code == 204


async def test_everything_killed_at_once_is_found_again(server: RunningServer) -> None:
    """Server, supervisor and watcher die together; `sandpty serve` finds sandboxes, processes, output and files."""
    async with sandbox(server, metadata={"k": "v"}) as box:
        process = await box.terminal("bash", "--norc", "-i")
        talker = await box.start("sh", "-c", "for i in $(seq 1 300); do echo $i; sleep 0.01; done")
        async with box.attach(process) as bash, box.attach(talker) as view:
            await bash.type(b"PS1=; X=kept; echo on disk > ~/file; echo rea''dy\r")
            await bash.until(b"ready\r\n")
            await view.until(b"50\n")
            supervisor = server.supervisor_pid()
            watcher = parent_of(supervisor)
            for pid in (watcher, supervisor):
                os.kill(pid, signal.SIGKILL)
            server.kill()
            position, said = bash.position, bytes(view.data)
        await asyncio.to_thread(server.start)
        assert server.supervisor_pid() != supervisor
        async with box.attach(process, f"from=offset&value={position}") as bash:
            await bash.type(b"echo $X $(cat ~/file)\r")
            await bash.until(b"kept on disk\r\n")
        async with box.attach(talker, f"from=offset&value={len(said)}") as view:
            await view.until_exit()
            assert said + bytes(view.data) == b"".join(b"%d\n" % number for number in range(1, 301))
        assert (await box.api.get(box.path)).json()["metadata"] == {"k": "v"}
        await works(box, process)
        assert (await box.api.delete(box.path)).status_code == 204
