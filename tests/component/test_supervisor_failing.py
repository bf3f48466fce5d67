"""What becomes of a sandbox when its start or its end fails for a reason that nobody thought of."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from sandpty.config import DataDir
from sandpty.isolation import process_table
from sandpty.isolation.background import Background
from sandpty.isolation.driver import Driver, Plan, Started
from sandpty.supervisor import lifecycle
from sandpty.supervisor.events import Events
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.supervisor.template_records import TemplateRecords
from sandpty.templates.catalog import Catalog, Ready
from sandpty.wire.verbs import CreateArgs
from tests.waiting import until


@pytest.fixture
def root() -> Iterator[Path]:
    """Short: paths of sockets have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as directory:
        yield Path(directory)


class Failing:
    """A driver whose machine is out of threads, and for a moment out of descriptors."""

    name, isolated = "failing", False

    def __init__(self) -> None:
        self.destroyed: list[int] = []
        self.refusals = 1

    async def reserve(self) -> int:
        return 7

    async def start(self, plan: Plan, listener: socket.socket) -> Started:
        raise RuntimeError("can't start new thread")

    async def stop(self, plan: Plan, started: Started) -> None:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def destroy(self, plan: Plan) -> None:
        self.destroyed.append(plan.slot)


async def test_a_create_that_fails_in_an_unforeseen_way_leaves_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No entry that takes a place of the host's for ever, no directory, no slot; also if they cannot go at once."""
    monkeypatch.setattr(lifecycle, "END_AGAIN_S", 0.0)
    driver = Failing()
    async with Background() as background:
        sandboxes = _sandboxes(root, driver, background)
        args: dict[str, Any] = {"template": "host-usr", "end_at": time.time() + 60}
        with pytest.raises(RuntimeError):
            await sandboxes.create(CreateArgs(**args), lambda template, asked: None)
        await until(lambda: not sandboxes.entries, 30)
        assert list(DataDir(root).sandboxes.iterdir()) == []
        assert driver.destroyed == [7]


class Enduring(Failing):
    """A driver whose sandboxes are real processes, the end of which fails once."""

    def __init__(self) -> None:
        super().__init__()
        self.agents: list[asyncio.subprocess.Process] = []

    @property
    def running(self) -> int:
        return sum(agent.returncode is None for agent in self.agents)

    async def start(self, plan: Plan, listener: socket.socket) -> Started:
        assert self.running == 0, "two agents on the same files"
        agent = await asyncio.create_subprocess_exec("sleep", "infinity")
        self.agents.append(agent)
        return Started(agent.pid, process_table.start_time(agent.pid))

    async def stop(self, plan: Plan, started: Started) -> None:
        await super().stop(plan, started)
        for agent in self.agents:
            if agent.returncode is None:
                agent.kill()
                await agent.wait()


async def test_a_sandbox_whose_pause_could_not_end_it_is_ended_before_it_runs_again(root: Path) -> None:
    """It is told as paused, as it is written down; never do two agents write to the same files."""
    driver = Enduring()
    async with Background() as background:
        sandboxes = _sandboxes(root, driver, background)
        args: dict[str, Any] = {"template": "host-usr", "end_at": time.time() + 60}
        made = await sandboxes.create(CreateArgs(**args), lambda template, asked: None)
        try:
            with pytest.raises(OSError, match="open files"):
                await sandboxes.pausing.pause(made.id, memory=False)
            assert [sandbox.state for sandbox in sandboxes.list()] == ["paused"]
            assert driver.running == 1
            resumed = await sandboxes.pausing.resume(made.id, time.time() + 60)
            assert resumed.state == "running"
            assert (len(driver.agents), driver.running) == (2, 1)
        finally:
            await sandboxes.kill_all()
    assert driver.running == 0


def _sandboxes(root: Path, driver: Failing, background: Background) -> Sandboxes:
    data = DataDir(root)
    for directory in (data.sandboxes, data.agents):
        directory.mkdir(parents=True)
    catalog = Catalog(Ready("host-usr", (), time.time(), 0))
    return Sandboxes(
        data,
        cast(Driver, driver),
        catalog,
        TemplateRecords(root / "records", catalog),
        events=Events(),
        background=background,
        server_uid=0,
    )
