"""What becomes of a sandbox when its start fails for a reason that nobody thought of."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path
from typing import Any, cast

import pytest

from sandpty.config import DataDir
from sandpty.isolation.background import Background
from sandpty.isolation.driver import Driver, Plan, Started
from sandpty.supervisor import lifecycle
from sandpty.supervisor.events import Events
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.supervisor.template_records import TemplateRecords
from sandpty.templates.catalog import Catalog, Ready
from sandpty.wire.verbs import CreateArgs
from tests.waiting import until


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No entry that takes a place of the host's for ever, no directory, no slot; also if they cannot go at once."""
    monkeypatch.setattr(lifecycle, "END_AGAIN_S", 0.0)
    data, driver = DataDir(tmp_path), Failing()
    for directory in (data.sandboxes, data.agents):
        directory.mkdir(parents=True)
    catalog = Catalog(Ready("host-usr", (), time.time(), 0))
    async with Background() as background:
        sandboxes = Sandboxes(
            data,
            cast(Driver, driver),
            catalog,
            TemplateRecords(tmp_path / "records", catalog),
            events=Events(),
            background=background,
            server_uid=0,
        )
        args: dict[str, Any] = {"template": "host-usr", "end_at": time.time() + 60}
        with pytest.raises(RuntimeError):
            await sandboxes.create(CreateArgs(**args), lambda template, asked: None)
        await until(lambda: not sandboxes.entries, 30)
        assert list(data.sandboxes.iterdir()) == []
        assert driver.destroyed == [7]
