"""Bad input through the whole stack: each gets the dialect's own error, and nothing is lost, started or left behind."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import pytest_asyncio

from sandpty import config
from tests.e2e.native import Box, sandbox
from tests.server_fixture import RunningServer, sandpty

UNKNOWN = "i" + "0" * 20


@pytest_asyncio.fixture(scope="module")
async def box(server: RunningServer) -> AsyncIterator[Box]:
    """One sandbox for this file."""
    async with sandbox(server) as made:
        yield made


def reason(answer: httpx.Response, status: int) -> str:
    """The reason of an error answer in this dialect's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"reason", "message", "hint"}
    assert error["message"]
    assert "Traceback" not in answer.text
    return str(error["reason"])


ROUTES = [
    ("GET", "/v1/host"),
    ("POST", "/v1/sandboxes"),
    ("GET", "/v1/sandboxes"),
    ("GET", "/v1/sandboxes/{id}"),
    ("DELETE", "/v1/sandboxes/{id}"),
    ("POST", "/v1/sandboxes/{id}/pause"),
    ("POST", "/v1/sandboxes/{id}/resume"),
    ("PUT", "/v1/sandboxes/{id}/deadline"),
    ("POST", "/v1/sandboxes/{id}/processes"),
    ("GET", "/v1/sandboxes/{id}/processes"),
    ("GET", "/v1/sandboxes/{id}/processes/1"),
    ("POST", "/v1/sandboxes/{id}/processes/1/signal"),
    ("POST", "/v1/sandboxes/{id}/processes/1/resize"),
    ("GET", "/v1/sandboxes/{id}/processes/1/wait"),
    ("GET", "/v1/sandboxes/{id}/processes/1/attach"),
    ("GET", "/v1/nonsense"),
]
WITH_BODY = [(method, path) for method, path in ROUTES if method in ("POST", "PUT")]
OF_A_SANDBOX = [(method, path) for method, path in ROUTES if "{id}" in path]
WRONG_KEYS: dict[str, dict[str, str]] = {
    "none": {},
    "empty": {"X-API-Key": ""},
    "wrong": {"X-API-Key": "e2b_" + "0" * 40},
    "wrong bearer": {"Authorization": "Bearer wrong"},
    "another scheme": {"Authorization": "Basic dXNlcjo="},
    "no utf-8": {"Authorization": "Bearer \udcff\udcfe"},
    "huge": {"X-API-Key": "x" * 20_000},
}


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("key", WRONG_KEYS)
async def test_every_route_wants_the_key(server: RunningServer, box: Box, method: str, path: str, key: str) -> None:
    """Without the right key nothing is told and nothing is done: 401 unauthenticated."""
    headers = {name: value.encode("utf-8", "surrogateescape") for name, value in WRONG_KEYS[key].items()}
    async with httpx.AsyncClient(base_url=server.url, headers=headers) as stranger:
        answer = await stranger.request(method, path.format(id=box.id), content=b"{}")
    assert reason(answer, 401) == "unauthenticated"
    assert server.api_key not in answer.text
    assert (await box.api.get(box.path)).json()["state"] == "running"


def test_the_key_is_taken_in_both_headers(server: RunningServer) -> None:
    """X-API-Key and Authorization: Bearer."""
    for headers in ({"X-API-Key": server.api_key}, {"Authorization": f"bearer {server.api_key}"}):
        assert httpx.get(f"{server.url}/v1/sandboxes", headers=headers).status_code == 200


@pytest.mark.parametrize(("method", "path"), OF_A_SANDBOX)
async def test_an_unknown_sandbox_is_named_so(box: Box, method: str, path: str) -> None:
    """404 no_such_sandbox on every route."""
    if path.endswith("/attach"):
        other = Box(box.server, box.api, UNKNOWN)
        assert await other.refused(1) == 404
        return
    assert reason(await box.api.request(method, path.format(id=UNKNOWN)), 404) == "no_such_sandbox"


