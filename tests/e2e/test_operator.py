"""What an operator's Prometheus reads."""

from __future__ import annotations

import re
import subprocess

import httpx

from tests.server_fixture import RunningServer, sandpty


async def test_an_operator_reads_figures_that_make_sense(
    server: RunningServer, api: httpx.AsyncClient, sandbox_id: str
) -> None:
    """Every line is of the text format; the sandbox counts; nothing names one."""
    assert (await api.get(f"/v1/sandboxes/{sandbox_id}/metrics")).json()["samples"]  # it was measured
    answer = await api.get("/v1/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {}
    for line in answer.text.splitlines():
        if not line.startswith("# "):
            matched = re.fullmatch(r"([a-z_]+(?:\{[a-z]+=\"[^\"]*\"(?:,[a-z]+=\"[^\"]*\")*\})?) ([0-9.e+-]+)", line)
            assert matched, line
            values[matched[1]] = float(matched[2])
    assert values['sandpty_sandboxes{state="running"}'] >= 1
    assert values["sandpty_supervisor_up"] == 1
    assert values["sandpty_disk_scarce"] == 0
    assert values["sandpty_sandboxes_memory_bytes"] > values["sandpty_sandboxes_cache_bytes"] >= 0
    assert values["sandpty_sandboxes_processes"] >= 1
    assert values["process_open_fds"] > 5
    assert sandbox_id not in answer.text


def test_other_teams_do_not_read_them(server: RunningServer) -> None:
    """They would tell what others do."""
    command = sandpty("keys", "add", "--data-dir", str(server.data_dir), "--team", "curious")
    key = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    answer = httpx.get(f"{server.url}/v1/metrics", headers={"X-API-Key": key}, timeout=30)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (403, "forbidden")
    team = httpx.get(f"{server.url}/v1/team", headers={"X-API-Key": key}, timeout=30).json()
    assert team["name"] == "curious"
