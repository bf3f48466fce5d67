"""Metrics and logs through E2B's SDK and by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from e2b import Sandbox
from e2b.exceptions import NotFoundException
from e2b.sandbox.commands.command_handle import CommandExitException

from tests.conformance.wire import UNKNOWN, check_error
from tests.server_fixture import RunningServer, running_server
from tests.waiting import until_sync

WAIT_S = 30.0
FIELDS = {
    "timestamp",
    "timestampUnix",
    "cpuCount",
    "cpuUsedPct",
    "memUsed",
    "memTotal",
    "memCache",
    "diskUsed",
    "diskTotal",
}


@pytest.fixture(scope="module")
def busy(sdk_env: dict[str, str]) -> Iterator[Sandbox]:
    """A sandbox for all tests here."""
    created = Sandbox.create(timeout=300)
    yield created
    created.kill()


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    """The control plane by hand."""
    with httpx.Client(base_url=server.url, headers={"X-API-Key": server.api_key}, timeout=WAIT_S) as client:
        yield client


def test_a_new_sandbox_has_its_first_metrics_at_once(busy: Sandbox) -> None:
    """No waiting for the first round; every member makes sense."""
    first = busy.get_metrics()[0]
    assert first.cpu_count >= 1
    assert 0 <= first.cpu_used_pct <= 100
    assert 0 < first.mem_used < first.mem_total
    assert 0 <= first.mem_cache < first.mem_total
    assert 0 < first.disk_used < first.disk_total
    assert abs(datetime.now(UTC) - first.timestamp.astimezone(UTC)) < timedelta(seconds=60)


def test_metrics_go_on_and_can_be_asked_for_by_time(busy: Sandbox, http: httpx.Client) -> None:
    """A second sample comes; a range has what lies in it, all nine members of each."""
    until_sync(lambda: len(busy.get_metrics()) >= 2, WAIT_S, "a second sample")
    path = f"/sandboxes/{busy.sandbox_id}/metrics"
    found: list[dict[str, Any]] = http.get(path).json()
    assert all(set(each) == FIELDS for each in found)
    first = found[0]["timestampUnix"]
    # (The first sample and the first round may fall into the same second.)
    assert {each["timestampUnix"] for each in http.get(path, params={"start": 0, "end": first}).json()} == {first}
    assert http.get(path, params={"end": first - 1}).json() == []
    assert first not in [each["timestampUnix"] for each in http.get(path, params={"start": first + 1}).json()]
    later = datetime.fromtimestamp(first, UTC) + timedelta(hours=1)
    assert busy.get_metrics(start=later) == []


def test_the_newest_metrics_of_many_sandboxes_in_one_request(busy: Sandbox, http: httpx.Client) -> None:
    """Unknown ones are left out; naming none, or far too many, is an error."""
    ids = f"{busy.sandbox_id},{UNKNOWN}"
    found = http.get("/sandboxes/metrics", params={"sandbox_ids": ids}).json()["sandboxes"]
    assert set(found) == {busy.sandbox_id}
    assert set(found[busy.sandbox_id]) == FIELDS
    check_error(http.get("/sandboxes/metrics"), 400)
    check_error(http.get("/sandboxes/metrics", params={"sandbox_ids": ",".join(["x"] * 101)}), 400)


def test_metrics_of_no_sandbox_and_of_no_time(busy: Sandbox, http: httpx.Client) -> None:
    """404 as the SDK knows it; what is no range is a 400."""
    with pytest.raises(NotFoundException):
        Sandbox.get_metrics(UNKNOWN)
    for query in ("start=x", "end=-1", "start=5&end=4"):
        check_error(http.get(f"/sandboxes/{busy.sandbox_id}/metrics?{query}"), 400)


def test_the_log_tells_a_sandboxs_life_and_its_processes(http: httpx.Client) -> None:
    """Also after its end, as far as its life goes; `line` is JSON with level and message, as E2B's tool wants it."""
    with Sandbox.create(timeout=300) as sandbox:
        sandbox.commands.run("echo one")
        with pytest.raises(CommandExitException):
            sandbox.commands.run("exit 7")
        path = f"/sandboxes/{sandbox.sandbox_id}/logs"
        answer = http.get(path).json()
        lines = [json.loads(log["line"]) for log in answer["logs"]]
        assert [entry["message"] for entry in answer["logEntries"]] == [line["message"] for line in lines]
        assert lines[0]["message"] == "sandbox created"
        assert all({"level", "message", "logger"} <= set(line) for line in lines)
        assert any(line["message"].endswith("started: /bin/bash -l -c 'echo one'") for line in lines)
        (failed,) = [line for line in lines if line["message"].endswith("ended: exit status 7")]
        assert (failed["level"], failed["event"], failed["status"]) == ("warn", "end", "exit status 7")
        times = [log["timestamp"] for log in answer["logs"]]
        assert times == sorted(times)
        last_ms = int(datetime.fromisoformat(times[-1]).timestamp() * 1000)
        assert http.get(path, params={"start": last_ms + 1}).json()["logs"] == []
        assert len(http.get(path, params={"limit": 2}).json()["logs"]) == 2
        sandbox.kill()
        after = [json.loads(log["line"])["message"] for log in http.get(path).json()["logs"]]
        assert after == ["sandbox created", "sandbox ended: killed"]