@pytest.mark.parametrize("id_", ["..", "%2e%2e", "%00", "a" * 5000, "%F0%9F%92%A9", "'; DROP TABLE sandboxes"])
async def test_strange_sandbox_ids_are_only_unknown(box: Box, id_: str) -> None:
    """No id finds its way to a file, a log line of its own or a crash."""
    answer = await box.api.get(f"/v1/sandboxes/{id_}")
    assert answer.status_code in (400, 404, 200 if id_ == ".." else 404)
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("process", ["999999", "pid:999999", "tag:nobody", "tag:", "18446744073709551615"])
async def test_an_unknown_process_is_named_so(box: Box, process: str) -> None:
    """404 no_such_process for every route and every way of naming."""
    path = f"{box.path}/processes/{process}"
    if process == "18446744073709551615":
        assert reason(await box.api.get(path), 400) == "bad_request"
        return
    for answer in (
        await box.api.get(path),
        await box.api.post(f"{path}/signal", json={"signal": "TERM"}),
        await box.api.post(f"{path}/resize", json={"cols": 80, "rows": 24}),
        await box.api.get(f"{path}/wait?timeout_s=1"),
    ):
        assert reason(answer, 404) == "no_such_process"
    assert await box.refused(process) == 404


@pytest.mark.parametrize("process", ["abc", "-1", "1.5", "pid:", "pid:x", "1e3", "%C2%B2", "0x10", " 1"])
async def test_what_names_no_process_is_a_bad_request(box: Box, process: str) -> None:
    """A name that is none is told apart from a process that is not there."""
    assert reason(await box.api.get(f"{box.path}/processes/{process}"), 400) == "bad_request"


BAD_BODIES = {
    "not JSON": b"{",
    "text": b"hello",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "two": b"{}{}",
    "an unknown field": b'{"nonsense": 1}',
    "not UTF-8": b'{"template": "\xff\xfe", "argv": ["\xff"], "signal": "\xff", "cols": "\xff", "timeout_s": "\xff"}',
    "deep": b'{"metadata":' * 5000 + b"1" + b"}" * 5000,
    "deep list": b"[" * 100_000,
    "wrong types": b'{"template": 1, "argv": "sh", "signal": [], "cols": "a", "timeout_s": "x", "memory": 3}',
    "out of range": b'{"timeout_s": 1e999, "deadline_s": 1e999, "cols": 1e999, "signal": 1e999, "memory": 1e999}',
}


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
@pytest.mark.parametrize("body", BAD_BODIES)
async def test_a_body_that_is_none_is_a_bad_request(box: Box, method: str, path: str, body: str) -> None:
    """400 with what is wrong, on every route that takes a body."""
    before = (await box.api.get("/v1/sandboxes")).json()
    answer = await box.api.request(method, path.format(id=box.id), content=BAD_BODIES[body])
    assert reason(answer, 400) in ("bad_request", "bad_timeout")
    assert (await box.api.get("/v1/sandboxes")).json() == before


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
async def test_a_huge_body_is_refused_before_it_is_read(box: Box, method: str, path: str) -> None:
    """413 too_large for 1 MiB and more, declared or chunked."""
    body = b'{"x": "' + b"x" * config.REQUEST_BODY_BYTES + b'"}'
    answer = await box.api.request(method, path.format(id=box.id), content=body)
    assert reason(answer, 413) == "too_large"

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 65536):
            yield body[at : at + 65536]

    answer = await box.api.request(method, path.format(id=box.id), content=chunks())
    assert reason(answer, 413) == "too_large"


async def test_a_template_that_is_not_there_is_named_so(box: Box) -> None:
    """404 no_such_template, also for names that would be paths; one longer than any name is refused."""
    for template in ("nonsense", "", "../../etc", "/", "base/../base", "x" * 1000, "\u0000"):
        answer = await box.api.post("/v1/sandboxes", json={"template": template})
        assert reason(answer, 404) == "no_such_template"
    answer = await box.api.post("/v1/sandboxes", json={"template": "x" * 10_000})
    assert reason(answer, 400) == "bad_request"


