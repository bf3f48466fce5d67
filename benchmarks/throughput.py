"""`cat` of 64 MB in a terminal: how near the server comes to a C program that holds such a PTY itself."""

from __future__ import annotations

from typing import Any

from benchmarks import host
from benchmarks.programs import cat_when_told, figures, output_of, sshd
from benchmarks.results import Report, p50
from benchmarks.server import Bench, Sandbox

TITLE = "cat of 64 MB in a terminal"
ROUNDS = 5
FILE_BYTES = 64_000_000
GOAL_OF_READER = 0.9
GOAL_CPU_OF_READER = 1.5
MB = 1e6
GB = 1e9


def _make_file(path: str) -> str:
    """A shell line that fills a file with text."""
    return f"head -c {FILE_BYTES} /dev/urandom | base64 | head -c {FILE_BYTES} > {path}"


def _native(bench: Bench, sandbox: Sandbox, path: str) -> dict[str, Any]:
    process = sandbox.start(cat_when_told(path))
    server, agent = bench.server().pid, bench.server().agent_pid(sandbox.id)
    before = host.cpu_s(server), host.cpu_s(agent)
    found = figures(bench.native(sandbox, process, "drain"))
    found["server_cpu_s"] = host.cpu_s(server) - before[0]
    found["agent_cpu_s"] = host.cpu_s(agent) - before[1]
    if found["gap_bytes"]:
        raise RuntimeError(f"a client that reads lost {found['gap_bytes']} bytes")
    return found


def _mb_per_s(found: dict[str, Any]) -> float:
    return float(found["bytes"] / found["seconds"] / MB)


def _row(report: Report, name: str, rounds: list[dict[str, Any]], **more: float) -> None:
    def per_gb(key: str) -> float:
        return p50([found[key] / found["bytes"] * GB for found in rounds])

    sizes = p50([found["bytes"] / found["messages"] for found in rounds])
    report.row(
        name,
        mb_per_s=p50([_mb_per_s(found) for found in rounds]),
        client_cpu_s_per_gb=per_gb("cpu_s"),
        mean_read_bytes=sizes,
        **{key.replace("_cpu_s", "_cpu_s_per_gb"): per_gb(key) for key in rounds[0] if key.endswith("_cpu_s")},
        **more,
    )


def run(bench: Bench) -> Report:
    """Interleaved: the C reader, ours, ssh."""
    report = Report("throughput", TITLE)
    here = str(bench.directory / "64mb")
    output_of(["/bin/sh", "-c", _make_file(here)])
    taken: dict[str, list[dict[str, Any]]] = {"C reader of the PTY": [], "native client": [], "ssh to sshd": []}
    with bench.server().sandbox() as sandbox, sshd(bench.directory, bench.home) as ssh:
        there = f"/tmp/sandpty-bench-{sandbox.id}"
        sandbox.run(_make_file(there))
        reader = [bench.programs.pty_reader, "throughput"]
        try:
            for _ in range(bench.rounds(ROUNDS)):
                taken["C reader of the PTY"].append(figures([*reader, *cat_when_told(here)]))
                taken["native client"].append(_native(bench, sandbox, there))
                taken["ssh to sshd"].append(figures([*reader, *ssh.command(cat_when_told(here))]))
        finally:
            sandbox.run(f"rm -f {there}")
    for name, rounds in taken.items():
        _row(report, name, rounds)
    direct, ours = taken["C reader of the PTY"], taken["native client"]
    ratio = p50([_mb_per_s(one) / _mb_per_s(other) for one, other in zip(ours, direct, strict=True)])
    report.goal("native MB/s of the C reader's, median of the rounds", ratio, GOAL_OF_READER, "x", at_least=True)
    cpu = p50([one["server_cpu_s"] / one["bytes"] for one in ours]) / p50(
        [one["cpu_s"] / one["bytes"] for one in direct]
    )
    report.goal("server CPU per GB of the C reader's", cpu, GOAL_CPU_OF_READER, "x")
    report.notes.append("client CPU: of the C reader it is the yardstick; ssh's is its client's alone")
    return report
