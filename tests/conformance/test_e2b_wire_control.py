"""E2B's control plane by hand: what the SDKs never send, and what they never show."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from e2b import Sandbox

from tests.conformance.wire import (
    UNKNOWN,
    check_error,
)
from tests.server_fixture import RunningServer


@pytest.mark.parametrize("path", ["/sandboxes", "/v2/sandboxes"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"templateID":5}', 400),
        (b'{"templateID":"base","timeout":"soon"}', 400),
        (b'{"templateID":"base","timeout":0}', 400),
        (b'{"templateID":"base","timeout":-5}', 400),
        (b'{"templateID":"base","timeout":99999999999999999999}', 400),
        (b'{"templateID":"base","metadata":{"a":1}}', 400),
        (b'{"templateID":"base","envVars":[]}', 400),
        (b'{"templateID":"base","autoPauseMemory":false}', 400),
        (b'{"templateID":"nothing"}', 404),
        (b'{"templateID":"../../etc"}', 404),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"templateID":"base","metadata":{"a":"' + b"x" * 2_000_000 + b'"}}', 413),
        (b'{"templateID":"base","metadata":{"a":"' + b"x" * 200_000 + b'"}}', 413),
    ],
)
def test_a_create_that_cannot_be_is_refused(
    server: RunningServer, key: dict[str, str], path: str, body: bytes, status: int
) -> None:
    """In the shape that every SDK can parse, on both paths."""
    check_error(httpx.post(server.url + path, content=body, headers=key), status)


def test_both_versions_of_create_answer_201_with_all_that_the_sdks_need(
    server: RunningServer, key: dict[str, str]
) -> None:
    """v1 lasts 15 s and is insecure unless asked; v2 lasts 300 s and is always secure. Chunked bodies are read."""
    for path, body, lasts_s, secure in (
        ("/sandboxes", {"templateID": "base"}, 15, False),
        ("/sandboxes", {"templateID": "base", "secure": True, "timeout": 20}, 20, True),
        ("/v2/sandboxes", {"templateID": "base"}, 300, True),
    ):
        chunks = iter([json.dumps(body).encode()])  # an iterator goes chunked, as JavaScript's bodies do
        answer = httpx.post(server.url + path, content=chunks, headers=key)
        assert answer.status_code == 201, answer.text
        made = answer.json()
        assert {"templateID", "sandboxID", "clientID", "envdVersion", "domain", "trafficAccessToken"} <= made.keys()
        assert ("envdAccessToken" in made) is secure
        if secure:
            assert len(made["envdAccessToken"]) == 64
        url = f"{server.url}/sandboxes/{made['sandboxID']}"
        info = httpx.get(url, headers=key).json()
        until = time.mktime(time.strptime(info["endAt"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
        assert lasts_s - 3 < until - time.time() <= lasts_s + 1
        assert httpx.delete(url, headers=key).status_code == 204


def test_connect_answers_200_to_a_running_and_201_to_a_paused_sandbox(
    server: RunningServer, key: dict[str, str], sandbox: Sandbox
) -> None:
    """Both versions; v1 needs its timeout; the token stays the same."""
    url = f"{server.url}/sandboxes/{sandbox.sandbox_id}"
    v2 = f"{server.url}/v2/sandboxes/{sandbox.sandbox_id}/connect"
    first = httpx.post(v2, json={}, headers=key)
    assert first.status_code == 200
    check_error(httpx.post(f"{url}/connect", json={}, headers=key), 400)
    assert httpx.post(f"{url}/connect", json={"timeout": 60}, headers=key).status_code == 200
    assert httpx.post(f"{url}/pause", json={}, headers=key).status_code == 204
    assert "already paused" in check_error(httpx.post(f"{url}/pause", headers=key), 409)
    again = httpx.post(v2, json={"timeout": 60}, headers=key)
    assert again.status_code == 201
    assert again.json()["envdAccessToken"] == first.json()["envdAccessToken"]
    check_error(httpx.post(f"{url}/resume", json={}, headers=key), 409)
    assert httpx.post(f"{url}/pause", headers=key).status_code == 204
    assert httpx.post(f"{url}/resume", json={"timeout": 60}, headers=key).status_code == 201


def test_refreshes_extend_a_life(server: RunningServer, key: dict[str, str], sandbox: Sandbox) -> None:
    """Never shorten it; nonsense is a bad request."""
    url = f"{server.url}/sandboxes/{sandbox.sandbox_id}"
    before = httpx.get(url, headers=key).json()["endAt"]
    assert httpx.post(f"{url}/refreshes", json={"duration": 20}, headers=key).status_code == 204
    assert httpx.get(url, headers=key).json()["endAt"] == before
    assert httpx.post(f"{url}/refreshes", json={"duration": 1000}, headers=key).status_code == 204
    assert httpx.get(url, headers=key).json()["endAt"] > before
    check_error(httpx.post(f"{url}/refreshes", json={"duration": -1}, headers=key), 400)
    check_error(httpx.post(f"{url}/timeout", json={}, headers=key), 400)
    check_error(httpx.post(f"{url}/timeout", json={"timeout": 1e30}, headers=key), 400)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/sandboxes/{UNKNOWN}"),
        ("DELETE", f"/sandboxes/{UNKNOWN}"),
        ("POST", f"/sandboxes/{UNKNOWN}/pause"),
        ("POST", f"/sandboxes/{UNKNOWN}/nothing"),
        ("PUT", f"/sandboxes/{UNKNOWN}"),
        ("GET", "/sandboxes/%00%ff"),
        ("GET", "/v2/nothing"),
        ("GET", f"/volumes/{UNKNOWN}"),
        ("DELETE", f"/volumes/{UNKNOWN}"),
    ],
)
def test_what_is_not_there_is_a_json_404(server: RunningServer, key: dict[str, str], method: str, path: str) -> None:
    """JavaScript reads the code from the body, Python cannot parse anything but JSON."""
    check_error(httpx.request(method, server.url + path, headers=key), 404)
    check_error(httpx.request(method, server.url + path, headers={"X-API-Key": "wrong"}), 401)
    check_error(httpx.request(method, server.url + path), 401)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "state=gone", "order=up", "nextToken=%21", "startedAfter=now"])
def test_a_list_with_a_senseless_parameter_is_a_bad_request(
    server: RunningServer, key: dict[str, str], query: str
) -> None:
    """Not an empty list."""
    check_error(httpx.get(f"{server.url}/v2/sandboxes?{query}", headers=key), 400)


def test_the_old_list_shows_what_runs(server: RunningServer, key: dict[str, str], sandbox: Sandbox) -> None:
    """GET /sandboxes knows no paused ones."""

    def ids() -> list[str]:
        return [item["sandboxID"] for item in httpx.get(f"{server.url}/sandboxes", headers=key).json()]

    assert sandbox.sandbox_id in ids()
    sandbox.pause()
    assert sandbox.sandbox_id not in ids()
