"""Several keys and teams: who sees what, and what a revocation does, on a running server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import httpx
import pytest
import pytest_asyncio
import websockets

from sandpty import AsyncClient, AsyncSandbox, AsyncTerminal, Output, SandptyError
from sandpty.wire.frames import From
from tests.server_fixture import RunningServer, running_server, sandpty
from tests.waiting import until

WAIT_S = 30.0
ECHO_SERVER = """
import socket
with socket.create_server(("127.0.0.1", 8000)) as server:
    print("listens", flush=True)
    connected, _ = server.accept()
    while data := connected.recv(1000):
        connected.sendall(data)
"""


def keys(server: RunningServer, *words: str) -> str:
    """`sandpty keys ...`; what it printed."""
    command = sandpty("keys", words[0], "--data-dir", str(server.data_dir), *words[1:])
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def change(server: RunningServer, *words: str) -> str:
    """The same beside what else goes on."""
    return await asyncio.to_thread(keys, server, *words)


def add_key(server: RunningServer, team: str, name: str) -> str:
    """A new key of that team."""
    key = keys(server, "add", "--team", team, "--name", name).strip()
    assert key.startswith("e2b_")
    return key


@pytest.fixture(scope="module")
def teams_server() -> Iterator[RunningServer]:
    """A server of its own: its keys change."""
    with running_server("--pool", "2") as running:
        yield running


@pytest_asyncio.fixture
async def http(teams_server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client that says its key with each request."""
    async with httpx.AsyncClient(base_url=teams_server.url, timeout=WAIT_S) as client:
        yield client


def using(key: str) -> dict[str, str]:
    """The header with a key."""
    return {"X-API-Key": key}


async def create(http: httpx.AsyncClient, key: str) -> dict[str, Any]:
    """A sandbox through E2B's API, which tells the access token."""
    answer = await http.post("/v2/sandboxes", json={"templateID": "base", "timeout": 300}, headers=using(key))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def refused(http: httpx.AsyncClient, key: str) -> bool:
    """Whether the key counts no more."""
    return (await http.get("/v1/sandboxes", headers=using(key))).status_code == 401


async def test_a_new_key_counts_at_once_and_its_team_sees_its_own_sandboxes(
    teams_server: RunningServer, http: httpx.AsyncClient
) -> None:
    """Two keys of a team share; another team sees nothing, and the first key neither."""
    one, two = add_key(teams_server, "acme", "one"), add_key(teams_server, "acme", "two")
    other = add_key(teams_server, "umbrella", "other")
    sandbox_id = (await create(http, one))["sandboxID"]
    for path in ("/v2/sandboxes", "/v1/sandboxes"):
        for key, sees in ((one, True), (two, True), (other, False), (teams_server.api_key, False)):
            assert (sandbox_id in (await http.get(path, headers=using(key))).text) is sees
    assert (await http.delete(f"/sandboxes/{sandbox_id}", headers=using(other))).status_code == 404
    assert (await http.delete(f"/sandboxes/{sandbox_id}", headers=using(two))).status_code == 204


async def test_teams_says_whose_a_key_is(teams_server: RunningServer, http: httpx.AsyncClient) -> None:
    """GET /teams with a bearer, as E2B's command line asks; the first key's team is called default."""
    key = add_key(teams_server, "acme", "asks")
    for each, name in ((key, "acme"), (teams_server.api_key, "default")):
        (team,) = (await http.get("/teams", headers={"Authorization": f"Bearer {each}"})).json()
        assert (team["name"], team["apiKey"], team["isDefault"]) == (name, each, True)
        assert team["teamID"]
    assert (await http.get("/teams")).status_code == 401


