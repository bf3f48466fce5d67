"""A terminal through one SDK: a JSON order on stdin, an answer on stdout, the same lines of code for either SDK.

    python terminal_worker.py e2b|sandpty

Runs in an interpreter that has the SDK, and imports nothing else of this project.

    {"op": "open", "url", "key"}       a sandbox, with a file of text in it
    {"op": "echo", "flavour", "keys"}  keys typed into a raw `cat`, one by one: milliseconds until each is seen
    {"op": "drain", "flavour"}         the file through a terminal: {"seconds", "bytes", "cpu_s"}
    {"op": "close"}                    kill it
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from typing import Any

PAUSE_S = 0.0015  # between keys
FILE_BYTES = 32_000_000
FILE = "/tmp/text"
MAKE_FILE = f"head -c {FILE_BYTES} /dev/urandom | base64 -w 100 | head -c {FILE_BYTES} > {FILE}"
RAW_CAT = b"stty raw -echo; echo rea''dy; exec cat\n"
DRAIN = f"stty -onlcr; cat {FILE}; exit\n".encode()
SDK = sys.argv[1]
sdk = importlib.import_module(SDK)


def _data(event: Any) -> bytes:
    """Of what iterating gives: E2B's SDK says (stdout, stderr, pty), ours events."""
    found = event[2] if isinstance(event, tuple) else getattr(event, "data", b"")
    return found or b""


def _options(order: dict[str, Any]) -> dict[str, Any]:
    options = {"api_key": order["key"], "timeout": 600}
    return {**options, "url": order["url"]} if SDK == "sandpty" else {
        **options, "api_url": order["url"], "sandbox_url": order["url"]}  # fmt: skip


def _size() -> Any:
    return sdk.PtySize(rows=24, cols=80)


def _echo(sandbox: Any, keys: int) -> list[float]:
    terminal = sandbox.pty.create(_size(), timeout=0)
    events = iter(terminal)
    sandbox.pty.send_stdin(terminal.pid, RAW_CAT)
    seen = b""
    while b"ready\n" not in seen:
        seen += _data(next(events))
    taken = []
    for _ in range(keys):
        time.sleep(PAUSE_S)
        start = time.perf_counter()
        sandbox.pty.send_stdin(terminal.pid, b"x")
        while not _data(next(events)):
            pass
        taken.append((time.perf_counter() - start) * 1e3)
    terminal.kill()
    return taken


async def _echo_async(sandbox: Any, keys: int) -> list[float]:
    said: asyncio.Queue[bytes] = asyncio.Queue()
    terminal = await sandbox.pty.create(_size(), on_data=said.put_nowait, timeout=0)
    await sandbox.pty.send_stdin(terminal.pid, RAW_CAT)
    seen = b""
    while b"ready\n" not in seen:
        seen += await said.get()
    taken = []
    for _ in range(keys):
        await asyncio.sleep(PAUSE_S)
        start = time.perf_counter()
        await sandbox.pty.send_stdin(terminal.pid, b"x")
        await said.get()
        taken.append((time.perf_counter() - start) * 1e3)
    await terminal.kill()
    return taken


def _drain(sandbox: Any) -> int:
    terminal = sandbox.pty.create(_size(), timeout=0)
    events = iter(terminal)
    while not _data(next(events)):  # the prompt: from now on somebody reads
        pass
    sandbox.pty.send_stdin(terminal.pid, DRAIN)
    return sum(len(_data(event)) for event in events)


class _Count:
    def __init__(self) -> None:
        self.bytes = 0
        self.begun = asyncio.Event()

    def __call__(self, data: bytes) -> None:
        self.bytes += len(data)
        self.begun.set()


async def _drain_async(sandbox: Any) -> int:
    count = _Count()
    terminal = await sandbox.pty.create(_size(), on_data=count, timeout=0)
    await count.begun.wait()
    await sandbox.pty.send_stdin(terminal.pid, DRAIN)
    await terminal.wait()
    return count.bytes


async def _connected(order: dict[str, Any], sandbox_id: str) -> Any:
    options = _options(order)
    options.pop("timeout")
    return await sdk.AsyncSandbox.connect(sandbox_id, **options)


def _run(order: dict[str, Any], opened: dict[str, Any], sandbox: Any) -> Any:
    """One order on the open sandbox, with either flavour."""
    echo = order["op"] == "echo"
    if order["flavour"] == "sync":
        return _echo(sandbox, order["keys"]) if echo else _drain(sandbox)

    async def run() -> Any:
        other = await _connected(opened, sandbox.sandbox_id)
        return await (_echo_async(other, order["keys"]) if echo else _drain_async(other))

    return asyncio.run(run())


def main() -> None:
    """Serve orders until stdin ends."""
    sandbox: Any = None
    opened: dict[str, Any] = {}
    for line in sys.stdin:
        order = json.loads(line)
        answer: Any = None
        try:
            if order["op"] == "open":
                opened, sandbox = order, sdk.Sandbox.create(**_options(order))
                sandbox.commands.run(MAKE_FILE)
            elif order["op"] == "close":
                sandbox.kill()
            elif order["op"] == "echo":
                answer = _run(order, opened, sandbox)
            elif order["op"] == "drain":
                start, cpu = time.perf_counter(), time.process_time()
                count = _run(order, opened, sandbox)
                answer = {"seconds": time.perf_counter() - start, "bytes": count, "cpu_s": time.process_time() - cpu}
            print(json.dumps({"ok": answer}), flush=True)
        except Exception as error:  # everything is the benchmark's to report
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)


if __name__ == "__main__":
    main()