def test_the_log_can_be_searched_and_read_backwards(busy: Sandbox, http: httpx.Client) -> None:
    """cursor, limit, direction, level, search."""
    for word in ("alpha", "beta"):
        busy.commands.run(f"echo {word}")
    path = f"/v2/sandboxes/{busy.sandbox_id}/logs"

    def messages(**params: Any) -> list[str]:
        answer = http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return [entry["message"] for entry in answer.json()["logs"]]

    everything = messages()
    assert everything[0] == "sandbox created"
    assert messages(direction="backward") == everything[::-1]
    assert messages(direction="backward", limit=1) == everything[-1:]
    assert [message for message in messages(search="ALPHA") if "echo alpha" not in message] == []
    assert len(messages(search="echo alpha")) == 1
    assert messages(level="error") == []
    entries = http.get(path).json()["logs"]
    assert all(set(entry) == {"timestamp", "level", "message", "fields"} for entry in entries)
    middle = entries[len(entries) // 2]["timestamp"]
    cursor = int(datetime.fromisoformat(middle).timestamp() * 1000)
    forward = http.get(path, params={"cursor": cursor}).json()["logs"]
    assert forward[-1] == entries[-1]
    assert all(entry["timestamp"] >= middle[:23] for entry in forward)
    for query in ("direction=up", "level=loud", "limit=x", "cursor=-1", "limit=1001"):
        check_error(http.get(f"{path}?{query}"), 400)


def test_logs_of_no_sandbox(http: httpx.Client) -> None:
    """Both endpoints answer 404 in E2B's shape."""
    for prefix in ("", "/v2"):
        check_error(http.get(f"{prefix}/sandboxes/{UNKNOWN}/logs"), 404)


def test_a_life_is_remembered_by_a_server_that_was_restarted() -> None:
    """The journal is the supervisor's and on disk; metrics begin anew, at once."""
    with running_server("--pool", "0") as own, httpx.Client(base_url=own.url, timeout=WAIT_S) as http:
        http.headers["X-API-Key"] = own.api_key
        id_ = http.post("/v2/sandboxes", json={"templateID": "base"}).json()["sandboxID"]
        assert http.post(f"/sandboxes/{id_}/pause", json={}).status_code == 204
        own.kill()
        own.start()
        messages = [json.loads(log["line"])["message"] for log in http.get(f"/sandboxes/{id_}/logs").json()["logs"]]
        assert messages == ["sandbox created", "sandbox paused"]
        assert http.post(f"/v2/sandboxes/{id_}/connect", json={}).status_code == 201
        assert http.get(f"/sandboxes/{id_}/metrics").json()
        assert "Traceback" not in own.log.read_text()
