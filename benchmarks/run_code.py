"""Code in a sandbox of the code interpreter: the first run, cold and in a warm sandbox, and those after it."""

from __future__ import annotations

import http.client
import json
import time
from urllib.parse import urlsplit

from tests.waiting import until_sync

from benchmarks.results import Report, p50, p99
from benchmarks.sdk import worker
from benchmarks.server import POOL_READY_S, POOL_SIZE, SANDBOX_S, Bench, Server

TITLE = "run_code"
ROUNDS = 8
NEXT_RUNS = 25  # in each sandbox
TEMPLATE = "code-interpreter-v1"
WARM_UP_S = 1.5  # a warm sandbox's kernel takes a moment after its create
GOALS_MS = {"first run, cold": 1000, "first run, warm": 11, "next run": 4}


class Client:
    """One kept connection to the server, for E2B's control plane and a sandbox's port 49999."""

    def __init__(self, server: Server) -> None:
        place = urlsplit(server.url)
        self._key = server.key
        self._connection = http.client.HTTPConnection(place.hostname or "", place.port or 0, timeout=60)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def ask(self, method: str, path: str, body: object, headers: dict[str, str]) -> bytes:
        """The whole answer. Raises RuntimeError when it is an error."""
        self._connection.request(method, path, json.dumps(body), {"Content-Type": "application/json", **headers})
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:200]!r}")
        return data

    def create(self) -> dict[str, str]:
        """A sandbox; returns the headers of requests to its interpreter."""
        body = {"templateID": TEMPLATE, "timeout": SANDBOX_S, "secure": True}
        made = json.loads(self.ask("POST", "/sandboxes", body, {"X-API-Key": self._key}))
        return {
            "E2b-Sandbox-Id": made["sandboxID"],
            "E2b-Sandbox-Port": "49999",
            "X-Access-Token": made["envdAccessToken"],
        }

    def kill(self, headers: dict[str, str]) -> None:
        """The sandbox of these headers."""
        self.ask("DELETE", f"/sandboxes/{headers['E2b-Sandbox-Id']}", {}, {"X-API-Key": self._key})

    def run(self, headers: dict[str, str]) -> float:
        """One run of a line of Python, to the end of its answer; ms."""
        start = time.perf_counter()
        answer = self.ask("POST", "/execute", {"code": "1 + 1"}, headers)
        taken = (time.perf_counter() - start) * 1e3
        if b'"text": "2"' not in answer:
            raise RuntimeError(f"the run says {answer[:300]!r}")
        return taken


def _warm(server: Server) -> None:
    """Wait until a sandbox of the template waits with its kernel running."""
    until_sync(
        lambda: any(meta["phase"] == "warm" and meta["template"] == TEMPLATE for meta in server.kept()),
        POOL_READY_S,
        "a warm sandbox of the interpreter",
    )
    time.sleep(WARM_UP_S)


def run(bench: Bench) -> Report:
    """Interleaved: each round has one cold and one warm sandbox."""
    report = Report("run_code", TITLE)
    taken: dict[str, list[float]] = {"first run, cold": [], "first run, warm": [], "next run": []}
    clients = {"cold": Client(bench.server(0)), "warm": Client(bench.server(POOL_SIZE))}
    for client in clients.values():
        bench.stack.callback(client.close)
        headers = client.create()  # the first is slower everywhere, and tells the pool what is wanted
        client.run(headers)
        client.kill(headers)
    for _ in range(bench.rounds(ROUNDS)):
        _warm(bench.server(POOL_SIZE))
        for way, client in clients.items():
            headers = client.create()
            taken[f"first run, {way}"].append(client.run(headers))
            taken["next run"] += [client.run(headers) for _ in range(NEXT_RUNS)]
            client.kill(headers)
    with worker() as sdk:
        _warm(bench.server(POOL_SIZE))
        server = bench.server(POOL_SIZE)
        taken["SDK, next run"] = list(sdk.ask("code", url=server.url, key=server.key, times=bench.rounds(NEXT_RUNS)))
    for name, samples in taken.items():
        report.row(name, p50_ms=p50(samples), p99_ms=p99(samples), times=str(len(samples)))
        if name in GOALS_MS:
            report.goal(f"{name}: p50", p50(samples), GOALS_MS[name], "ms")
    report.notes.append("each is one request to the sandbox's port 49999 through the server, to the end of its answer")
    report.notes.append("the SDK opens a connection for every run and has 2-3 ms of its own")
    bench.stop_server(0)
    return report
