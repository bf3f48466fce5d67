"""A supervisor that cannot tell what sandboxes use: the server says so once and goes on."""

from __future__ import annotations

import logging

import pytest

from sandpty import config
from tests.component.fake_host import fake_host, polite
from tests.waiting import until


async def test_a_supervisor_that_cannot_measure_costs_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is asked: no traceback, and everything else works."""
    monkeypatch.setattr(config, "METRICS_PERIOD_S", 0.01)
    with caplog.at_level(logging.INFO):
        async with fake_host() as host:
            sandbox_id = await host.sandbox(polite)
            await until(lambda: host.supervisor.asked.count("usage") > 20, 30, "it was asked again and again")
            status, body = await host.request("GET", f"/sandboxes/{sandbox_id}/metrics")
            assert (status, body) == (200, [])
            async with host.view(sandbox_id) as view:
                assert await view.receive() is not None
    about = [record for record in caplog.records if "metrics" in record.getMessage()]
    assert len(about) == 1
    assert not [record for record in caplog.records if record.exc_info]
