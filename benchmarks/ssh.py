"""`ssh` through our gateway against `ssh` to OpenSSH's sshd: a key typed and seen, and 64 MB in a terminal."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.ssh_client import client_of
from tests.server_fixture import running_server

from benchmarks import host
from benchmarks.programs import (
    BASH,
    PROGRAM_TIMEOUT_S,
    RAW_CAT,
    SHELL_LINE_KEYS,
    cat_when_told,
    figures,
    microseconds,
    output_of,
    sshd,
)
from benchmarks.results import Report, p50, p99
from benchmarks.server import Bench, Server

TITLE = "ssh through the gateway"
ROUNDS = 4
THROUGHPUT_ROUNDS = 3
KEYS = 300
GAP_US = 1500
FILE_BYTES = 64_000_000
GOAL_ECHO_OF_SSHD = 1.5
GOAL_THROUGHPUT_OF_SSHD = 0.7
MB, GB = 1e6, 1e9
OURS, THEIRS = "our gateway", "OpenSSH's sshd"
Command = Callable[[Sequence[str]], list[str]]


def _make_file(path: str) -> str:
    return f"head -c {FILE_BYTES} /dev/urandom | base64 | head -c {FILE_BYTES} > {path}"


def _echo(bench: Bench, report: Report, ways: dict[str, Command]) -> None:
    programs: dict[str, tuple[list[str], int]] = {"raw cat": (RAW_CAT, 0), "bash": (BASH, SHELL_LINE_KEYS)}
    for program, (argv, line) in programs.items():
        taken: dict[str, list[float]] = {name: [] for name in ways}
        typist = [bench.programs.pty_reader, "echo", str(KEYS), str(GAP_US), str(line)]
        for _ in range(bench.rounds(ROUNDS)):
            for name, command in ways.items():
                taken[name] += microseconds([*typist, *command(argv)])
        for name, samples in taken.items():
            report.row(f"{program}: {name}", p50_us=p50(samples), p99_us=p99(samples), keys=str(len(samples)))
        limit = GOAL_ECHO_OF_SSHD * p50(taken[THEIRS])
        report.goal(f"{program}: a key's echo p50 against 1.5 x sshd's", p50(taken[OURS]), limit, "us")


def _flood(bench: Bench, report: Report, server: Server, ways: dict[str, Command], paths: dict[str, str]) -> None:
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    cpu_s: list[float] = []
    for _ in range(bench.rounds(THROUGHPUT_ROUNDS)):
        for name, command in ways.items():
            before = host.cpu_s(server.pid)
            reader = [bench.programs.pty_reader, "throughput"]
            taken[name].append(figures([*reader, *command(cat_when_told(paths[name]))]))
            if name == OURS:
                cpu_s.append(host.cpu_s(server.pid) - before)
    speeds = {name: [one["bytes"] / one["seconds"] / MB for one in rounds] for name, rounds in taken.items()}
    for name, each in speeds.items():
        more = {"server_cpu_s_per_gb": p50(cpu_s) / FILE_BYTES * GB} if name == OURS else {}
        report.row(f"64 MB in a terminal: {name}", mb_per_s=p50(each), **more)
    ratio = p50([ours / theirs for ours, theirs in zip(speeds[OURS], speeds[THEIRS], strict=True)])
    report.goal(
        "MB/s in a terminal of sshd's, median of the rounds", ratio, GOAL_THROUGHPUT_OF_SSHD, "x", at_least=True
    )


def _terminal(command: list[str]) -> Command:
    return lambda argv: [*command, shlex.join(argv)]


def run(bench: Bench) -> Report:
    """Interleaved. Both clients are OpenSSH's, with its own choice of ciphers."""
    report = Report("ssh", TITLE)
    home = Path(bench.directory) / "ssh-home"
    home.mkdir(exist_ok=True)
    here = str(bench.directory / "64mb-ssh")
    output_of(["/bin/sh", "-c", _make_file(here)])
    isolation = ["--isolation", bench.isolation] if bench.isolation else []
    with (
        running_server("--ssh-port", "0", "--pool", "1", *isolation) as running,
        sshd(bench.directory, bench.home) as theirs,
    ):
        server = Server(running, 1, bench.home)
        client = client_of(running, home)
        with server.sandbox() as sandbox:
            there = f"/tmp/sandpty-bench-{sandbox.id}"
            sandbox.run(_make_file(there))
            # `env`: the certificate is new, and need not be looked at before each connection.
            ours = ["env", "SANDPTY_SSH_READY=1", *client.command("-tt", f"{sandbox.id}@sandpty")]
            ways: dict[str, Command] = {OURS: _terminal(ours), THEIRS: theirs.command}
            try:
                _echo(bench, report, ways)
                _flood(bench, report, server, ways, {OURS: there, THEIRS: here})
            finally:
                subprocess.run(
                    client.command(f"{sandbox.id}@sandpty", f"rm -f {there}"),
                    env=client.env,
                    check=False,
                    timeout=PROGRAM_TIMEOUT_S,
                )
    report.notes.append("Both clients are OpenSSH's; they choose AES-GCM for the gateway, ChaCha20 for sshd")
    return report
