"""Pause, resume, auto-pause, auto-resume, snapshots and forks through E2B's unmodified Python SDK, and by hand."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import httpx
import pytest
from e2b import AsyncSandbox, Sandbox
from e2b.exceptions import NotFoundException, SandboxException, SandboxNotFoundException
from e2b.sandbox.sandbox_api import SandboxState

from tests.server_fixture import RunningServer
from tests.waiting import until, until_sync

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def said(sandbox: Sandbox, command: str) -> str:
    """What a command says."""
    return sandbox.commands.run(command).stdout.strip()


def paused(sandbox: Sandbox) -> bool:
    """Whether the control plane says so."""
    return sandbox.get_info().state == SandboxState.PAUSED


def wait_paused(sandbox: Sandbox) -> None:
    """Until it is paused; thirty seconds at most."""
    until_sync(lambda: paused(sandbox), 30, "the sandbox pauses")


@pytest.fixture(scope="module")
def http(server: RunningServer) -> Iterator[httpx.Client]:
    """The control plane by hand."""
    with httpx.Client(base_url=server.url, headers={"X-API-Key": os.environ["E2B_API_KEY"]}, timeout=30) as client:
        yield client


@pytest.fixture
def shared() -> Iterator[Sandbox]:
    """A sandbox for one test, gone after it."""
    sandbox = Sandbox.create(timeout=120)
    yield sandbox
    sandbox.kill()


def test_a_full_pause_keeps_processes_memory_and_boot_id(shared: Sandbox) -> None:
    """Frozen: the same processes go on where they stood, and the old handle's token is still good."""
    boot = said(shared, BOOT_ID)
    sleeper = shared.commands.run("sleep 3600", background=True)
    assert shared.pause()
    info = shared.get_info()
    assert info.state == SandboxState.PAUSED
    assert abs(info.end_at.timestamp() - time.time()) < 30, "a paused sandbox's end is the time of its pause"
    assert not shared.is_running()
    again = Sandbox.connect(shared.sandbox_id, timeout=60)
    assert said(shared, BOOT_ID) == said(again, BOOT_ID) == boot
    assert sleeper.pid in [process.pid for process in again.commands.list()]


def test_a_pause_without_memory_keeps_files_alone(http: httpx.Client, shared: Sandbox) -> None:
    """Processes end, the next connect boots again: another boot id, the same files; the mode is told."""
    boot = said(shared, f"echo kept > ~/file; (setsid sleep 3600 &); {BOOT_ID}")
    shared.pause(keep_memory=False)
    detail = http.get(f"/sandboxes/{shared.sandbox_id}").json()
    assert (detail["state"], detail["pauseMode"]) == ("paused", "filesystem")
    shared.connect()
    assert said(shared, "cat ~/file; pgrep -c sleep || true").split() == ["kept", "0"]
    assert said(shared, BOOT_ID) != boot
    assert "pauseMode" not in http.get(f"/sandboxes/{shared.sandbox_id}").json()


def test_memory_can_be_left_behind_at_connect(http: httpx.Client, shared: Sandbox) -> None:
    """`memory: false` starts a frozen sandbox again from its files."""
    boot = said(shared, f"echo kept > ~/file; {BOOT_ID}")
    shared.pause()
    assert http.get(f"/sandboxes/{shared.sandbox_id}").json()["pauseMode"] == "full"
    answer = http.post(f"/v2/sandboxes/{shared.sandbox_id}/connect", json={"timeout": 60, "memory": False})
    assert answer.status_code == 201
    assert said(shared, "cat ~/file") == "kept"
    assert said(shared, BOOT_ID) != boot


def test_a_timeout_of_zero_pauses_at_once(http: httpx.Client) -> None:
    """A sandbox that pauses at its timeout: with its memory unless told otherwise, and again and again."""
    sandbox = Sandbox.create(timeout=60, lifecycle={"on_timeout": "pause"})
    try:
        boot = said(sandbox, BOOT_ID)
        for _ in range(2):
            sandbox.set_timeout(0)
            wait_paused(sandbox)
            assert not sandbox.is_running()
            sandbox.connect()
            assert said(sandbox, BOOT_ID) == boot
        detail = http.get(f"/sandboxes/{sandbox.sandbox_id}").json()
        assert detail["lifecycle"] == {"autoResume": False, "onTimeout": "pause"}
    finally:
        sandbox.kill()