@pytest.mark.parametrize(
    "limits",
    [
        {"memory_mb": 0},
        {"memory_mb": -1},
        {"memory_mb": 2**62},
        {"cpu_count": 0},
        {"cpu_count": -1},
        {"cpu_count": 1e308},
        {"disk_mb": 0},
        {"disk_mb": -5},
        {"disk_mb": 2**62},
        {"pids": 0},
        {"pids": -1},
        {"pids": 2**62},
    ],
    ids=str,
)
async def test_limits_that_make_no_sense_are_refused(box: Box, limits: dict[str, Any]) -> None:
    """Zero, negative, beyond any machine: an error of the caller's, and no half-made sandbox."""
    before = (await box.api.get("/v1/sandboxes")).json()
    answer = await box.api.post("/v1/sandboxes", json={"limits": limits})
    assert reason(answer, 400) in ("bad_request", "bad_argument")
    assert (await box.api.get("/v1/sandboxes")).json() == before


async def test_metadata_has_a_limit(box: Box) -> None:
    """413 too_large over 64 KiB."""
    answer = await box.api.post("/v1/sandboxes", json={"metadata": {"k": "v" * 65536}})
    assert reason(answer, 413) == "too_large"


BAD_STARTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no argv": ({"argv": []}, 400, "bad_argument"),
    "no program of that name": ({"argv": ["no-such-program"]}, 400, "start_failed"),
    "an empty program": ({"argv": [""]}, 400, "start_failed"),
    "a directory": ({"argv": ["/tmp"]}, 400, "start_failed"),
    "not executable": ({"argv": ["/etc/passwd"]}, 400, "start_failed"),
    "NUL in an argument": ({"argv": ["echo", "a\u0000b"]}, 400, "bad_argument"),
    "NUL in the environment": ({"env": {"A": "a\u0000b"}}, 400, "bad_argument"),
    "NUL in the directory": ({"cwd": "/tmp\u0000"}, 400, "bad_cwd"),
    "NUL in the user": ({"user": "root\u0000"}, 401, "no_such_user"),
    "no such user": ({"user": "nobody-here"}, 401, "no_such_user"),
    "a user beyond all numbers": ({"user": "99999999999999999999"}, 401, "no_such_user"),
    "no such directory": ({"cwd": "/no/such"}, 400, "bad_cwd"),
    "a file as directory": ({"cwd": "/etc/passwd"}, 400, "bad_cwd"),
    "somebody else's directory": ({"cwd": "/root"}, 400, "bad_cwd"),
    "a window of nothing": ({"pty": {"cols": 0, "rows": 24}}, 400, "bad_window_size"),
    "a negative window": ({"pty": {"cols": 80, "rows": -1}}, 400, "bad_window_size"),
    "a huge window": ({"pty": {"cols": 10_001, "rows": 24}}, 400, "bad_window_size"),
    "a window without rows": ({"pty": {"cols": 80}}, 400, "bad_request"),
    "a negative deadline": ({"deadline_s": -1}, 400, "bad_timeout"),
    "an absurd deadline": ({"deadline_s": 1e12}, 400, "bad_timeout"),
    "a negative log": ({"log_bytes": -1}, 400, "bad_argument"),
    "a huge log": ({"log_bytes": 2**40}, 400, "bad_argument"),
    "very many arguments": ({"argv": ["echo"] + ["x"] * 60_000}, 413, "too_large"),
    "one argument too long for the kernel": ({"argv": ["echo", "x" * 200_000]}, 400, "start_failed"),
    "an environment too long for the kernel": ({"env": {"K": "x" * 200_000}}, 400, "start_failed"),
    "half a character": ({"argv": ["echo", "\ud800"]}, 400, "bad_request"),
}


@pytest.mark.parametrize("wrong", BAD_STARTS)
async def test_a_start_that_cannot_be_says_why(box: Box, wrong: str) -> None:
    """Every way to ask for an impossible process has its own reason, and leaves no process."""
    wanted, status, expected = BAD_STARTS[wrong]
    before = (await box.api.get(f"{box.path}/processes")).json()
    body = json.dumps({"argv": ["true"], **wanted}).encode()
    answer = await box.api.post(f"{box.path}/processes", content=body)
    assert reason(answer, status) == expected
    assert (await box.api.get(f"{box.path}/processes")).json() == before


