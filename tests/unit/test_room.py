"""How full the data directory's disk is, to whoever reads the supervisor's log."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandpty import config, disk_room
from sandpty.isolation.background import Background
from sandpty.isolation.driver import Stats
from sandpty.supervisor.room import Room


async def test_the_operator_is_told_once_when_the_disk_is_almost_full_and_once_when_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is said as long as nothing changes; the less there is, the more often it is looked at."""
    async with Background() as background:
        room = Room(tmp_path, cast(Any, None), cast(Any, Unisolated()), background)
        with caplog.at_level(logging.INFO):
            for left, wait_s in ((1 << 60, 5.0), (0, 0.1), (-1, 0.1), (1 << 60, 5.0), (1 << 60, 5.0)):
                monkeypatch.setattr(disk_room, "above_reserve_bytes", lambda directory, left=left: left)
                assert await room.look() == wait_s
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


class World:
    """One sandbox that runs and has something unwritten; driver, sandboxes and their pausing in one."""

    isolated = True

    def __init__(self, writes_through: bool = False) -> None:
        self.writes_through = writes_through
        self.written = 0
        self.meta = SimpleNamespace(id="i", phase="running", started=None, end_at=time.time() + 60)
        entry = SimpleNamespace(meta=self.meta, ended=None, plan=None, lock=asyncio.Lock())
        self.entries = {"i": entry}
        self.pausing = self
        self.unwritten = 0

    def unwritten_bytes(self) -> int:
        return self.unwritten

    def stats(self, plan: None, started: None) -> Stats:
        self.written += config.ROOM_WRITING_BYTES // 3
        return Stats(unwritten_bytes=0 if self.writes_through else config.ROOM_WRITING_BYTES, disk_bytes=self.written)

    async def freeze(self, entry: SimpleNamespace) -> None:
        self.meta.phase = "frozen"

    async def resume(self, sandbox_id: str, end_at: float) -> None:
        assert end_at > time.time() + 30, "it has the time that it had"
        self.meta.phase = "running"


async def test_what_is_not_written_out_yet_takes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has filled memory with more than the disk can take is paused while there is room still, and then goes on."""
    world = World()
    async with Background() as background:
        room = Room(tmp_path, cast(Any, world), cast(Any, world), background)
        monkeypatch.setattr(disk_room, "above_reserve_bytes", lambda directory: 1 << 30)
        for unwritten, phase in ((1 << 20, "running"), (2 << 30, "frozen"), (2 << 30, "frozen"), (0, "running")):
            world.unwritten = unwritten
            await room.look()
            await background.settle(30)
            assert world.meta.phase == phase


async def test_who_writes_slowly_is_paused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has written since the reserve was needed is added up."""
    world = World(writes_through=True)
    async with Background() as background:
        room = Room(tmp_path, cast(Any, world), cast(Any, world), background)
        monkeypatch.setattr(disk_room, "above_reserve_bytes", lambda directory: -1)
        for phase in ("running", "running", "running", "running", "frozen"):
            await room.look()
            await background.settle(30)
            assert world.meta.phase == phase


class Unisolated:
    """A driver that can pause nobody."""

    isolated = False

    def unwritten_bytes(self) -> int:
        return 0


def test_a_small_disk_keeps_a_small_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of it; a large one a fixed size."""
    found = disk_room.above_reserve_bytes(tmp_path)
    monkeypatch.setattr(config, "DISK_RESERVE_SHARE", 0.0)
    assert disk_room.above_reserve_bytes(tmp_path) > found
