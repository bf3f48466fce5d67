"""200 sandboxes, an idle shell in each: how long it takes and what they hold."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from benchmarks import host
from benchmarks.client import PROMPT_ENDS, Http, WebSocket
from benchmarks.results import Report, p50
from benchmarks.server import LOGIN_SHELL, SANDBOX_S, Bench, Server

TITLE = "200 sandboxes with an idle shell"
COUNT = 200
QUICK_COUNT = 40
CLIENTS = 4  # side by side
GOAL_S = 8.0
GOAL_SANDBOX_MIB = 2.0
GOAL_AGENT_KIB = 200.0
MIB = 2**20


def _one(server: Server, connections: SimpleQueue[Http]) -> str:
    """Create a sandbox and see its shell's prompt; the connection is given back."""
    http = connections.get()
    try:
        sandbox_id: str = http.request("POST", "/v1/sandboxes", {"timeout_s": SANDBOX_S})["id"]
        processes = f"/v1/sandboxes/{sandbox_id}/processes"
        process = http.request("POST", processes, server.terminal(LOGIN_SHELL))["process"]
        with WebSocket(server.url, f"{processes}/{process}/attach?from=offset&value=0", server.key) as terminal:
            terminal.until(*PROMPT_ENDS)
        return sandbox_id
    finally:
        connections.put(http)


def _delete(connections: SimpleQueue[Http], sandbox_id: str) -> None:
    http = connections.get()
    try:
        http.request("DELETE", f"/v1/sandboxes/{sandbox_id}")
    finally:
        connections.put(http)


def _report(server: Server, ids: list[str], took_s: float, available: int) -> Report:
    report = Report("density", TITLE)
    mine = set(ids)
    agents = [host.rss(meta["pid"]) for meta in server.kept() if meta["id"] in mine]
    each = available / len(ids) / MIB
    seconds = took_s * COUNT / len(ids)
    report.row("create to prompt, all", seconds=took_s, ms_per_sandbox=took_s / len(ids) * 1e3, sandboxes=str(len(ids)))
    report.row("memory (MemAvailable)", mib_per_sandbox=each)
    report.row("agent RSS", p50_kib=p50(agents) / 1024, max_kib=max(agents) / 1024)
    report.goal(f"seconds for {COUNT}", seconds, GOAL_S, "s")
    report.goal("memory per sandbox", each, GOAL_SANDBOX_MIB, "MiB")
    report.goal("agent RSS, the largest", max(agents) / 1024, GOAL_AGENT_KIB, "KiB")
    report.notes.append(f"{CLIENTS} clients side by side; every shell's prompt was seen")
    return report


def run(bench: Bench) -> Report:
    """Native creates, side by side."""
    server = bench.server()
    server.wait_pool()
    count = QUICK_COUNT if bench.quick else COUNT
    connections: SimpleQueue[Http] = SimpleQueue()
    for _ in range(CLIENTS):
        connections.put(server.http())
    ids: list[str] = []
    with ThreadPoolExecutor(CLIENTS) as clients:
        try:
            before, start = host.mem_available(), time.perf_counter()
            for made in [clients.submit(_one, server, connections) for _ in range(count)]:
                ids.append(made.result())
            took_s = time.perf_counter() - start
            server.wait_pool()
            report = _report(server, ids, took_s, before - host.mem_available())
        finally:
            start = time.perf_counter()
            list(clients.map(lambda id_: _delete(connections, id_), ids))
            deleted_s = time.perf_counter() - start
    report.row("delete, all", seconds=deleted_s, ms_per_sandbox=deleted_s / len(ids) * 1e3)
    while not connections.empty():
        connections.get().close()
    return report
