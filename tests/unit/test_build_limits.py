"""A build that never ends is ended, in words that name the limit, and its sandbox is left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sandpty import config
from sandpty.server.builds.building import BuildError, Building
from sandpty.server.builds.log import BuildLog
from sandpty.server.builds.recipe import Base, Recipe


class _Endless:
    """A workshop, and bases that never come."""

    left = False

    async def __aenter__(self) -> _Endless:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left = True

    async def situation(self, *_: object) -> None:
        await asyncio.Event().wait()


async def test_a_build_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error says how long a build may take."""
    monkeypatch.setattr(config, "BUILD_TIMEOUT_S", 0.01)
    endless: Any = _Endless()
    log = BuildLog(tmp_path / "log")
    building = Building(
        Recipe(Base("base")), log, bases=endless, workshop=endless, steps=endless, tried=lambda situation: False
    )
    with pytest.raises(BuildError, match=r"the build took longer than 0\.01 s"):
        await building.run()
    log.close()
    assert endless.left
