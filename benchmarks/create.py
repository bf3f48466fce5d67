"""From nothing to the first prompt: through the official Python SDK and natively, with a warm pool and without."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.client import PROMPT_ENDS, Http, WebSocket
from benchmarks.programs import output_of
from benchmarks.results import Report, p50, p99
from benchmarks.sdk import Worker, worker
from benchmarks.server import BARE_SHELL, LOGIN_SHELL, POOL_SIZE, SANDBOX_S, Bench, Server
from benchmarks.stub import stub_url

TITLE = "Create to first prompt"
ROUNDS = 20
GOALS_MS = {"SDK, warm": 15, "SDK, cold": 60, "native, warm": 5, "native, cold": 25}


def _native(server: Server, http: Http, shell: list[str], env: dict[str, str]) -> dict[str, float]:
    """One create natively, by one WebSocket: a sandbox, a shell in it and the view of it. Milliseconds of each step."""
    terminal = server.terminal(shell)
    terminal["env"] = {**terminal["env"], **env}
    begin = time.perf_counter()
    with WebSocket(server.url, "/v1/start", server.key) as view:
        view.say({"sandbox": {"timeout_s": SANDBOX_S}, "process": terminal})
        sandbox = view.heard()["id"]
        created = time.perf_counter()
        view.until(*PROMPT_ENDS)
        prompted = time.perf_counter()
    http.request("DELETE", f"/v1/sandboxes/{sandbox}")
    return {"created_ms": (created - begin) * 1e3, "prompt_ms": (prompted - begin) * 1e3}


def _in_two(server: Server, http: Http, shell: list[str]) -> dict[str, float]:
    """The same with the sandbox made by a request on a kept connection, the shell by the WebSocket that shows it."""
    begin = time.perf_counter()
    sandbox = f"/v1/sandboxes/{http.request('POST', '/v1/sandboxes', {'timeout_s': SANDBOX_S})['id']}"
    created = time.perf_counter()
    with WebSocket(server.url, f"{sandbox}/start", server.key) as view:
        view.say(server.terminal(shell))
        view.until(*PROMPT_ENDS)
        prompted = time.perf_counter()
    http.request("DELETE", sandbox)
    return {"created_ms": (created - begin) * 1e3, "prompt_ms": (prompted - begin) * 1e3}


def _in_three(server: Server, http: Http, shell: list[str]) -> dict[str, float]:
    """The same with two requests on a kept connection, and a WebSocket that attaches."""
    begin = time.perf_counter()
    sandbox = f"/v1/sandboxes/{http.request('POST', '/v1/sandboxes', {'timeout_s': SANDBOX_S})['id']}"
    created = time.perf_counter()
    process = http.request("POST", f"{sandbox}/processes", server.terminal(shell))["process"]
    started = time.perf_counter()
    with WebSocket(server.url, f"{sandbox}/processes/{process}/attach?from=offset&value=0", server.key) as view:
        view.until(*PROMPT_ENDS)
        prompted = time.perf_counter()
    http.request("DELETE", sandbox)
    return {
        "created_ms": (created - begin) * 1e3,
        "started_ms": (started - begin) * 1e3,
        "prompt_ms": (prompted - begin) * 1e3,
    }


def _local(bench: Bench, shell: list[str]) -> dict[str, float]:
    """The same shell in a PTY of this host: what no server can beat."""
    command = ["/usr/bin/env", f"HOME={bench.home}", bench.programs.pty_reader, "prompt", *shell]
    return {"prompt_ms": float(output_of(command))}


def _ways(bench: Bench, sdk: Worker, stub: str) -> dict[str, Callable[[], dict[str, float]]]:
    warm, cold = bench.server(POOL_SIZE), bench.server(0)
    warm_http, cold_http = warm.http(), cold.http()
    bench.stack.callback(warm_http.close)
    bench.stack.callback(cold_http.close)

    def through_sdk(server: Server) -> dict[str, float]:
        return dict(sdk.ask("create", url=server.url, key=server.key, user=server.user, env=server.env))

    def natively(server: Server, http: Http, shell: list[str], env: dict[str, str] | None = None) -> dict[str, float]:
        return _native(server, http, shell, env or {})

    return {
        "SDK, warm": lambda: through_sdk(warm),
        "SDK, cold": lambda: through_sdk(cold),
        "native, warm": lambda: natively(warm, warm_http, LOGIN_SHELL),
        "native, cold": lambda: natively(cold, cold_http, LOGIN_SHELL),
        "native, warm, in two requests": lambda: _in_two(warm, warm_http, LOGIN_SHELL),
        "native, cold, in two requests": lambda: _in_two(cold, cold_http, LOGIN_SHELL),
        "native, warm, in three requests": lambda: _in_three(warm, warm_http, LOGIN_SHELL),
        "native, warm, another environment": lambda: natively(warm, warm_http, LOGIN_SHELL, {"MINE": "1"}),
        "native, warm, bash without profiles": lambda: natively(warm, warm_http, BARE_SHELL),
        "local PTY, the shell alone": lambda: _local(bench, LOGIN_SHELL),
        "local PTY, bash without profiles": lambda: _local(bench, BARE_SHELL),
        "SDK, a server that does nothing": lambda: dict(sdk.ask("create", url=stub, key="stub", user="user", env={})),
    }


def run(bench: Bench) -> Report:
    """Interleaved: each round creates once in every way, once the pool is full again.

    A cold create would otherwise be measured beside the boot of the next warm sandbox.
    """
    report = Report("create", TITLE)
    with worker() as sdk, stub_url() as stub:
        ways = _ways(bench, sdk, stub)
        taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for way in ways.values():
            way()  # the first is slower everywhere: imports, connections, the template's page cache
        for _ in range(bench.rounds(ROUNDS)):
            for name, way in ways.items():
                bench.server(POOL_SIZE).wait_pool()
                taken[name].append(way())
    for name, samples in taken.items():
        prompt = [sample["prompt_ms"] for sample in samples]
        steps = [step for step in ("created", "started") if f"{step}_ms" in samples[0]]
        report.row(
            name,
            **{f"{step}_p50_ms": p50([sample[f"{step}_ms"] for sample in samples]) for step in steps},
            prompt_p50_ms=p50(prompt),
            prompt_p99_ms=p99(prompt),
            times=str(len(prompt)),
        )
        if name in GOALS_MS:
            report.goal(f"{name}: prompt p50", p50(prompt), GOALS_MS[name], "ms")
    report.notes.append("created, started, prompt: milliseconds from the first call to each step's answer")
    report.notes.append("a first shell of the usual environment was started in advance (docs/topics/warm.md)")
    report.notes.append("the shell is `bash -i -l`, as E2B's SDK starts it, with the profiles of the sandbox's user")
    bench.stop_server(0)
    return report
