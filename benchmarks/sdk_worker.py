"""The official E2B SDK, driven line by line: a JSON order on stdin, a JSON answer on stdout.

Runs in an interpreter that has `e2b`, which need not be ours, and imports nothing of this project.

    {"op": "create", "url", "key", "user", "env"}  create, pty.create, until the prompt: ms after each step
    {"op": "open", "url", "key"}                    make and keep a sandbox
    {"op": "run", "times", "user", "env"}           commands.run("true") in it, ms each
    {"op": "close"}                                 kill it
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from e2b import PtySize, Sandbox

PROMPT_ENDS = (b"$ ", b"# ")


def _options(order: dict[str, Any]) -> dict[str, Any]:
    return {"api_key": order["key"], "api_url": order["url"], "sandbox_url": order["url"], "timeout": 600}


def _create(order: dict[str, Any]) -> dict[str, float]:
    start = time.perf_counter()
    sandbox = Sandbox.create(**_options(order))
    created = time.perf_counter()
    try:
        terminal = sandbox.pty.create(PtySize(rows=24, cols=80), user=order["user"], envs=order["env"])
        started = time.perf_counter()
        seen = b""
        for _, _, data in terminal:
            seen += data or b""
            if seen.endswith(PROMPT_ENDS):
                break
        else:
            raise RuntimeError(f"the terminal ended without a prompt: {seen!r}")
        prompted = time.perf_counter()
        terminal.disconnect()
    finally:
        sandbox.kill()
    return {
        "created_ms": (created - start) * 1e3,
        "started_ms": (started - start) * 1e3,
        "prompt_ms": (prompted - start) * 1e3,
    }


def _run(sandbox: Any, order: dict[str, Any]) -> list[float]:
    taken = []
    for _ in range(order["times"]):
        start = time.perf_counter()
        sandbox.commands.run("true", user=order["user"], envs=order["env"])
        taken.append((time.perf_counter() - start) * 1e3)
    return taken


def main() -> None:
    """Serve orders until stdin ends."""
    kept: Any = None
    for line in sys.stdin:
        order = json.loads(line)
        answer: Any = None
        try:
            if order["op"] == "create":
                answer = _create(order)
            elif order["op"] == "open":
                kept = Sandbox.create(**_options(order))
            elif order["op"] == "run":
                answer = _run(kept, order)
            elif order["op"] == "close":
                kept.kill()
            print(json.dumps({"ok": answer}), flush=True)
        except Exception as error:  # everything is the benchmark's to report
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)


if __name__ == "__main__":
    main()
