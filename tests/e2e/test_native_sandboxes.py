"""Sandboxes over the native dialect: create, look, pause, resume, deadlines, kill."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from datetime import datetime

import httpx
import pytest
import pytest_asyncio

from tests.e2e.native import Box, sandbox
from tests.server_fixture import RunningServer
from tests.waiting import until


@pytest_asyncio.fixture(scope="module")
async def box(server: RunningServer) -> AsyncIterator[Box]:
    """One sandbox for the tests that only look."""
    async with sandbox(server, metadata={"who": "tests", "ä": "ö"}, env={"GREETING": "hello"}) as made:
        yield made


def seconds_from_now(stamp: str) -> float:
    """How far an RFC 3339 time lies ahead."""
    return datetime.fromisoformat(stamp).timestamp() - time.time()


async def reason(answer: httpx.Response, status: int) -> str:
    """The reason of an error answer in this dialect's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"reason", "message", "hint"}
    assert error["message"]
    return str(error["reason"])


async def test_a_new_sandbox_says_what_it_is(server: RunningServer) -> None:
    """201 with every field of the reference, and defaults as documented."""
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers) as api:
        answer = await api.post("/v1/sandboxes")
        assert answer.status_code == 201
        found = answer.json()
        assert re.fullmatch(r"i[a-z0-9]{20}", found["id"])
        assert (found["template"], found["state"], found["on_timeout"]) == ("base", "running", "kill")
        assert (found["internet"], found["metadata"]) == (True, {})
        assert found["limits"] == {"cpu_count": 2.0, "memory_mb": 1024, "disk_mb": 10240, "pids": 1024}
        assert abs(seconds_from_now(found["started_at"])) < 5
        assert 290 < seconds_from_now(found["end_at"]) <= 300
        assert (await api.get(f"/v1/sandboxes/{found['id']}")).json() == found
        assert (await api.delete(f"/v1/sandboxes/{found['id']}")).status_code == 204


async def test_the_host_tells_its_tier_and_templates(box: Box) -> None:
    """GET /v1/host: the isolation that really holds, its versions and facts, the templates."""
    host = (await box.api.get("/v1/host")).json()
    assert host["tier"] == (await box.api.get(box.path)).json()["tier"]
    assert isinstance(host["isolated"], bool)
    assert host["facts"]
    assert "base" in {template["name"] for template in host["templates"]}


async def test_metadata_is_given_back_and_env_reaches_every_process(box: Box) -> None:
    """What was given at create is there later, byte for byte; a process's own env wins."""
    assert (await box.api.get(box.path)).json()["metadata"] == {"who": "tests", "ä": "ö"}
    for env, expected in (({}, b"hello"), ({"GREETING": "bye"}, b"bye")):
        process = await box.start("sh", "-c", 'printf "$GREETING"', env=env)
        async with box.attach(process) as terminal:
            await terminal.until_exit()
            assert terminal.data == expected


async def test_all_sandboxes_are_listed_oldest_first(server: RunningServer, box: Box) -> None:
    """The list is in order of creation and forgets what was killed."""
    async with sandbox(server) as second, sandbox(server) as third:
        listed = [item["id"] for item in (await box.api.get("/v1/sandboxes")).json()["sandboxes"]]
        assert [id_ for id_ in listed if id_ in (box.id, second.id, third.id)] == [box.id, second.id, third.id]
    listed = [item["id"] for item in (await box.api.get("/v1/sandboxes")).json()["sandboxes"]]
    assert third.id not in listed


async def test_a_killed_sandbox_is_gone_everywhere(server: RunningServer) -> None:
    """204 once nothing of it is left; every later question is no_such_sandbox, a second kill too."""
    async with sandbox(server) as own:
        process = await own.start("sleep", "1000")
        assert (await own.api.delete(own.path)).status_code == 204
        for answer in (
            await own.api.get(own.path),
            await own.api.delete(own.path),
            await own.api.post(f"{own.path}/pause"),
            await own.api.post(f"{own.path}/resume"),
            await own.api.put(f"{own.path}/deadline", json={"timeout_s": 10}),
            await own.api.get(f"{own.path}/processes"),
            await own.api.post(f"{own.path}/processes", json={"argv": ["true"]}),
            await own.api.get(f"{own.path}/processes/{process}"),
        ):
            assert await reason(answer, 404) == "no_such_sandbox"


async def test_a_deadline_is_kept(server: RunningServer) -> None:
    """A sandbox ends at its deadline by itself, and its viewers are told."""
    async with sandbox(server, timeout_s=1) as own:
        process = await own.start("sleep", "1000")
        async with own.attach(process) as terminal:
            started = time.monotonic()
            assert (await terminal.until_closed()).code in (4503, 4502)
            assert time.monotonic() - started < 4
        await until(lambda: _gone(own))


async def _gone(box: Box) -> bool:
    return (await box.api.get(box.path)).status_code == 404


async def test_a_deadline_can_be_moved_both_ways(server: RunningServer) -> None:
    """PUT deadline counts from now; 0 ends the sandbox at once."""
    async with sandbox(server, timeout_s=300) as own:
        for timeout_s in (3600, 0.5, 30 * 24 * 3600, 60):
            answer = await own.api.put(f"{own.path}/deadline", json={"timeout_s": timeout_s})
            assert answer.status_code == 200
            assert abs(seconds_from_now(answer.json()["end_at"]) - timeout_s) < 2
        assert (await own.api.put(f"{own.path}/deadline", json={"timeout_s": 0})).status_code == 200
        await until(lambda: _gone(own))


