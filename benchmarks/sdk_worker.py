"""The official E2B SDK, driven line by line: a JSON order on stdin, a JSON answer on stdout.

Runs in an interpreter that has `e2b`, which need not be ours, and imports nothing of this project.

    {"op": "create", "url", "key", "user", "env"}  create, pty.create, until the prompt: ms after each step
    {"op": "open", "url", "key"}                    make and keep a sandbox
    {"op": "run", "times", "user", "env"}           commands.run("true") in it, ms each
    {"op": "opened"}                                its id and access token
    {"op": "small", "times"}                        files.write and files.read of 1 KB in it, ms each pair
    {"op": "small_server", "times"}                 the same two requests on one kept connection, without the SDK
    {"op": "list", "count", "times"}                files.list of that many entries, ms each
    {"op": "upload", "source"}, {"op": "download"}  files.write and files.read of a big file: seconds
    {"op": "put", "source", "url"}, {"op": "get", "url"}    the same with the SDK's HTTP library elsewhere
    {"op": "close"}                                 kill it
    {"op": "code", "url", "key", "times"}           run_code("1 + 1") in a sandbox of its own, ms each after the first
"""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
from e2b import PtySize, Sandbox

TIMEOUT_S = 60.0
SMALL_BYTES = 1000
PROMPT_ENDS = (b"$ ", b"# ")


def _options(order: dict[str, Any]) -> dict[str, Any]:
    return {"api_key": order["key"], "api_url": order["url"], "sandbox_url": order["url"], "timeout": 600}


def _create(order: dict[str, Any]) -> dict[str, float]:
    start = time.perf_counter()
    sandbox = Sandbox.create(**_options(order))
    created = time.perf_counter()
    try:
        terminal = sandbox.pty.create(PtySize(rows=24, cols=80), user=order["user"], envs=order["env"])
        started = time.perf_counter()
        seen = b""
        for _, _, data in terminal:
            seen += data or b""
            if seen.endswith(PROMPT_ENDS):
                break
        else:
            raise RuntimeError(f"the terminal ended without a prompt: {seen!r}")
        prompted = time.perf_counter()
        terminal.disconnect()
    finally:
        sandbox.kill()
    return {
        "created_ms": (created - start) * 1e3,
        "started_ms": (started - start) * 1e3,
        "prompt_ms": (prompted - start) * 1e3,
    }


def _run(sandbox: Any, order: dict[str, Any]) -> list[float]:
    taken = []
    for _ in range(order["times"]):
        start = time.perf_counter()
        sandbox.commands.run("true", user=order["user"], envs=order["env"])
        taken.append((time.perf_counter() - start) * 1e3)
    return taken


def _small(sandbox: Any, order: dict[str, Any]) -> list[float]:
    taken, text = [], "x" * SMALL_BYTES
    for number in range(order["times"]):
        start = time.perf_counter()
        sandbox.files.write(f"small/{number % 10}", text)
        if len(sandbox.files.read(f"small/{number % 10}")) != SMALL_BYTES:
            raise RuntimeError("what was read is not what was written")
        taken.append((time.perf_counter() - start) * 1e3)
    return taken


