"""A viewer that never reads, `yes` in its terminal: what another terminal of the same sandbox feels, what it costs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.waiting import until_sync

from benchmarks import host
from benchmarks.programs import RAW_CAT, microseconds
from benchmarks.results import Report, p50, p99
from benchmarks.server import Bench, Sandbox

TITLE = "A viewer that never reads"
ROUNDS = 4
KEYS = 400
GAP_US = 1500
STALL_MS = 200
NEVER_MS = 0xFFFFFFFF
FLOOD = ["/bin/sh", "-c", "stty -echo; echo READY; exec yes"]
GOAL_RISE_MS = 2.0
GOAL_RSS_MIB = 2.0
MIB = 2**20


def _echo(bench: Bench, sandbox: Sandbox, terminal: str) -> list[float]:
    """Milliseconds per key, on a terminal where raw `cat` runs. READY comes again: it attaches from the first byte."""
    return [us / 1e3 for us in microseconds(bench.native(sandbox, terminal, "echo", KEYS, GAP_US, 0))]


def _log_end(sandbox: Sandbox, process: str) -> int:
    return int(sandbox.http.request("GET", process)["log_end"])


@contextmanager
def _stuck_viewer(sandbox: Sandbox, stall_ms: int) -> Iterator[None]:
    """`yes` with a viewer that attached and reads nothing; entered once the flood stands (or runs past the viewer)."""
    process = sandbox.start(FLOOD)
    try:
        with sandbox.attach(process, f"from=offset&value=0&stall_ms={stall_ms}"):
            if stall_ms == NEVER_MS:
                until_sync(lambda: _stands(sandbox, process), what="the flood waits for its only viewer")
            else:
                time.sleep(stall_ms * 3 / 1000)
                before = _log_end(sandbox, process)
                until_sync(lambda: _log_end(sandbox, process) > before + MIB, what="the flood leaves the viewer behind")
            yield
    finally:
        sandbox.http.request("POST", f"{process}/signal", {"signal": "KILL", "target": "tree"})


def _stands(sandbox: Sandbox, process: str) -> bool:
    before = _log_end(sandbox, process)
    time.sleep(0.1)
    return before > 0 and _log_end(sandbox, process) == before


def _local(bench: Bench) -> tuple[list[float], list[float]]:
    """The same load without us: echo on a local PTY, and while another local PTY is read as fast as `yes` writes."""
    reader = bench.programs.pty_reader
    echo = [reader, "echo", str(KEYS), str(GAP_US), "0", *RAW_CAT]
    quiet = [us / 1e3 for us in microseconds(echo)]
    flood = subprocess.Popen([reader, "flood", "60", *FLOOD], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert flood.stdout is not None
    try:
        flood.stdout.readline()
        return quiet, [us / 1e3 for us in microseconds(echo)]
    finally:
        flood.terminate()
        flood.wait(10)
        flood.stdout.close()


def run(bench: Bench) -> Report:
    """Interleaved: quiet, the flood held back by its viewer, the flood running past it, the same load without us."""
    report = Report("stuck_viewer", TITLE)
    server = bench.server()
    taken: dict[str, list[float]] = {}
    names = (
        "quiet",
        "flood held back",
        "flood runs past the viewer",
        "local PTY, quiet",
        "local PTY, a flood beside it",
    )
    for name in names:
        taken[name] = []
    with server.sandbox() as sandbox:
        terminal = sandbox.start(RAW_CAT)
        _echo(bench, sandbox, terminal)
        rss = host.rss(server.pid)
        grown = 0
        for _ in range(bench.rounds(ROUNDS)):
            taken["quiet"] += _echo(bench, sandbox, terminal)
            for name, stall_ms in (("flood held back", NEVER_MS), ("flood runs past the viewer", STALL_MS)):
                with _stuck_viewer(sandbox, stall_ms):
                    taken[name] += _echo(bench, sandbox, terminal)
                    grown = max(grown, host.rss(server.pid) - rss)
            quiet, beside = _local(bench)
            taken["local PTY, quiet"] += quiet
            taken["local PTY, a flood beside it"] += beside
    for name, samples in taken.items():
        report.row(name, p50_ms=p50(samples), p99_ms=p99(samples), max_ms=max(samples), keys=str(len(samples)))
    base = p99(taken["quiet"])
    for name in names[1:3]:
        report.goal(f"p99 rise, {name}", p99(taken[name]) - base, GOAL_RISE_MS, "ms")
    report.goal("server RSS growth", grown / MIB, GOAL_RSS_MIB, "MiB")
    report.notes.append("the two local lines show what the same flood does to a PTY that we have no part in")
    return report
