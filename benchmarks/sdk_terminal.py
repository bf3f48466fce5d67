"""Our Python SDK's terminal beside E2B's own Python SDK: the same lines of code, the same server, in turns."""

from __future__ import annotations

import sys
from contextlib import ExitStack

from benchmarks.results import Report, p50, p99
from benchmarks.sdk import HERE, Worker, interpreter, worker
from benchmarks.server import Bench

TITLE = "Our SDK's terminal and E2B's SDK's"
ROUNDS = 3
KEYS = 250
GOAL_ECHO = 1.0
GOAL_THROUGHPUT = 3.0
MB = 1e6
FILE_BYTES = 32_000_000  # as in terminal_worker.py, which imports nothing of ours
FLAVOURS = ("sync", "async")
SDKS = ("ours", "E2B's")


def run(bench: Bench) -> Report:
    """Interleaved: each SDK in each flavour, keys and then a flood, round by round."""
    report = Report("sdk_terminal", TITLE)
    server = bench.server()
    echo: dict[tuple[str, str], list[float]] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    cpu: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(worker([program, str(HERE / "terminal_worker.py"), package]))
            for name, program, package in zip(SDKS, (sys.executable, interpreter()), ("sandpty", "e2b"), strict=True)
        }
        for each in workers.values():
            each.ask("open", url=server.url, key=server.key)
        for _ in range(bench.rounds(ROUNDS)):
            for flavour in FLAVOURS:
                for name, each in workers.items():
                    echo.setdefault((name, flavour), []).extend(each.ask("echo", flavour=flavour, keys=KEYS))
                for name, each in workers.items():
                    drained = _drain(each, flavour)
                    rates.setdefault((name, flavour), []).append(drained[0])
                    cpu.setdefault((name, flavour), []).append(drained[1])
        for each in workers.values():
            each.ask("close")
    for flavour in FLAVOURS:
        for name in SDKS:
            at = (name, flavour)
            report.row(
                f"{name}, {flavour}",
                echo_p50_ms=p50(echo[at]),
                echo_p99_ms=p99(echo[at]),
                mb_per_s=p50(rates[at]),
                client_cpu_s_per_gb=p50(cpu[at]),
            )
        ours, theirs = ((name, flavour) for name in SDKS)
        report.goal(f"{flavour}: echo p50 of E2B's", p50(echo[ours]) / p50(echo[theirs]), GOAL_ECHO, "x")
        times = p50([mine / other for mine, other in zip(rates[ours], rates[theirs], strict=True)])
        report.goal(f"{flavour}: throughput of E2B's", times, GOAL_THROUGHPUT, "x", at_least=True)
    report.notes.append(
        "A key is typed into a raw `cat` until it is seen, 1.5 ms between keys; 32 MB of text are drained."
    )
    return report


def _drain(each: Worker, flavour: str) -> tuple[float, float]:
    """MB per second, and CPU seconds of the client per GB."""
    found = each.ask("drain", flavour=flavour)
    if found["bytes"] < FILE_BYTES:
        raise RuntimeError(f"{found['bytes']} bytes of {FILE_BYTES} arrived")
    return found["bytes"] / found["seconds"] / MB, found["cpu_s"] / found["bytes"] * 1000 * MB