def _small_server(sandbox: Any, order: dict[str, Any]) -> list[float]:
    """Requests as the SDK sends them, head and body apart, by a client that costs next to nothing itself."""
    url = urlsplit(sandbox.envd_api_url)
    head = f"Host: {url.netloc}\r\nE2b-Sandbox-Id: {sandbox.sandbox_id}\r\nE2b-Sandbox-Port: 49983\r\n"
    head += f"X-Access-Token: {_token(sandbox)}\r\nUser-Agent: bare\r\nAccept-Encoding: gzip, deflate\r\n"
    sized = f"Content-Type: application/octet-stream\r\nContent-Length: {SMALL_BYTES}\r\n"
    taken = []
    with socket.create_connection((url.hostname, url.port), timeout=TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(order["times"]):
            line = f"/files?path=small/{number % 10}&username=user HTTP/1.1\r\n"
            write, read = f"POST {line}{head}{sized}\r\n".encode(), f"GET {line}{head}\r\n".encode()
            content = bytes([number % 256]) * SMALL_BYTES
            start = time.perf_counter()
            connection.sendall(write)
            connection.sendall(content)
            _answer(connection)
            connection.sendall(read)
            if _answer(connection) != content:
                raise RuntimeError("what was read is not what was written")
            taken.append((time.perf_counter() - start) * 1e3)
    return taken


def _answer(connection: socket.socket) -> bytes:
    """The body of the answer that comes, whose length its head says."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(head.decode())
    length = next(int(line.partition(b":")[2]) for line in head.lower().split(b"\r\n") if b"content-length:" in line)
    while len(body) < length:
        body += _some(connection)
    return body


def _some(connection: socket.socket) -> bytes:
    piece = connection.recv(64 * 1024)
    if not piece:
        raise RuntimeError("the server hung up")
    return piece


def _token(sandbox: Any) -> str:
    return str(sandbox._envd_access_token)


def _list(sandbox: Any, order: dict[str, Any]) -> list[float]:
    sandbox.commands.run(f"mkdir -p many; cd many; seq {order['count']} | xargs touch")
    taken = []
    for _ in range(order["times"]):
        start = time.perf_counter()
        if len(sandbox.files.list("many")) != order["count"]:
            raise RuntimeError("the listing is not whole")
        taken.append((time.perf_counter() - start) * 1e3)
    return taken


def _upload(sandbox: Any, order: dict[str, Any]) -> float:
    start = time.perf_counter()
    with open(order["source"], "rb") as source:
        sandbox.files.write("big", source, request_timeout=TIMEOUT_S)
    return time.perf_counter() - start


def _download(sandbox: Any, _: dict[str, Any]) -> float:
    start = time.perf_counter()
    for _piece in sandbox.files.read("big", format="stream"):
        pass
    return time.perf_counter() - start


def _put(_: Any, order: dict[str, Any]) -> float:
    start = time.perf_counter()
    with open(order["source"], "rb") as source:
        httpx.put(order["url"], content=source, timeout=TIMEOUT_S).raise_for_status()
    return time.perf_counter() - start


def _get(_: Any, order: dict[str, Any]) -> float:
    start = time.perf_counter()
    with httpx.stream("GET", order["url"], timeout=TIMEOUT_S) as answer:
        for _piece in answer.iter_bytes():
            pass
    return time.perf_counter() - start


FILES = {
    "small": _small,
    "small_server": _small_server,
    "list": _list,
    "upload": _upload,
    "download": _download,
    "put": _put,
    "get": _get,
}


def _code(order: dict[str, Any]) -> list[float]:
    from e2b_code_interpreter import Sandbox as CodeSandbox

    sandbox = CodeSandbox.create(**_options(order))
    taken = []
    try:
        for _ in range(order["times"] + 1):
            start = time.perf_counter()
            if sandbox.run_code("1 + 1").text != "2":
                raise RuntimeError("the run says something else")
            taken.append((time.perf_counter() - start) * 1e3)
    finally:
        sandbox.kill()
    return taken[1:]


def main() -> None:
    """Serve orders until stdin ends."""
    kept: Any = None
    for line in sys.stdin:
        order = json.loads(line)
        answer: Any = None
        try:
            if order["op"] == "create":
                answer = _create(order)
            elif order["op"] == "open":
                kept = Sandbox.create(**_options(order))
            elif order["op"] == "run":
                answer = _run(kept, order)
            elif order["op"] == "opened":
                answer = {"id": kept.sandbox_id, "token": _token(kept)}
            elif order["op"] in FILES:
                answer = FILES[order["op"]](kept, order)
            elif order["op"] == "code":
                answer = _code(order)
            elif order["op"] == "close":
                kept.kill()
            print(json.dumps({"ok": answer}), flush=True)
        except Exception as error:  # everything is the benchmark's to report
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)


if __name__ == "__main__":
    main()