async def test_a_revoked_key_is_refused_and_its_terminals_are_cut(
    teams_server: RunningServer, http: httpx.AsyncClient
) -> None:
    """The viewer that used it gets 4401; one of another key of the team stays; so does the sandbox."""
    leaked, kept = add_key(teams_server, "acme", "leaked"), add_key(teams_server, "acme", "kept")
    made = await http.post("/v1/sandboxes", json={"timeout_s": 300}, headers=using(kept))
    path = f"/v1/sandboxes/{made.json()['id']}/processes"
    body = {"argv": ["/bin/cat"], "pty": {"cols": 80, "rows": 24}}
    started = (await http.post(path, json=body, headers=using(kept))).json()
    url = f"{teams_server.url.replace('http', 'ws')}{path}/{started['process']}/attach?from=end"
    async with (
        websockets.connect(url, additional_headers=using(leaked)) as thief,
        websockets.connect(url, additional_headers=using(kept)) as owner,
    ):
        for viewer in (thief, owner):
            assert (await viewer.recv())[0] == 0x91
        waiting = asyncio.create_task(http.get(f"{path}/{started['process']}/wait", headers=using(leaked)))
        await change(teams_server, "revoke", "leaked")
        with pytest.raises(websockets.ConnectionClosed):
            await asyncio.wait_for(_read_on(thief), WAIT_S)
        assert (thief.close_code, thief.close_reason) == (4401, "unauthenticated: the API key was revoked")
        with suppress(httpx.HTTPError):  # or it came after the revocation
            assert (await waiting).status_code == 401
        await owner.send(bytes([0x20]) + b"\xff" * 8 + b"still here\r")
        async with asyncio.timeout(WAIT_S):
            while b"still here" not in await owner.recv():  # type: ignore[operator]
                pass
    assert await refused(http, leaked)
    assert not await refused(http, kept)
    assert (await http.delete(f"/v1/sandboxes/{made.json()['id']}", headers=using(kept))).status_code == 204


async def test_a_revoked_keys_handles_end_at_once(teams_server: RunningServer) -> None:
    """A terminal that heals itself, an attachment, a watch and a forwarded port: none is made again, all say why."""
    leaked = add_key(teams_server, "lenders", "lent")
    async with AsyncClient(teams_server.url, leaked) as client, AsyncExitStack() as stack:
        sandbox = await AsyncSandbox.create(url=teams_server.url, api_key=leaked)
        echo = ["/usr/bin/python3", "-c", ECHO_SERVER]
        service = await stack.enter_async_context(client.start_attached(sandbox.id, echo))
        assert isinstance(await service.receive(), Output)  # it listens
        terminal = AsyncTerminal(client, sandbox.id, service.info.process, origin=From.END)
        await stack.enter_async_context(terminal)
        watch = await stack.enter_async_context(await sandbox.files.watch_dir("."))
        port = await stack.enter_async_context(client.connect_port(sandbox.id, 8000))
        await port.send(b"hello")
        assert await port.receive() == b"hello"
        ends = [_ended(anext(aiter(terminal))), _ended(service.receive()), _ended(anext(watch)), _ended(port.receive())]
        waiting = asyncio.gather(*(asyncio.create_task(end) for end in ends))
        await change(teams_server, "revoke", "lent")
        assert set(await asyncio.wait_for(waiting, WAIT_S)) == {"unauthenticated"}


async def _ended(event: Awaitable[object]) -> str:
    """Why there is no more."""
    with pytest.raises(SandptyError) as ended:
        await event
    return ended.value.reason.name


async def _read_on(viewer: websockets.ClientConnection) -> None:
    while True:
        await viewer.recv()


def _start(made: dict[str, Any]) -> tuple[str, dict[str, str], bytes]:
    message = json.dumps({"process": {"cmd": "/bin/sleep", "args": ["600"]}}).encode()
    headers = {
        "E2b-Sandbox-Id": made["sandboxID"],
        "X-Access-Token": made["envdAccessToken"],
        "Content-Type": "application/connect+json",
    }
    return "/process.Process/Start", headers, b"\0" + len(message).to_bytes(4, "big") + message


async def _list_status(http: httpx.AsyncClient, made: dict[str, Any]) -> int:
    headers = {"E2b-Sandbox-Id": made["sandboxID"], "X-Access-Token": made["envdAccessToken"]}
    return (await http.post("/process.Process/List", json={}, headers=headers)).status_code


async def test_a_teams_tokens_are_worth_nothing_once_it_has_no_key(
    teams_server: RunningServer, http: httpx.AsyncClient
) -> None:
    """E2B's streams carry a sandbox's token, not a key: they are cut, and the token is refused."""
    key = add_key(teams_server, "lonely", "only")
    made = await create(http, key)
    assert await _list_status(http, made) == 200
    path, headers, body = _start(made)
    async with http.stream("POST", path, content=body, headers=headers) as stream:
        assert stream.status_code == 200
        await change(teams_server, "revoke", "only")
        with pytest.raises(httpx.HTTPError):
            await asyncio.wait_for(stream.aread(), WAIT_S)
    assert await _list_status(http, made) == 401
    assert await refused(http, key)
    add_key(teams_server, "lonely", "again")
    await until(lambda: _answers(http, made), WAIT_S)


