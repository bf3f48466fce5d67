"""Ctrl-C while `yes` floods a client that takes 2 MB/s: how long until the prompt, how much stale output before it."""

from __future__ import annotations

import os
import pty
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from benchmarks.client import SLOW_RECEIVE_BYTES, Pace
from benchmarks.programs import BASH, sshd
from benchmarks.results import Report, p50
from benchmarks.server import Bench, Sandbox

TITLE = "Ctrl-C under a flood, the client takes 2 MB/s"
ROUNDS = 5
CLIENT_BYTES_PER_S = 2e6
FLOOD_S = 1.0
GOAL_MS = 150.0
WINDOW_BYTES = 64 * 1024
PROMPT = b"READY> "
LINE = b"yes 0123456789012345678901234567890123456789\n"


@dataclass
class _Terminal:
    """A way to type and to read slowly. `read` gives the next bytes."""

    type: Callable[[bytes], None]
    read: Callable[[], bytes]


def _until_prompt(terminal: _Terminal) -> int:
    """Bytes read until the prompt stands at the end."""
    size, tail = 0, b""
    while not tail.endswith(PROMPT):
        data = terminal.read()
        if not data:
            raise ConnectionError(f"ended before the prompt: {tail!r}")
        size += len(data)
        tail = (tail + data)[-64:]
    return size


def _interrupt(terminal: _Terminal) -> dict[str, float]:
    """Flood, Ctrl-C, prompt. Milliseconds and stale bytes."""
    terminal.type(LINE)
    end = time.perf_counter() + FLOOD_S
    while time.perf_counter() < end:
        terminal.read()
    start = time.perf_counter()
    terminal.type(b"\x03")
    stale = _until_prompt(terminal)
    return {"ms": (time.perf_counter() - start) * 1e3, "stale_kb": stale / 1e3}


@contextmanager
def _native(sandbox: Sandbox, window: int) -> Iterator[_Terminal]:
    process = sandbox.start(BASH)
    query = f"from=offset&value=0&window={window}"
    with sandbox.attach(process, query, CLIENT_BYTES_PER_S) as socket:

        def read() -> bytes:
            data = socket.output()
            if window:
                socket.acknowledge()
            return data

        yield _Terminal(socket.type, read)
    sandbox.http.request("POST", f"{process}/signal", {"signal": "KILL", "target": "tree"})


@contextmanager
def _program(command: Sequence[str]) -> Iterator[_Terminal]:
    pid, master = pty.fork()
    if pid == 0:
        os.execvp(command[0], list(command))
    pace = Pace(CLIENT_BYTES_PER_S)

    def read() -> bytes:
        data = os.read(master, SLOW_RECEIVE_BYTES)
        pace.took(len(data))
        return data

    try:
        yield _Terminal(lambda data: _type(master, data), read)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.close(master)
        os.waitpid(pid, 0)


def _type(master: int, data: bytes) -> None:
    os.write(master, data)


def run(bench: Bench) -> Report:
    """Interleaved: ours with the server's acknowledgements and with the client's, sshd, a local PTY."""
    report = Report("interrupt", TITLE)
    taken: dict[str, list[dict[str, float]]] = {}
    with bench.server().sandbox() as sandbox, sshd(bench.directory, bench.home) as ssh:
        ways: dict[str, Callable[[], AbstractContextManager[_Terminal]]] = {
            "native": lambda: _native(sandbox, 0),
            "native, client acknowledges (window 64 KiB)": lambda: _native(sandbox, WINDOW_BYTES),
            "ssh to sshd": lambda: _program(ssh.command(BASH)),
            "local PTY": lambda: _program(BASH),
        }
        for _ in range(bench.rounds(ROUNDS)):
            for name, way in ways.items():
                with way() as terminal:
                    _until_prompt(terminal)
                    taken.setdefault(name, []).append(_interrupt(terminal))
    for name, samples in taken.items():
        report.row(
            name,
            prompt_p50_ms=p50([sample["ms"] for sample in samples]),
            prompt_max_ms=max(sample["ms"] for sample in samples),
            stale_p50_kb=p50([sample["stale_kb"] for sample in samples]),
            times=str(len(samples)),
        )
    for name in list(ways)[:2]:
        report.goal(f"{name}: prompt p50", p50([sample["ms"] for sample in taken[name]]), GOAL_MS, "ms")
    return report
