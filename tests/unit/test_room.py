"""How full the data directory's disk is, to whoever reads the supervisor's log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import pytest

from sandpty import config, disk_room
from sandpty.isolation.background import Background
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


class Unisolated:
    """A driver that can pause nobody."""

    isolated = False


def test_a_small_disk_keeps_a_small_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of it; a large one a fixed size."""
    found = disk_room.above_reserve_bytes(tmp_path)
    monkeypatch.setattr(config, "DISK_RESERVE_SHARE", 0.0)
    assert disk_room.above_reserve_bytes(tmp_path) > found
