"""Every route of every dialect, as the application has them: nothing of a sandbox without its team's key.

The table is read from the application, so that a route that is added without a check fails here.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aiohttp import web

from sandpty.config import DataDir
from sandpty.server.app import make_app, make_context
from sandpty.server.auth import Authenticator
from sandpty.server.registry import Registry
from sandpty.server.settings import Settings
from tests.server_fixture import RunningServer, sandpty

# Routes that answer anybody, each with the reason why that tells nothing.
PUBLIC = {
    ("GET", "/healthz"): "whether the server serves",
    ("GET", "/health"): "whether a sandbox runs: E2B's SDKs ask without a token",
}
SECRET = "the-secret-of-its-owner"
ID_CHARACTERS = 8  # what is shorter is a number that may stand in any answer
# So that what is asked makes sense, and is refused for who asks.
BODY = b'{"timeout": 60, "duration": 60, "count": 1, "port": 8080, "requested_size_mib": 1024, "value": "x"}'
QUERIES = {
    "/files/copy": "?path=/tmp/x&to=/tmp/y",
    "/files/move": "?path=/tmp/x&to=/tmp/y",
    "/files/symlink": "?path=/tmp/x&text=y",
    "{sandbox}/files": "?path=/tmp/x",
    "/tags/exists": "?tag=x",
}
REFUSALS = {401, 403, 404, 502}
NO_KEY = {401, 502}  # 502: envd's way to say that no sandbox is meant
# What a path may name that is no thing of somebody's: parts of the API, things below one of somebody's.
NOBODYS = {"service", "method", "path", "port", "tail", "rest", "family", "route", "tag", "hash", "token", "watch"}
PARTS = re.compile(r"\{(\w+)(?::[^{}]*(?:\{[^{}]*\}[^{}]*)*)?\}")


def make_table() -> list[tuple[str, str]]:
    """(method, path with {names}) of everything the server answers."""
    table = set()
    with ExitStack() as stack:
        settings = Settings(DataDir(Path("/nonexistent")), "k")
        context = make_context(settings, Registry("/nonexistent"), Authenticator("k"), stack)
        for route in make_app(context).router.routes():
            assert route.resource is not None
            path = _pattern(route.resource)
            methods = ("GET", "POST", "PUT", "DELETE") if route.method == "*" else (route.method,)
            table |= {(method, path) for method in methods if method not in ("HEAD", "OPTIONS")}
    return sorted(table)


def _pattern(resource: web.AbstractResource) -> str:
    info = resource.get_info()
    return info.get("path") or info["formatter"]


TABLE = make_table()


@dataclass
class Stage:
    """Somebody's sandbox and everything else there can be, and somebody else with a key of another team."""

    http: httpx.AsyncClient
    sandbox: dict[str, Any]
    theirs: dict[str, str]  # what stands in paths between braces: whose it is
    owner: str
    stranger: str

    def fill(self, path: str) -> str:
        """The path with what would really be there in its place."""
        known = {**self.theirs, "service": "process.Process", "method": "List", "path": "metrics", "port": "8080"}
        return PARTS.sub(lambda part: known.get(part[1], "" if part[1] in ("tail", "rest") else "x"), path)

    def names(self, path: str) -> bool:
        """Whether it leads to something of the owner's."""
        return any(part in self.theirs for part in PARTS.findall(path))

    def told(self, path: str, answer: httpx.Response) -> list[str]:
        """What an answer to somebody else holds, and may not: all but what was asked about."""
        ids = {value for value in self.theirs.values() if len(value) >= ID_CHARACTERS}
        hidden = {self.sandbox["envdAccessToken"], self.owner, SECRET} | ids
        return [each for each in hidden if each in answer.text and each not in self.fill(path)]


@pytest_asyncio.fixture(scope="module")
async def stage(server: RunningServer) -> AsyncIterator[Stage]:
    """The server of all tests: nobody loses a key here."""
    command = sandpty("keys", "add", "--data-dir", str(server.data_dir), "--team", "strangers")
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True, timeout=60)
    stranger = done.stdout.strip()
    owner = {"X-API-Key": server.api_key}
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        body = {"templateID": "base", "timeout": 600, "metadata": {"name": SECRET}}
        sandbox = (await http.post("/v2/sandboxes", json=body, headers=owner)).json()
        theirs = await _made(http, sandbox["sandboxID"], owner)
        yield Stage(http, sandbox, theirs, server.api_key, stranger)
        for path in (
            f"/v1/volumes/{theirs['volume']}",
            f"/secrets/{theirs['secret']}",
            f"/v1/snapshots/{theirs['snapshot']}",
            f"/templates/{theirs['template']}",
            f"/sandboxes/{sandbox['sandboxID']}",
        ):
            assert (await http.delete(path, headers=owner)).status_code in (200, 204), path


