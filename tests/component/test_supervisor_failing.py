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
from sandpty.supervisor import lifecycle, state
from sandpty.supervisor.events import Events
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.supervisor.snapshots import META_NAME, Kept
from sandpty.supervisor.template_records import TemplateRecords
from sandpty.templates.catalog import Catalog, Ready
from sandpty.wire.errors import SandptyError
from sandpty.wire.network_policy import EgressProxy, NetworkPolicy
from sandpty.wire.verbs import CreateArgs, Limits
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

    def forget_copy(self, directory: Path) -> None:
        pass


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


class Outward:
    """A way out where a proxy's name is being looked up until `answer` is set."""

    def __init__(self) -> None:
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    def secrets_of(self, owner: str) -> dict[str, str]:
        return {"token": "value"}

    async def check_proxy(self, host: str) -> None:
        self.asked.set()
        await self.answer.wait()


class Connected(Enduring):
    """A driver with a way out, on which one sandbox does not follow its policy."""

    isolated = True

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 0
        self.outward = Outward()
        self.applied: list[str] = []
        self.failing = ""

    @property
    def running(self) -> int:
        return 0  # many at once

    async def apply(self, plan: Plan, started: Started) -> None:
        self.applied.append(plan.id)
        if plan.id == self.failing:
            raise SandptyError("runtime_failed", "the egress process does not answer")


async def test_a_name_server_that_does_not_answer_keeps_no_sandbox_alive(root: Path) -> None:
    """While a new proxy's name is looked up, the sandbox can be ended, by its deadline for example."""
    driver = Connected()
    async with Background() as background:
        sandboxes = _sandboxes(root, driver, background)
        args: dict[str, Any] = {"template": "host-usr", "end_at": time.time() + 60}
        made = await sandboxes.create(CreateArgs(**args), lambda template, asked: None)
        policy = NetworkPolicy(proxy=EgressProxy(address="proxy.invalid:1080"))
        change = asyncio.create_task(sandboxes.changing.network(made.id, True, policy))
        await driver.outward.asked.wait()
        async with asyncio.timeout(30):
            await sandboxes.kill(made.id)
        driver.outward.answer.set()
        with pytest.raises(SandptyError, match="does not exist"):
            await change
        assert driver.applied == []


async def test_a_secret_reaches_every_sandbox_that_it_can(root: Path) -> None:
    """One that does not take the new value is told of, and keeps no other from it."""
    driver = Connected()
    policy = NetworkPolicy(headers={"example.com": {"X-Key": "${e2b.secrets.token}"}})
    async with Background() as background:
        sandboxes = _sandboxes(root, driver, background)
        args: dict[str, Any] = {"template": "host-usr", "end_at": time.time() + 60, "owner": "me", "network": policy}
        made = [await sandboxes.create(CreateArgs(**args), lambda template, asked: None) for _ in range(2)]
        driver.failing = made[0].id
        with pytest.raises(SandptyError, match="does not answer"):
            await sandboxes.policies.secret_changed("me", "token")
        assert driver.applied == [each.id for each in made]
        await sandboxes.kill_all()


async def test_what_something_unknown_may_stand_on_is_kept(root: Path) -> None:
    """A deleted snapshot goes with the last that needs it, and of what cannot be read nobody knows what it needs."""
    async with Background() as background:
        sandboxes = _sandboxes(root, Failing(), background)
        place = DataDir(root).snapshots / state.new_record_id()
        place.mkdir(parents=True)
        words = dict.fromkeys(("name", "owner", "sandbox_id", "template"), "x")
        kept = Kept(
            id=place.name, layers=(), copies=(), limits=Limits(), created_at=0, size_bytes=0, deleted=True, **words
        )
        state.write_durably(place / META_NAME, kept)
        for left_alone in (sandboxes.left_alone, sandboxes.snapshots._records.left_alone):
            left_alone.add("unknown")
            sandboxes.snapshots.load()
            assert place.exists()
            left_alone.clear()
        sandboxes.snapshots.collect()
        await until(lambda: not place.exists(), 30)


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