async def _answers(http: httpx.AsyncClient, made: dict[str, Any]) -> bool:
    return await _list_status(http, made) == 200


async def test_streams_of_sandboxes_that_were_made_with_a_revoked_key_are_cut(
    teams_server: RunningServer, http: httpx.AsyncClient
) -> None:
    """Whoever opened them; the sandbox lives on, and whoever has its token may come back while the team has a key."""
    maker, other = add_key(teams_server, "acme", "maker"), add_key(teams_server, "acme", "other")
    made, untouched = await create(http, maker), await create(http, other)
    path, headers, body = _start(made)
    kept_path, kept_headers, kept_body = _start(untouched)
    async with (
        http.stream("POST", path, content=body, headers=headers) as cut,
        http.stream("POST", kept_path, content=kept_body, headers=kept_headers) as kept,
    ):
        pieces = kept.aiter_raw()
        assert b'"start"' in await anext(pieces)
        await change(teams_server, "revoke", "maker")
        with pytest.raises(httpx.HTTPError):
            await asyncio.wait_for(cut.aread(), WAIT_S)
        killing = asyncio.create_task(http.delete(f"/sandboxes/{untouched['sandboxID']}", headers=using(other)))
        with pytest.raises(httpx.HTTPError):  # only now
            await asyncio.wait_for(_read_all(pieces), WAIT_S)
        assert (await killing).status_code == 204
    assert await _list_status(http, made) == 200
    assert (await http.delete(f"/sandboxes/{made['sandboxID']}", headers=using(other))).status_code == 204


async def _read_all(pieces: AsyncIterator[bytes]) -> None:
    async for _ in pieces:
        pass


async def test_after_a_leak_every_sandbox_of_the_team_gets_a_new_token(
    teams_server: RunningServer, http: httpx.AsyncClient
) -> None:
    """`revoke --tokens`: the old token is refused, the team's other key learns the new one; other teams keep theirs."""
    leaked, kept = add_key(teams_server, "acme", "leaks"), add_key(teams_server, "acme", "keeps")
    other = add_key(teams_server, "umbrella", "bystander")
    made, foreign = await create(http, kept), await create(http, other)
    assert "1 sandboxes have a new access token" in await change(teams_server, "revoke", leaked, "--tokens")
    await until(lambda: _has_changed(http, kept, made), WAIT_S)
    assert await _list_status(http, made) == 401
    again = (await http.get(f"/sandboxes/{made['sandboxID']}", headers=using(kept))).json()
    assert await _list_status(http, again) == 200
    assert await _list_status(http, foreign) == 200
    await http.delete(f"/sandboxes/{made['sandboxID']}", headers=using(kept))


async def _has_changed(http: httpx.AsyncClient, key: str, made: dict[str, Any]) -> bool:
    now = (await http.get(f"/sandboxes/{made['sandboxID']}", headers=using(key))).json()
    return bool(now["envdAccessToken"] != made["envdAccessToken"])


async def test_keys_outlive_the_server_and_change_without_it(
    teams_server: RunningServer, http: httpx.AsyncClient
) -> None:
    """Made and revoked while no server runs; what was made before a restart still counts after it."""
    before = add_key(teams_server, "acme", "before")
    gone = add_key(teams_server, "acme", "gone")
    teams_server.kill()
    meanwhile = add_key(teams_server, "acme", "meanwhile")
    keys(teams_server, "revoke", "gone")
    teams_server.start()
    assert not await refused(http, before)
    assert not await refused(http, meanwhile)
    assert not await refused(http, teams_server.api_key)
    assert await refused(http, gone)


def test_the_list_shows_no_key_and_the_server_cannot_read_the_file(teams_server: RunningServer) -> None:
    """Names, teams, when; the plain text is nowhere."""
    key = add_key(teams_server, "acme", "shown")
    listed = json.loads(keys(teams_server, "list", "--json"))
    (mine,) = [each for each in listed if each["name"] == "shown"]
    assert mine["team"] == "acme"
    assert mine["revoked_at"] is None
    table = keys(teams_server, "list")
    assert "shown" in table
    assert key not in table + json.dumps(listed)
    keys(teams_server, "revoke", "shown")
    assert "shown" not in keys(teams_server, "list")
    assert "shown" in keys(teams_server, "list", "--all")
    assert "no keys" not in table
    file = teams_server.data_dir / "keys.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_uid == os.geteuid()
