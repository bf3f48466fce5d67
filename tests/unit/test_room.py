"""How full the data directory's disk is, to whoever reads the supervisor's log."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sandpty.isolation import disk
from sandpty.supervisor.room import Room


def test_the_operator_is_told_once_when_the_disk_is_almost_full_and_once_when_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is said as long as nothing changes."""
    room = Room(tmp_path)
    with caplog.at_level(logging.INFO):
        for has_room in (True, False, False, True, True):
            monkeypatch.setattr(disk, "has_room", lambda directory, found=has_room: found)
            room.look()
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
