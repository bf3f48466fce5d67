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
REFUSALS = {400, 401, 403, 404, 502}  # 400: some look at the body first, which is the asker's own
NO_KEY = {401, 502}  # 502: envd's way to say that no sandbox is meant
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
    """Somebody's sandbox with a process in it, and somebody else with a key of another team."""

    http: httpx.AsyncClient
    sandbox: dict[str, Any]
    process: int
    volume: str
    owner: str
    stranger: str

    def fill(self, path: str) -> str:
        """The path with what would really be there in its place."""
        known = {"id": self.sandbox["sandboxID"], "sandbox": self.sandbox["sandboxID"], "process": str(self.process)}
        known["volume"] = self.volume
        known |= {
            "service": "process.Process",
            "method": "List",
            "path": "metrics",
            "tail": "",
            "rest": "",
            "port": "8080",
        }
        return PARTS.sub(lambda part: known.get(part[1], "x"), path)

    @property
    def secrets(self) -> set[str]:
        """What no answer to somebody else may hold."""
        return {self.sandbox["envdAccessToken"], self.owner, "the-secret-of-its-owner"}


@pytest_asyncio.fixture(scope="module")
async def stage(server: RunningServer) -> AsyncIterator[Stage]:
    """The server of all tests: nobody loses a key here."""
    command = sandpty("keys", "add", "--data-dir", str(server.data_dir), "--team", "strangers")
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True, timeout=60)
    stranger = done.stdout.strip()
    owner = {"X-API-Key": server.api_key}
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        body = {"templateID": "base", "timeout": 600, "metadata": {"name": "the-secret-of-its-owner"}}
        sandbox = (await http.post("/v2/sandboxes", json=body, headers=owner)).json()
        wanted = {"argv": ["/bin/sleep", "600"], "tag": "the-secret-of-its-owner"}
        path = f"/v1/sandboxes/{sandbox['sandboxID']}/processes"
        process = (await http.post(path, json=wanted, headers=owner)).json()["process"]
        named = {"name": "the-secret-of-its-owner"}
        volume = (await http.post("/v1/volumes", json=named, headers=owner)).json()["id"]
        yield Stage(http, sandbox, process, volume, server.api_key, stranger)
        assert (await http.delete(f"/v1/volumes/{volume}", headers=owner)).status_code == 204
        await http.delete(f"/sandboxes/{sandbox['sandboxID']}", headers=owner)


async def _asked(stage: Stage, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    streamed = path.endswith(("/Start", "/Connect", "/StreamInput", "/WatchDir"))
    kind = "application/connect+json" if streamed else "application/json"
    plain = b"{}" if path.startswith("/v1/") else b'{"timeout": 60, "duration": 60, "count": 1}'
    message = b"\0\0\0\0\x02{}" if streamed else plain
    body = None if method == "GET" else message
    url = str(stage.http.base_url).rstrip("/") + stage.fill(path)  # whole: a path may begin with two slashes
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
        assert not [secret for secret in stage.secrets if secret in answer.text]


@pytest.mark.parametrize(("method", "path"), TABLE, ids=[f"{method} {path}" for method, path in TABLE])
async def test_a_route_tells_another_team_nothing(stage: Stage, method: str, path: str) -> None:
    """Its key opens nothing of this sandbox, nor is the sandbox in any list it gets."""
    if (method, path) in PUBLIC:
        return
    named = {"E2b-Sandbox-Id": stage.sandbox["sandboxID"], "X-Access-Token": stage.stranger}
    answer = await _asked(stage, method, path, {"X-API-Key": stage.stranger, **named})
    assert not [secret for secret in stage.secrets if secret in answer.text], answer.text[:300]
    about_the_sandbox = stage.sandbox["sandboxID"] in stage.fill(path)
    if about_the_sandbox:
        assert answer.status_code in REFUSALS, answer.text[:300]
    else:
        assert stage.sandbox["sandboxID"] not in answer.text or answer.status_code in REFUSALS


async def test_nothing_has_become_of_the_sandbox(stage: Stage) -> None:
    """After all that: it runs, its process too, its deadline has not moved."""
    owner = {"X-API-Key": stage.owner}
    now = (await stage.http.get(f"/sandboxes/{stage.sandbox['sandboxID']}", headers=owner)).json()
    assert now["state"] == "running"
    assert now["envdAccessToken"] == stage.sandbox["envdAccessToken"]
    path = f"/v1/sandboxes/{stage.sandbox['sandboxID']}/processes/{stage.process}"
    assert (await stage.http.get(path, headers=owner)).json()["running"] is True


def test_the_table_is_the_whole_table() -> None:
    """Both dialects, and many routes: a table that came out empty would prove nothing."""
    paths = {path for _, path in TABLE}
    assert {"/v1/sandboxes/{sandbox}", "/sandboxes/{id}", "/process.Process/Start"} <= paths
    assert len(TABLE) > 40
