"""`commands.run("true")`: how much of it is the SDK, how much the server, how much the login shell it asks for."""

from __future__ import annotations

import os
import subprocess
import time
from base64 import b64encode

from benchmarks.client import Http
from benchmarks.results import Report, p50, p99
from benchmarks.sdk import Worker, worker
from benchmarks.server import Bench, Sandbox
from benchmarks.stub import stub_url

TITLE = 'commands.run("true")'
ROUNDS = 5
TIMES = 20
GOAL_MS = 3.0
LOGIN_TRUE = ["/bin/bash", "-l", "-c", "true"]  # what the SDK makes of commands.run("true")


class _Raw:
    """The same request without an SDK: a Connect call on a kept connection, its answer read to the end."""

    def __init__(self, sandbox: Sandbox, http: Http, argv: list[str]) -> None:
        self._http = http
        self._message = {"process": {"cmd": argv[0], "args": argv[1:], "envs": sandbox.server.env}, "stdin": False}
        self._headers = {
            "Connect-Protocol-Version": "1",
            "Authorization": "Basic " + b64encode(f"{sandbox.server.user}:".encode()).decode(),
            "E2b-Sandbox-Id": sandbox.id,
            "E2b-Sandbox-Port": "49983",
            "X-Access-Token": sandbox.access_token,
            "Keepalive-Ping-Interval": "50",
            "Connect-Timeout-Ms": "60000",
        }

    def __call__(self) -> float:
        start = time.perf_counter()
        body = self._http.stream("/process.Process/Start", self._message, self._headers)
        taken = (time.perf_counter() - start) * 1e3
        if b'"exited"' not in body.replace(b" ", b"") or b'"error"' in body:
            raise RuntimeError(f"Start answered {body[:300]!r}")
        return taken


def _local(bench: Bench) -> float:
    env = {**os.environ, "HOME": str(bench.home)}
    start = time.perf_counter()
    subprocess.run(LOGIN_TRUE, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, env=env)
    return (time.perf_counter() - start) * 1e3


def _measure(bench: Bench, sdk: Worker, idle: Worker, raw: _Raw, binary: _Raw) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {}
    who = {"user": bench.server().user, "env": bench.server().env}
    for way in ("SDK", "SDK, a server that does nothing", "shell", "binary", "local"):
        taken[way] = []
    sdk.ask("run", times=3, **who)
    idle.ask("run", times=3, **who)
    for _ in range(bench.rounds(ROUNDS)):
        taken["SDK"] += sdk.ask("run", times=TIMES, **who)
        taken["SDK, a server that does nothing"] += idle.ask("run", times=TIMES, **who)
        taken["shell"] += [raw() for _ in range(TIMES)]
        taken["binary"] += [binary() for _ in range(TIMES)]
        taken["local"] += [_local(bench) for _ in range(TIMES)]
    return taken


def run(bench: Bench) -> Report:
    """Interleaved batches of 20."""
    report = Report("command", TITLE)
    server = bench.server()
    with worker() as sdk, worker() as idle, stub_url() as stub, server.sandbox() as sandbox, server.http() as http:
        sdk.ask("open", url=server.url, key=server.key)
        idle.ask("open", url=stub, key="stub")
        shell = _Raw(sandbox, http, LOGIN_TRUE)
        taken = _measure(bench, sdk, idle, shell, _Raw(sandbox, http, ["/bin/true"]))
        sdk.ask("close")
    names = {
        "SDK": "through the SDK",
        "SDK, a server that does nothing": "the SDK alone (a server that does nothing)",
        "shell": "the same request without an SDK (bash -l -c true)",
        "binary": "the same with /bin/true instead of a login shell",
        "local": "bash -l -c true on the host, no sandbox, no server",
    }
    for way, samples in taken.items():
        report.row(names[way], p50_ms=p50(samples), p99_ms=p99(samples), times=str(len(samples)))
    report.goal("server side with /bin/true, p50", p50(taken["binary"]), GOAL_MS, "ms")
    report.goal(
        "server side beyond the login shell itself, p50", p50(taken["shell"]) - p50(taken["local"]), GOAL_MS, "ms"
    )
    report.notes.append(
        'The SDK turns "true" into a login shell; the server\'s share is what the request takes beyond that shell.'
    )
    return report