def test_an_automatic_pause_may_leave_memory_behind() -> None:
    """`keep_memory: False`: the file stays, the boot id changes."""
    lifecycle = {"on_timeout": {"action": "pause", "keep_memory": False}}
    sandbox = Sandbox.create(timeout=60, lifecycle=lifecycle)  # type: ignore[arg-type]
    try:
        boot = said(sandbox, f"echo kept > ~/file; {BOOT_ID}")
        sandbox.set_timeout(0)
        wait_paused(sandbox)
        resumed = sandbox.connect()
        assert said(resumed, "cat ~/file") == "kept"
        assert said(resumed, BOOT_ID) != boot
    finally:
        sandbox.kill()


def test_traffic_wakes_a_sandbox_that_was_created_so() -> None:
    """Any request to it: it goes on where it stood, for E2B's five minutes; asking whether it runs wakes nobody."""
    sandbox = Sandbox.create(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
    try:
        boot = said(sandbox, BOOT_ID)
        sandbox.set_timeout(0)
        wait_paused(sandbox)
        assert not sandbox.is_running()
        assert said(sandbox, BOOT_ID) == boot
        info = sandbox.get_info()
        assert info.state == SandboxState.RUNNING
        assert 200 < info.end_at.timestamp() - time.time() <= 300
        sandbox.pause()
        results = [sandbox.commands.run("echo up", background=True) for _ in range(3)]
        assert [result.wait().stdout for result in results] == ["up\n"] * 3
    finally:
        sandbox.kill()


def test_without_auto_resume_traffic_wakes_nobody(shared: Sandbox) -> None:
    """Only connect does; and a token of somebody else never."""
    shared.pause()
    with pytest.raises(SandboxException):
        shared.commands.run("true")
    assert paused(shared)


def test_a_strangers_token_wakes_nobody(http: httpx.Client) -> None:
    """Who may not use a sandbox cannot make it run either."""
    sandbox = Sandbox.create(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
    try:
        sandbox.pause()
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": "0" * 64}
        assert http.post("/process.Process/List", headers=headers, json={}).status_code == 401
        assert paused(sandbox)
    finally:
        sandbox.kill()


def test_connect_never_shortens_a_life(shared: Sandbox) -> None:
    """A smaller timeout leaves the end where it is, exactly; a larger one moves it."""
    before = shared.get_info().end_at
    Sandbox.connect(shared.sandbox_id, timeout=10)
    assert shared.get_info().end_at == before
    Sandbox.connect(shared.sandbox_id, timeout=600)
    assert shared.get_info().end_at > before


def test_refreshes_extend_and_never_shorten(http: httpx.Client, shared: Sandbox) -> None:
    """At least 15 seconds."""
    path = f"/sandboxes/{shared.sandbox_id}"
    before = http.get(path).json()["endAt"]
    assert http.post(path + "/refreshes", json={"duration": 1}).status_code == 204
    assert http.get(path).json()["endAt"] == before
    assert http.post(path + "/refreshes", json={"duration": 600}).status_code == 204
    assert http.get(path).json()["endAt"] > before


def test_pause_and_resume_of_what_is_there_already_is_a_409(http: httpx.Client, shared: Sandbox) -> None:
    """With a code and words; of what is not there a 404."""
    path = f"/sandboxes/{shared.sandbox_id}"
    answer = http.post(path + "/resume", json={"timeout": 60})
    assert (answer.status_code, answer.json()["code"]) == (409, 409)
    assert http.post(path + "/pause", json={"requireHealthyGuest": True}).status_code == 204
    answer = http.post(path + "/pause", json={})
    text = f"Error pausing sandbox - sandbox '{shared.sandbox_id}' is already paused"
    assert (answer.status_code, answer.json()) == (409, {"code": 409, "message": text})
    assert http.post(path + "/resume", json={"timeout": 60}).status_code == 201
    for verb in ("pause", "resume", "connect", "snapshots", "fork"):
        answer = http.post(f"/sandboxes/i{'0' * 20}/{verb}", json={"timeout": 5})
        assert (answer.status_code, answer.json()["code"]) == (404, 404), verb


def test_connects_pauses_and_resumes_at_once_leave_a_sandbox_that_works(http: httpx.Client, shared: Sandbox) -> None:
    """Twenty requests at a time, in any order: each is answered with a status that E2B has, nothing is torn."""

    async def storm() -> list[int]:
        async with httpx.AsyncClient(base_url=http.base_url, headers=http.headers, timeout=60) as client:
            path = f"/sandboxes/{shared.sandbox_id}"
            calls = []
            for number in range(20):
                verb, body = [("pause", {}), ("connect", {"timeout": 60}), ("pause", {"memory": False})][number % 3]
                calls.append(client.post(f"{path}/{verb}", json=body))
            return [answer.status_code for answer in await asyncio.gather(*calls)]

    assert set(asyncio.run(storm())) <= {200, 201, 204, 409}
    shared.connect()
    assert said(shared, "echo well") == "well"


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_what_sandboxes_start_from(shared: Sandbox) -> None:
    """Its id is a template's name; the sandbox runs on; children are independent of it and of each other."""
    said(shared, "echo original > ~/file")
    snapshot = shared.create_snapshot()
    assert snapshot.snapshot_id.endswith(":default")
    assert shared.is_running()
    said(shared, "echo changed > ~/file")
    children = [Sandbox.create(snapshot.snapshot_id, timeout=60) for _ in range(2)]
    try:
        said(children[0], "echo mine > ~/file")
        assert [said(each, "cat ~/file") for each in (shared, *children)] == ["changed", "mine", "original"]
        infos = Sandbox.list(query=None).next_items()
        assert {each.sandbox_id for each in children} <= {info.sandbox_id for info in infos}
    finally:
        for child in children:
            child.kill()
        assert Sandbox.delete_snapshot(snapshot.snapshot_id)


def test_snapshots_are_listed_by_sandbox_and_by_name(shared: Sandbox) -> None:
    """All of mine, page by page; by sandbox; by name; an unknown name gives none."""
    named = shared.create_snapshot(name="listed")
    unnamed = Sandbox.create_snapshot(shared.sandbox_id)
    try:
        assert any("listed" in name for name in named.names)
        assert named.snapshot_id.endswith("/listed:default")
        ids = {each.snapshot_id for each in Sandbox.list_snapshots(sandbox_id=shared.sandbox_id).next_items()}
        assert ids == {named.snapshot_id, unnamed.snapshot_id}
        for name in ("listed", named.names[0], named.snapshot_id):
            found = Sandbox.list_snapshots(name=name).next_items()
            assert [each.snapshot_id for each in found] == [named.snapshot_id]
        assert Sandbox.list_snapshots(name="not-there").next_items() == []
        paginator, seen = Sandbox.list_snapshots(limit=1), []
        while paginator.has_next:
            page = paginator.next_items()
            assert len(page) <= 1
            seen += [each.snapshot_id for each in page]
        assert seen.index(unnamed.snapshot_id) < seen.index(named.snapshot_id), "the newest first"
        assert len(seen) == len(set(seen))
    finally:
        for snapshot in (named, unnamed):
            Sandbox.delete_snapshot(snapshot.snapshot_id)


def test_a_named_snapshot_is_used_and_deleted_by_its_name(shared: Sandbox) -> None:
    """With or without team and tag; deleting it twice is True, then False; then nobody can start from it."""
    said(shared, "echo named > ~/file")
    snapshot = shared.create_snapshot(name="by-name")
    for reference in ("by-name", "by-name:default", snapshot.names[0], snapshot.snapshot_id):
        child = Sandbox.create(reference, timeout=60)
        assert said(child, "cat ~/file") == "named"
        child.kill()
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is False
    with pytest.raises(SandboxException) as refused:
        Sandbox.create(snapshot.snapshot_id)
    assert "not found" in str(refused.value)


@pytest.mark.parametrize("name", ["has space", "../up", "a/b/c", "x" * 200, "ünï"])
def test_names_that_are_none_are_refused(http: httpx.Client, shared: Sandbox, name: str) -> None:
    """400 with a code, and no snapshot."""
    answer = http.post(f"/sandboxes/{shared.sandbox_id}/snapshots", json={"name": name})
    assert (answer.status_code, answer.json()["code"]) == (400, 400)
    assert http.get("/snapshots", params={"sandboxID": shared.sandbox_id}).json() == []


def test_a_sandbox_can_be_made_from_a_snapshot_of_a_paused_one(shared: Sandbox) -> None:
    """The paused one stays paused."""
    said(shared, "echo asleep > ~/file")
    shared.pause()
    snapshot = shared.create_snapshot()
    assert paused(shared)
    child = Sandbox.create(snapshot.snapshot_id, timeout=60)
    try:
        assert said(child, "cat ~/file") == "asleep"
        assert not Sandbox.list_snapshots(sandbox_id=child.sandbox_id).next_items()
    finally:
        child.kill()
        Sandbox.delete_snapshot(snapshot.snapshot_id)


# --- forks -----------------------------------------------------------------------------------------------------------


def test_a_fork_is_an_independent_copy(shared: Sandbox) -> None:
    """Same files, its own id and token; the original runs on, untouched."""
    said(shared, "echo before > ~/file")
    forks = shared.fork()
    assert len(forks) == 1
    fork = forks[0]
    assert isinstance(fork, Sandbox)
    try:
        assert fork.sandbox_id != shared.sandbox_id
        assert shared.is_running()
        assert said(fork, "cat ~/file; echo after > ~/file") == "before"
        assert said(shared, "cat ~/file") == "before"
        assert fork.connection_config.sandbox_headers != shared.connection_config.sandbox_headers
    finally:
        fork.kill()
    assert not Sandbox.list_snapshots(sandbox_id=shared.sandbox_id).next_items(), "a fork leaves no snapshot"


def test_forks_inherit_what_the_sandbox_was_created_with() -> None:
    """Metadata, environment, life cycle; not the end of its life."""
    lifecycle = {"on_timeout": "pause", "auto_resume": True}
    source = Sandbox.create(timeout=300, metadata={"kind": "fork"}, envs={"X": "inherited"}, lifecycle=lifecycle)  # type: ignore[arg-type]
    forks = [fork for fork in Sandbox.fork(source.sandbox_id, count=3, timeout=60) if isinstance(fork, Sandbox)]
    try:
        assert len({fork.sandbox_id for fork in forks} | {source.sandbox_id}) == 4
        for fork in forks:
            info = fork.get_info()
            assert info.metadata == {"kind": "fork"}
            assert said(fork, "echo $X") == "inherited"
            assert info.end_at.timestamp() - time.time() <= 60
            assert info.template_id == source.get_info().template_id
            assert info.lifecycle is not None
            assert info.lifecycle["on_timeout"] == "pause"
    finally:
        for each in (source, *forks):
            each.kill()


def test_what_cannot_be_forked(http: httpx.Client, shared: Sandbox) -> None:
    """A killed sandbox is not found; a count out of bounds is a 400."""
    gone = Sandbox.create(timeout=60)
    gone.kill()
    with pytest.raises(SandboxNotFoundException):
        gone.fork()
    with pytest.raises(NotFoundException):
        gone.create_snapshot()
    for count in (0, -1, 101):
        answer = http.post(f"/sandboxes/{shared.sandbox_id}/fork", json={"count": count})
        assert (answer.status_code, answer.json()["code"]) == (400, 400)


# --- create once -----------------------------------------------------------------------------------------------------


def test_an_idempotency_key_creates_once(http: httpx.Client) -> None:
    """The same sandbox for the same request, at the same time or later; another request is a 409."""
    body = {"templateID": "base", "timeout": 60}

    async def at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=http.base_url, headers=http.headers, timeout=60) as client:
            calls = [client.post("/v2/sandboxes", json=body, headers={"Idempotency-Key": "k1"}) for _ in range(4)]
            return list(await asyncio.gather(*calls))

    answers = asyncio.run(at_once())
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["sandboxID"] for answer in answers}) == 1
    again = http.post("/v2/sandboxes", json=body, headers={"Idempotency-Key": "k1"})
    assert again.json() == answers[0].json()
    other = http.post("/v2/sandboxes", json={**body, "timeout": 61}, headers={"Idempotency-Key": "k1"})
    assert (other.status_code, other.json()["code"]) == (409, 409)
    second = http.post("/v2/sandboxes", json=body, headers={"Idempotency-Key": "k2"}).json()["sandboxID"]
    assert second != again.json()["sandboxID"]
    assert http.delete(f"/sandboxes/{again.json()['sandboxID']}").status_code == 204
    anew = http.post("/v2/sandboxes", json=body, headers={"Idempotency-Key": "k1"}).json()["sandboxID"]
    assert anew != again.json()["sandboxID"]
    for sandbox_id in (second, anew):
        http.delete(f"/sandboxes/{sandbox_id}")


async def test_the_async_sdk_pauses_snapshots_and_forks() -> None:
    """The same calls, awaited."""
    sandbox = await AsyncSandbox.create(timeout=120)
    try:
        await sandbox.commands.run("echo one > ~/file")
        await sandbox.pause()

        async def sleeps() -> bool:
            return (await sandbox.get_info()).state == SandboxState.PAUSED

        await until(sleeps, 30)
        await sandbox.connect()
        snapshot = await sandbox.create_snapshot(name="async")
        child = await AsyncSandbox.create(snapshot.snapshot_id, timeout=60)
        assert (await child.commands.run("cat ~/file")).stdout == "one\n"
        await child.kill()
        forks = [fork for fork in await sandbox.fork(count=2, timeout=60) if isinstance(fork, AsyncSandbox)]
        assert [(await fork.commands.run("cat ~/file")).stdout for fork in forks] == ["one\n", "one\n"]
        for fork in forks:
            await fork.kill()
        assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id)
    finally:
        await sandbox.kill()
