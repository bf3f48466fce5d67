"""A sandbox's own API by hand: who may call, for which sandbox, and what there is."""

from __future__ import annotations

import httpx
from e2b import Sandbox

from tests.conformance.conftest import Envd
from tests.conformance.wire import (
    STREAM,
    UNKNOWN,
    asked,
    check_error,
    ending,
    envelope,
)
from tests.server_fixture import RunningServer


def test_nothing_is_done_without_the_sandboxs_token(envd: Envd) -> None:
    """401 with envd's words; health needs none."""
    text = "unauthorized access, please provide a valid access token or method signing if supported"
    for token in ("", "0" * 64, "é"):
        headers = {**envd.headers, "X-Access-Token": token.encode()}
        answer = httpx.post(f"{envd.url}/process.Process/List", json={}, headers=headers)
        assert check_error(answer, 401) == text
        answer = httpx.post(f"{envd.url}/process.Process/Start", json={}, headers=headers)
        assert check_error(answer, 401) == text
    health = httpx.get(f"{envd.url}/health", headers={"E2b-Sandbox-Id": envd.headers["E2b-Sandbox-Id"]})
    assert health.status_code == 204


def test_a_sandbox_without_security_asks_no_token(server: RunningServer, key: dict[str, str]) -> None:
    """v1 with `secure: false`."""
    made = httpx.post(f"{server.url}/sandboxes", json={"templateID": "base", "timeout": 60}, headers=key).json()
    headers = {"E2b-Sandbox-Id": made["sandboxID"]}
    answer = httpx.post(f"{server.url}/process.Process/List", json={}, headers=headers)
    assert answer.json() == {"processes": []}
    httpx.delete(f"{server.url}/sandboxes/{made['sandboxID']}", headers=key)


def test_a_sandbox_is_found_by_each_vendors_header_and_by_its_token(envd: Envd) -> None:
    """Novita's Python SDK sends only the token after a connect; an old client id after a dash is ignored."""
    sandbox_id = envd.headers["E2b-Sandbox-Id"]
    for headers in (
        {"Novita-Sandbox-Id": sandbox_id, "Novita-Sandbox-Port": "49983"},
        {"E2b-Sandbox-Id": f"{sandbox_id}-client"},
        {},
    ):
        answer = httpx.post(
            f"{envd.url}/process.Process/List", json={}, headers={**headers, "X-Access-Token": envd.token}
        )
        assert answer.status_code == 200, answer.text


def test_an_unknown_sandbox_is_a_502_that_says_so(envd: Envd) -> None:
    """On health and on every call: the SDKs know from these words that it is gone."""
    headers = {**envd.headers, "E2b-Sandbox-Id": UNKNOWN}
    for answer in (
        httpx.get(f"{envd.url}/health", headers=headers),
        httpx.post(f"{envd.url}/process.Process/List", json={}, headers=headers),
        httpx.post(f"{envd.url}/process.Process/Start", content=envelope({}), headers={**headers, **STREAM}),
    ):
        assert check_error(answer, 502) == "The sandbox was not found"
        assert answer.json()["sandboxId"] == UNKNOWN


def test_health_follows_the_sandboxs_state(envd: Envd, sandbox: Sandbox) -> None:
    """204, 502 while paused, 204 again, 502 for ever once killed: at once each time."""

    def health() -> int:
        return httpx.get(f"{envd.url}/health", headers=envd.headers).status_code

    assert health() == 204
    sandbox.pause()
    assert health() == 502
    sandbox.connect()
    assert health() == 204
    sandbox.kill()
    assert health() == 502


def test_browsers_may_call_from_anywhere(envd: Envd) -> None:
    """Preflights are answered without a sandbox; answers carry the header."""
    wanted = {
        "Origin": "https://example.com",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-access-token",
    }
    preflight = httpx.options(f"{envd.url}/process.Process/Start", headers=wanted)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert preflight.headers["access-control-allow-headers"] == "x-access-token"
    assert envd.unary("process.Process/List", {}).headers["access-control-allow-origin"] == "*"
    answer = envd.raw("process.Process/Start", envelope(asked("true")), **STREAM)
    assert answer.headers["access-control-allow-origin"] == "*"


def test_what_is_not_served_yet_says_so(envd: Envd) -> None:
    """Unimplemented, in the shape of each kind of call."""
    for method in ("filesystem.Filesystem/Nothing", "process.Process/Nothing"):
        answer = envd.unary(method, {"path": "/"})
        assert (answer.status_code, answer.json()["code"]) == (501, "unimplemented")
    answer = envd.raw("filesystem.Filesystem/Nothing", envelope({"path": "/"}), **STREAM)
    assert (answer.status_code, ending(answer.content)["code"]) == (200, "unimplemented")
    check_error(httpx.get(f"{envd.url}/files/nothing", headers=envd.headers), 501)
    answer = httpx.get(f"{envd.url}/health", headers={**envd.headers, "E2b-Sandbox-Port": "8080"})
    assert answer.status_code >= 500
    assert answer.json()["message"]