async def _made(http: httpx.AsyncClient, sandbox_id: str, owner: dict[str, str]) -> dict[str, str]:
    """One of each thing that a path may name."""

    async def post(path: str, body: dict[str, Any]) -> Any:
        answer = await http.post(path, json=body, headers=owner)
        assert answer.status_code < 300, answer.text
        return answer.json()

    sandbox = f"/v1/sandboxes/{sandbox_id}"
    pty = {"argv": ["/bin/cat"], "tag": SECRET, "pty": {"cols": 80, "rows": 24}}
    build = await post("/v3/templates", {"name": SECRET})
    return {
        "id": sandbox_id,
        "sandbox": sandbox_id,
        "process": str((await post(f"{sandbox}/processes", {"argv": ["/bin/sleep", "600"], "tag": SECRET}))["process"]),
        "terminal": str((await post(f"{sandbox}/processes", pty))["process"]),
        "volume": (await post("/v1/volumes", {"name": SECRET}))["id"],
        "snapshot": (await post(f"{sandbox}/snapshots", {"name": SECRET}))["id"],
        "secret": (await post("/secrets", {"name": SECRET, "value": SECRET}))["secretID"],
        "template": build["templateID"],
        "image": build["templateID"],
        "build": build["buildID"],
    }


async def _asked(stage: Stage, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    streamed = path.endswith(("/Start", "/Connect", "/StreamInput", "/WatchDir"))
    kind = "application/connect+json" if streamed else "application/json"
    plain = b"{}" if path.startswith("/v1/") else BODY
    message = b"\0\0\0\0\x02{}" if streamed else plain
    body = None if method == "GET" else message
    query = next((query for part, query in QUERIES.items() if part in path), "")
    url = str(stage.http.base_url).rstrip("/") + stage.fill(path) + query  # whole: a path may begin with two slashes
    return await stage.http.request(method, url, content=body, headers={"Content-Type": kind, **headers})


def _error_of_stream(answer: httpx.Response) -> str:
    """A Connect stream is always HTTP 200; its end envelope says how it went."""
    if answer.headers.get("content-type") != "application/connect+json":
        return ""
    end = json.loads(answer.content[5:])
    return str(end.get("error", {}).get("code", ""))


@pytest.mark.parametrize(("method", "path"), TABLE, ids=[f"{method} {path}" for method, path in TABLE])
async def test_a_route_answers_nobody_without_a_key(stage: Stage, method: str, path: str) -> None:
    """Without a key or token, with a wrong one, and with the sandbox named in E2B's headers."""
    if (method, path) in PUBLIC:
        return
    named = {"E2b-Sandbox-Id": stage.sandbox["sandboxID"]}
    for headers in ({}, named, {"X-API-Key": "e2b_wrong", "X-Access-Token": "wrong", "Authorization": "Bearer wrong"}):
        answer = await _asked(stage, method, path, headers)
        assert answer.status_code in NO_KEY or _error_of_stream(answer) == "unauthenticated", answer.text[:300]
        assert not stage.told(path, answer)


@pytest.mark.parametrize(("method", "path"), TABLE, ids=[f"{method} {path}" for method, path in TABLE])
async def test_a_route_tells_another_team_nothing(stage: Stage, method: str, path: str) -> None:
    """Its key opens nothing of this sandbox, nor is the sandbox in any list it gets."""
    if (method, path) in PUBLIC:
        return
    named = {"E2b-Sandbox-Id": stage.sandbox["sandboxID"], "X-Access-Token": stage.stranger}
    answer = await _asked(stage, method, path, {"X-API-Key": stage.stranger, **named})
    assert not stage.told(path, answer), answer.text[:300]
    if stage.names(path):
        assert answer.status_code in REFUSALS, answer.text[:300]


async def test_nothing_has_become_of_the_sandbox(stage: Stage) -> None:
    """After all that: it runs, its process too, its deadline has not moved."""
    owner = {"X-API-Key": stage.owner}
    now = (await stage.http.get(f"/sandboxes/{stage.sandbox['sandboxID']}", headers=owner)).json()
    assert now["state"] == "running"
    assert now["envdAccessToken"] == stage.sandbox["envdAccessToken"]
    path = f"/v1/sandboxes/{stage.sandbox['sandboxID']}/processes/{stage.theirs['process']}"
    assert (await stage.http.get(path, headers=owner)).json()["running"] is True


def test_the_table_is_the_whole_table(stage: Stage) -> None:
    """Every dialect, and many routes: a table that came out empty would prove nothing. What a path names, is there."""
    paths = {path for _, path in TABLE}
    assert {"/v1/sandboxes/{sandbox}", "/sandboxes/{id}", "/process.Process/Start"} <= paths
    assert len(TABLE) > 40
    assert {part for path in paths for part in PARTS.findall(path)} <= stage.theirs.keys() | NOBODYS
