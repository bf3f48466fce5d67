"""Pause, resume, snapshot and fork of a sandbox that has written 50 MB."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.client import Http
from benchmarks.results import Report, p50, p99
from benchmarks.server import POOL_SIZE, SANDBOX_S, Bench

TITLE = "Pause, snapshot, fork"
ROUNDS = 12
WRITTEN_MB = 50
GOALS_MS = {"pause": 20, "resume": 20, f"fork of {WRITTEN_MB} MB": 300}


def _finished(http: Http, sandbox: str, script: str) -> None:
    """Run a script in the sandbox to its end."""
    body = {"argv": ["sh", "-c", script], "stdin": False}
    process = http.request("POST", f"{sandbox}/processes", body)["process"]
    exit_ = http.request("GET", f"{sandbox}/processes/{process}/wait")
    if exit_["code"] != 0:
        raise RuntimeError(f"{script!r} gives {exit_}")


def _ways(http: Http, sandbox: str) -> dict[str, Callable[[], Any]]:
    """What is measured, in the order in which it is done."""
    made: list[str] = []

    def create() -> None:
        made.append(http.request("POST", "/v1/sandboxes", {"template": "bench", "timeout_s": SANDBOX_S})["id"])

    def fork() -> None:
        answer = http.request("POST", f"{sandbox}/fork", {"timeout_s": SANDBOX_S})
        made.extend(each["id"] for each in answer["forks"])

    def kill() -> None:
        while made:
            http.request("DELETE", f"/v1/sandboxes/{made.pop()}")

    return {
        "pause": lambda: http.request("POST", f"{sandbox}/pause", {"memory": True}),
        "resume": lambda: http.request("POST", f"{sandbox}/resume", {"timeout_s": SANDBOX_S}),
        "pause to disk": lambda: http.request("POST", f"{sandbox}/pause", {"memory": False}),
        "resume from disk": lambda: http.request("POST", f"{sandbox}/resume", {"timeout_s": SANDBOX_S}),
        f"snapshot of {WRITTEN_MB} MB": lambda: http.request("POST", f"{sandbox}/snapshots", {"name": "bench"}),
        "create from the snapshot": create,
        f"fork of {WRITTEN_MB} MB": fork,
        "kill": kill,
    }


def run(bench: Bench) -> Report:
    """One sandbox, the whole circle again and again."""
    report = Report("pausing", TITLE)
    server = bench.server(POOL_SIZE)
    http = server.http()
    bench.stack.callback(http.close)
    sandbox = f"/v1/sandboxes/{http.request('POST', '/v1/sandboxes', {'timeout_s': SANDBOX_S})['id']}"
    _finished(http, sandbox, f"head -c {WRITTEN_MB * 1_000_000} /dev/urandom > ~/written")
    ways = _ways(http, sandbox)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(bench.rounds(ROUNDS) + 1):
        server.wait_pool()
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:  # the first is slower everywhere
                taken[name].append((time.perf_counter() - start) * 1e3)
    del taken["kill"]
    http.request("DELETE", "/v1/snapshots/bench")
    http.request("DELETE", sandbox)
    for name, samples in taken.items():
        report.row(name, p50_ms=p50(samples), p99_ms=p99(samples), times=str(len(samples)))
        if name in GOALS_MS:
            report.goal(f"{name}: p50", p50(samples), GOALS_MS[name], "ms")
    report.notes.append("each is one request of the native dialect, from the call to its answer")
    report.notes.append("snapshots and forks copy what the sandbox has written; they hold no memory")
    return report