@pytest.mark.parametrize("signal", ["", "NOPE", "SIG", "SIG_DFL", "CLD_EXITED", 0, -1, 65, 10**30, "9", "SIGSIGTERM"])
async def test_a_signal_that_is_none_is_refused(box: Box, signal: str | int) -> None:
    """400, and the process lives."""
    process = await box.start("sleep", "1000")
    assert reason(await box.signal(process, signal), 400) in ("bad_argument", "bad_request")
    assert (await box.process(process))["running"]
    answer = await box.api.post(f"{box.path}/processes/{process}/signal", json={"target": "everybody"})
    assert reason(answer, 400) == "bad_request"
    await box.signal(process, "KILL")


@pytest.mark.parametrize("size", [(0, 24), (80, 0), (-1, 24), (10_001, 24), (80, 10**30)])
async def test_a_window_size_that_is_none_is_refused(box: Box, size: tuple[int, int]) -> None:
    """400 bad_window_size, and the window stays as it was."""
    process = await box.terminal("sleep", "1000")
    body = {"cols": size[0], "rows": size[1]}
    answer = await box.api.post(f"{box.path}/processes/{process}/resize", json=body)
    assert reason(answer, 400) in ("bad_window_size", "bad_request")
    found = await box.process(process)
    assert (found["cols"], found["rows"]) == (80, 24)
    await box.signal(process, "KILL")


@pytest.mark.parametrize("timeout_s", ["-1", "abc", "1.5", "3601", "9" * 100, "", "+1", "0x1"])
async def test_a_wait_that_makes_no_sense_is_refused(box: Box, timeout_s: str) -> None:
    """400 bad_request."""
    answer = await box.api.get(f"{box.path}/processes/1/wait", params={"timeout_s": timeout_s})
    assert reason(answer, 400) == "bad_request"


@pytest.mark.parametrize(("method", "path"), [("PATCH", "/v1/sandboxes"), ("GET", "/v1/"), ("POST", "/v1/x/y/z")])
async def test_a_route_that_is_none_answers_in_this_dialect(box: Box, method: str, path: str) -> None:
    """Not an HTML page: the usual error body."""
    assert reason(await box.api.request(method, path), 400) == "bad_request"


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
        b"POST /v1/sandboxes HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/sandboxes HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        b"POST /v1/sandboxes HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=lambda raw: raw[:30],
)
async def test_what_is_no_http_is_turned_away(server: RunningServer, box: Box, raw: bytes) -> None:
    """A 4xx or a closed connection, at once; the server goes on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(raw)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(65536), 10)
        assert answer == b"" or (answer.startswith(b"HTTP/1.") and answer.split()[1].startswith(b"4"))
    except ConnectionError:
        pass
    finally:
        writer.close()
    assert (await box.api.get("/healthz")).status_code == 200


async def test_a_websocket_to_somewhere_else_is_refused(server: RunningServer, box: Box) -> None:
    """Only attach is a WebSocket."""
    async with aiohttp.ClientSession(headers=server.headers) as session:
        for path in ("/v1/sandboxes", "/healthz", f"{box.path}/processes"):
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(server.url + path)


# --- two of a kind ----------------------------------------------------------------------------------------------------


def test_a_second_server_on_one_data_directory_is_refused(server: RunningServer) -> None:
    """A readable line that says who has it; the first goes on."""
    done = subprocess.run(
        sandpty("serve", "--data-dir", str(server.data_dir), "--port", "0", *server.args),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_a_port_in_use_is_said_so(server: RunningServer) -> None:
    """A readable line with the port in it, and nothing left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken, tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as data:
        port = taken.getsockname()[1]
        done = subprocess.run(
            sandpty("serve", "--data-dir", data, "--port", str(port), *server.args),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        assert str(port) in done.stderr
        assert "Traceback" not in done.stderr
        pid = Path(data) / "supervisor.pid"
        if pid.exists():  # it may have been started first; `down` ends it
            subprocess.run(sandpty("down", "--data-dir", data), check=True, timeout=60, capture_output=True)
