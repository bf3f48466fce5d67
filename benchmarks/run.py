"""`python -m benchmarks.run`: every benchmark or those named, a table each with its goals, and JSON for the report."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import (
    builds,
    cli,
    command,
    create,
    density,
    echo,
    files,
    host,
    images,
    interrupt,
    pausing,
    ports,
    run_code,
    sdk_terminal,
    ssh,
    stuck_viewer,
    throughput,
)
from benchmarks.programs import compile_all
from benchmarks.report import table
from benchmarks.results import Report
from benchmarks.server import Bench

BENCHMARKS: dict[str, tuple[str, Callable[[Bench], Report]]] = {
    "create": (create.TITLE, create.run),
    "command": (command.TITLE, command.run),
    "echo": (echo.TITLE, echo.run),
    "throughput": (throughput.TITLE, throughput.run),
    "cli": (cli.TITLE, cli.run),
    "sdk_terminal": (sdk_terminal.TITLE, sdk_terminal.run),
    "files": (files.TITLE, files.run),
    "density": (density.TITLE, density.run),
    "stuck_viewer": (stuck_viewer.TITLE, stuck_viewer.run),
    "interrupt": (interrupt.TITLE, interrupt.run),
    "pausing": (pausing.TITLE, pausing.run),
    "images": (images.TITLE, images.run),
    "builds": (builds.TITLE, builds.run),
    "ports": (ports.TITLE, ports.run),
    "run_code": (run_code.TITLE, run_code.run),
    "ssh": (ssh.TITLE, ssh.run),
}
BENCHMARK_TIMEOUT_S = 120


class TookTooLongError(Exception):
    """A benchmark did not end by itself."""


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def over(*_: object) -> None:
        raise TookTooLongError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--quick", action="store_true", help="a quarter of the rounds: shows that all works, not how fast"
    )
    parser.add_argument("--isolation", default="", help="the tier to measure (default: the server's)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the results")
    return parser.parse_args(argv)


def one(name: str, bench: Bench) -> Report:
    """Run one benchmark; what ends it early becomes its report."""
    title, run = BENCHMARKS[name]
    start = time.perf_counter()
    try:
        with _within(BENCHMARK_TIMEOUT_S):
            report = run(bench)
    except Exception as error:
        traceback.print_exc()
        report = Report(name, title, error=f"{type(error).__name__}: {error}")
    report.took_s = time.perf_counter() - start
    return report


def main() -> None:
    """Exit status 1 when a benchmark failed to run, 3 when a goal was missed."""
    options = arguments()
    results: dict[str, Any] = {
        "command": " ".join(["scripts/bench", *sys.argv[1:]]),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "machine": host.machine(),
        "benchmarks": [],
    }
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spb-", dir="/tmp")))
        bench = Bench(compile_all(directory), directory, stack, options.isolation, options.quick)
        results["tier"] = bench.server().tier
        for name in options.only or BENCHMARKS:
            report = one(name, bench).as_json()
            results["benchmarks"].append(report)
            print(table(report), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n")
    goals = [goal for report in results["benchmarks"] for goal in report["goals"]]
    failed = [report["name"] for report in results["benchmarks"] if report["error"]]
    met = sum(goal["met"] for goal in goals)
    print(f"{met} of {len(goals)} goals met" + (f"; failed to run: {', '.join(failed)}" if failed else ""))
    sys.stdout.flush()
    sys.exit(1 if failed else 0 if met == len(goals) else 3)


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    main()
