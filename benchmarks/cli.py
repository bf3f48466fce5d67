"""What a person at a prompt waits for: whole processes of the command line, and what importing the package takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.results import Report, p50, p99
from benchmarks.server import Bench

TITLE = "The command line and `import sandpty`"
TIMES = 15
GOAL_IMPORT_MS = 60.0
GOAL_EXEC_MS = 250.0
SANDPTY = str(Path(sys.executable).with_name("sandpty"))
_IMPORT = "import time; start = time.perf_counter(); {}; print((time.perf_counter() - start) * 1e3)"


def _environment(bench: Bench) -> dict[str, str]:
    """With bytecode, as an installed package has it."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    server = bench.server()
    return {**kept, "SANDPTY_URL": server.url, "SANDPTY_API_KEY": server.key}


def run(bench: Bench) -> Report:
    """Interleaved: every line once in each round; the first round, which may write bytecode, does not count."""
    report = Report("cli", TITLE)
    env = _environment(bench)
    with bench.server().sandbox() as sandbox:
        processes = {
            "sandpty exec ID true": [SANDPTY, "exec", sandbox.id, "true"],
            "sandpty exec -t ID true": [SANDPTY, "exec", "-t", sandbox.id, "true"],
            "sandpty ls": [SANDPTY, "ls"],
            "sandpty --version": [SANDPTY, "--version"],
            "python -c pass": [sys.executable, "-c", "pass"],
        }
        imports = {"import sandpty": "import sandpty", "from sandpty import Sandbox": "from sandpty import Sandbox"}
        taken: dict[str, list[float]] = {name: [] for name in (*processes, *imports)}
        for _ in range(1 + bench.rounds(TIMES)):
            for name, command in processes.items():
                start = time.perf_counter()
                # No timeout: with one Python looks for the end every 50 ms only.
                subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
                taken[name].append((time.perf_counter() - start) * 1e3)
            for name, line in imports.items():
                command = [sys.executable, "-c", _IMPORT.format(line)]
                done = subprocess.run(command, env=env, capture_output=True, check=True, timeout=60)
                taken[name].append(float(done.stdout))
    for name, samples in taken.items():
        report.row(name, p50_ms=p50(samples[1:]), p99_ms=p99(samples[1:]), times=str(len(samples) - 1))
    report.goal("import sandpty, p50", p50(taken["import sandpty"][1:]), GOAL_IMPORT_MS, "ms")
    report.goal("sandpty exec ID true, whole process, p50", p50(taken["sandpty exec ID true"][1:]), GOAL_EXEC_MS, "ms")
    report.notes.append(
        "The imports are timed within their process, the rest from outside, Python's own start included."
    )
    return report
