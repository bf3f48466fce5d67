"""A key typed and seen: through ours and through ssh, by the same program in the same run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from benchmarks.programs import BASH, RAW_CAT, SHELL_LINE_KEYS, microseconds, sshd
from benchmarks.results import Report, p50, p99
from benchmarks.server import Bench, Sandbox

TITLE = "Keystroke echo"
ROUNDS = 6
KEYS = 400
GAP_US = 1500  # between keys; what comes back late must not speed up the next
TMUX_SOCKET = "sandpty-bench"
PROGRAMS: dict[str, tuple[list[str], int]] = {"raw cat": (RAW_CAT, 0), "bash": (BASH, SHELL_LINE_KEYS)}


class _Ways:
    """One echo run in each way; every one returns its microseconds."""

    def __init__(self, bench: Bench, sandbox: Sandbox, ssh: Sequence[str], argv: list[str], line: int) -> None:
        self._bench = bench
        self._sandbox = sandbox
        self._ssh = ssh
        self._argv = argv
        self._line = line

    def _in_terminal(self, command: Sequence[str]) -> list[float]:
        typist = [self._bench.programs.pty_reader, "echo", str(KEYS), str(GAP_US), str(self._line)]
        return microseconds([*typist, *command])

    def local(self) -> list[float]:
        return self._in_terminal(self._argv)

    def ssh(self) -> list[float]:
        return self._in_terminal(self._ssh)

    def native_in_terminal(self) -> list[float]:
        process = self._sandbox.start(self._argv)
        try:
            return self._in_terminal(self._bench.native(self._sandbox, process, "terminal"))
        finally:
            self._end(process)

    def native(self) -> list[float]:
        process = self._sandbox.start(self._argv)
        try:
            return microseconds(self._bench.native(self._sandbox, process, "echo", KEYS, GAP_US, self._line))
        finally:
            self._end(process)

    def _end(self, process: str) -> None:
        self._sandbox.http.request("POST", f"{process}/signal", {"signal": "KILL", "target": "tree"})

    def tmux(self) -> list[float]:
        tmux = ["tmux", "-L", TMUX_SOCKET, "-f", "/dev/null"]
        try:
            return self._in_terminal([*tmux, "new-session", *self._argv])
        finally:
            subprocess.run([*tmux, "kill-server"], capture_output=True, check=False, timeout=10)


def _measure(bench: Bench, ways: _Ways) -> dict[str, list[float]]:
    run_in = {
        "local PTY": ways.local,
        "ssh to sshd": ways.ssh,
        "native, our client in a terminal, as ssh": ways.native_in_terminal,
        "native, on the WebSocket": ways.native,
    }
    if shutil.which("tmux"):
        run_in["tmux attach"] = ways.tmux
    taken: dict[str, list[float]] = {name: [] for name in run_in}
    for _ in range(bench.rounds(ROUNDS)):
        for name, way in run_in.items():
            taken[name] += way()
    return taken


def run(bench: Bench) -> Report:
    """A raw `cat` shows the way there and back; `bash` shows what a user feels."""
    report = Report("echo", TITLE)
    with bench.server().sandbox() as sandbox, sshd(bench.directory, bench.home) as ssh:
        for program, (argv, line) in PROGRAMS.items():
            taken = _measure(bench, _Ways(bench, sandbox, ssh.command(argv), argv, line))
            for way, samples in taken.items():
                report.row(
                    f"{program}: {way}",
                    p50_us=p50(samples),
                    p99_us=p99(samples),
                    max_us=max(samples),
                    keys=str(len(samples)),
                )
            ours, theirs = taken["native, on the WebSocket"], taken["ssh to sshd"]
            equal = taken["native, our client in a terminal, as ssh"]
            report.goal(f"{program}: native p50 against ssh's", p50(ours), p50(theirs), "us")
            report.goal(f"{program}: native p99 against twice ssh's", p99(ours), 2 * p99(theirs), "us")
            report.goal(f"{program}: native p50 in a terminal, as ssh, against ssh's", p50(equal), p50(theirs), "us")
    report.notes.append(
        "ssh is a program in a terminal; ours is measured likewise, and on its WebSocket as a browser or SDK uses it"
    )
    return report
