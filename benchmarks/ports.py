"""A request to a service in a sandbox: through the port proxy, and directly, from a socket in the sandbox's network."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.waiting import until_sync

from benchmarks.results import Report, p50, p99
from benchmarks.server import Bench, Sandbox
from sandpty.isolation import syscalls

TITLE = "A service in a sandbox, through the port proxy"
ROUNDS = 10
TIMES = 50
GOAL_MS = 0.5
PORT = 8000
BIG_BYTES = 256 * 1024 * 1024
TIMEOUT_S = 60.0
RECEIVE_BYTES = 1 << 20
# Answers at once and hangs up, so that what is measured is the way there and back.
SERVICE = f"""
import socket
listener = socket.create_server(("127.0.0.1", {PORT}), backlog=128)
small = b"HTTP/1.1 200 OK\\r\\nContent-Length: 100\\r\\n\\r\\n" + b"x" * 100
block = b"x" * (1 << 20)
while True:
    peer, _ = listener.accept()
    request = peer.recv(65536)
    if request.startswith(b"GET /big"):
        peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: {BIG_BYTES}\\r\\n\\r\\n")
        for _ in range({BIG_BYTES} >> 20):
            peer.sendall(block)
    else:
        peer.sendall(small)
    peer.close()
"""


class _Way:
    """One way to the service; `kept`: on one connection for all requests."""

    def __init__(self, connect: Callable[[], socket.socket], host: str, *, kept: bool) -> None:
        self._connect = connect
        self._request = f"GET {{}} HTTP/1.1\r\nHost: {host}\r\n\r\n"
        self._kept = connect() if kept else None

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()

    def small(self) -> float:
        """Milliseconds from the request (and its connection) to the last byte of the answer."""
        start = time.perf_counter()
        self._get("/small", 100)
        return (time.perf_counter() - start) * 1e3

    def big(self) -> float:
        """Bytes per second of a big answer."""
        start = time.perf_counter()
        self._get("/big", BIG_BYTES)
        return BIG_BYTES / (time.perf_counter() - start)

    def _get(self, path: str, length: int) -> None:
        connection = self._kept or self._connect()
        try:
            connection.sendall(self._request.format(path).encode())
            data = b""
            while (end := data.find(b"\r\n\r\n")) < 0:
                data += _more(connection)
            if not data.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"the answer is {data[:300]!r}")
            got = len(data) - end - 4
            while got < length:
                got += len(_more(connection))
        finally:
            if connection is not self._kept:
                connection.close()


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(RECEIVE_BYTES)
    if not data:
        raise ConnectionError("the connection ended early")
    return data


@contextmanager
def _service(sandbox: Sandbox, bench: Bench) -> Iterator[Callable[[], socket.socket]]:
    """Starts it; gives what connects to it directly."""
    server = bench.server()
    body = {"argv": ["python3", "-c", SERVICE], "user": server.user, "env": server.env}
    sandbox.http.request("POST", f"{sandbox.path}/processes", body)
    network = os.open(f"/proc/{server.agent_pid(sandbox.id)}/ns/net", os.O_RDONLY)

    def direct() -> socket.socket:
        with syscalls.inside_network(network):
            return socket.create_connection(("127.0.0.1", PORT), timeout=TIMEOUT_S)

    def listens() -> bool:
        try:
            direct().close()
        except ConnectionRefusedError:
            return False
        return True

    try:
        until_sync(listens, TIMEOUT_S, "the service listens")
        yield direct
    finally:
        os.close(network)


def run(bench: Bench) -> Report:
    """Interleaved batches of 50 small requests, and some big ones."""
    report = Report("ports", TITLE)
    server = bench.server()
    if server.tier == "process":
        report.notes.append("Not measured: the tier `process` has no network of its own.")
        return report

    def to_server() -> socket.socket:
        connection = socket.create_connection((server.host, server.port), timeout=TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    with server.sandbox() as sandbox, _service(sandbox, bench) as direct:
        host = f"{PORT}-{sandbox.id}.localhost"
        ways = {
            "direct, a connection each": _Way(direct, "localhost", kept=False),
            "proxied, on one kept connection": _Way(to_server, host, kept=True),
            "proxied, a connection each": _Way(to_server, host, kept=False),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        speed: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(bench.rounds(ROUNDS)):
            for name, way in ways.items():
                way.small()
                taken[name] += [way.small() for _ in range(TIMES)]
        for _ in range(bench.rounds(4)):
            for name, way in ways.items():
                speed[name].append(way.big())
        for way in ways.values():
            way.close()
    for name, samples in taken.items():
        report.row(name, p50_ms=p50(samples), p99_ms=p99(samples), MB_per_s=p50(speed[name]) / 1e6)
    first, kept, _ = taken.values()
    report.goal("what the proxy adds to a small request, p50", p50(kept) - p50(first), GOAL_MS, "ms")
    report.notes.append("The service hangs up after each answer; the proxy opens a connection to it for each request.")
    return report