@pytest.mark.parametrize("timeout_s", [-1, -0.001, 30 * 24 * 3600 + 1, 1e300])
@pytest.mark.parametrize("route", ["create", "deadline", "resume"])
async def test_an_absurd_timeout_is_refused(box: Box, route: str, timeout_s: float) -> None:
    """bad_timeout, and nothing changes."""
    body = {"timeout_s": timeout_s}
    before = (await box.api.get("/v1/sandboxes")).json()
    if route == "create":
        answer = await box.api.post("/v1/sandboxes", json=body)
    elif route == "deadline":
        answer = await box.api.put(f"{box.path}/deadline", json=body)
    else:
        answer = await box.api.post(f"{box.path}/resume", json=body)
    assert await reason(answer, 400) == "bad_timeout"
    assert (await box.api.get("/v1/sandboxes")).json() == before


async def test_pause_freezes_and_resume_goes_on_where_it_was(server: RunningServer) -> None:
    """A counter stands still while paused, its log and pid are the same afterwards, and nothing is lost."""
    async with sandbox(server) as own:
        process = await own.start("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done")
        async with own.attach(process) as terminal:
            await terminal.until(b"5\n")
            paused = await own.api.post(f"{own.path}/pause", json={"memory": True})
            assert (paused.status_code, paused.json()["state"]) == (200, "paused")
            assert (await terminal.until_closed()).code == 4503
            position = terminal.position
            said = bytes(terminal.data)
        assert await reason(await own.api.post(f"{own.path}/pause"), 409) == "already_paused"
        assert await reason(await own.api.get(f"{own.path}/processes"), 409) == "sandbox_paused"
        assert await own.refused(process) == 409
        resumed = await own.api.post(f"{own.path}/resume", json={"timeout_s": 100})
        assert (resumed.status_code, resumed.json()["state"]) == (200, "running")
        assert 90 < seconds_from_now(resumed.json()["end_at"]) <= 100
        async with own.attach(process, f"from=offset&value={position}") as terminal:
            await terminal.until_offset(position + 20)
        numbers = [int(number) for number in (said + bytes(terminal.data)).split(b"\n")[:-1]]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_pause_without_memory_keeps_the_files_and_ends_the_processes(server: RunningServer) -> None:
    """memory=false: after resume the files are there and nothing runs."""
    async with sandbox(server) as own:
        process = await own.start("sh", "-c", "echo kept > /tmp/file; sleep 1000 & echo done; wait")
        async with own.attach(process) as terminal:
            await terminal.until(b"done\n")
        paused = await own.api.post(f"{own.path}/pause", json={"memory": False})
        assert (paused.status_code, paused.json()["state"]) == (200, "paused")
        assert (await own.api.post(f"{own.path}/resume")).status_code == 200
        assert (await own.api.get(f"{own.path}/processes")).json() == {"processes": []}
        again = await own.start("cat", "/tmp/file")
        async with own.attach(again) as terminal:
            await terminal.until_exit()
            assert terminal.data == b"kept\n"


async def test_a_sandbox_can_pause_at_its_deadline_and_be_woken(server: RunningServer) -> None:
    """on_timeout=pause: at the deadline it is frozen, not killed."""
    async with sandbox(server, timeout_s=0.5, on_timeout="pause") as own:
        process = await own.start("sleep", "1000")

        async def paused() -> bool:
            return bool((await own.api.get(own.path)).json()["state"] == "paused")

        await until(paused)
        assert (await own.api.post(f"{own.path}/resume", json={"timeout_s": 60})).status_code == 200
        assert (await own.process(process))["running"]


async def test_a_paused_sandbox_can_be_killed(server: RunningServer) -> None:
    """Frozen processes end too."""
    async with sandbox(server) as own:
        await own.start("sleep", "1000")
        await own.api.post(f"{own.path}/pause")
        assert (await own.api.delete(own.path)).status_code == 204
        assert await _gone(own)


async def test_resuming_what_runs_is_a_conflict(server: RunningServer) -> None:
    """A running sandbox stays as it is, deadline included; PUT deadline is the way to move that."""
    async with sandbox(server) as own:
        before = (await own.api.get(own.path)).json()
        assert await reason(await own.api.post(f"{own.path}/resume", json={"timeout_s": 1000}), 409) == "conflict"
        assert (await own.api.get(own.path)).json() == before


async def test_limits_are_what_was_asked_for(server: RunningServer) -> None:
    """A sandbox with limits says so, and the memory limit holds."""
    limits = {"cpu_count": 1.0, "memory_mb": 128, "disk_mb": 64, "pids": 64}
    async with sandbox(server, limits=limits) as own:
        assert (await own.api.get(own.path)).json()["limits"] == limits
        process = await own.start("python3", "-c", "x = bytearray(512 << 20)")
        exit_ = await own.wait(process)
        assert exit_["code"] != 0


async def test_two_sandboxes_do_not_see_each_other(server: RunningServer, box: Box) -> None:
    """Process numbers, files and processes are each sandbox's own."""
    async with sandbox(server) as own:
        process = await own.start("sh", "-c", "echo secret > /tmp/mine; exec sleep 1000")
        other = await box.start("sh", "-c", "cat /tmp/mine; ls /proc | grep -c '^[0-9]'")
        async with box.attach(other) as terminal:
            await terminal.until_exit()
            assert b"secret" not in terminal.data
        assert (await box.api.get(f"{box.path}/processes/{process + 1000}")).status_code == 404
