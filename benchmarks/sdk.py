"""The SDK worker seen from here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VENDOR_PYTHON = HERE.parent / ".cache" / "vendor-py" / "bin" / "python"
END_TIMEOUT_S = 10.0


def interpreter() -> str:
    """One that has `e2b`: the environment that scripts/setup makes for the vendors' SDKs, else this one."""
    for candidate in (str(VENDOR_PYTHON), sys.executable):
        if Path(candidate).exists():
            found = subprocess.run([candidate, "-c", "import e2b"], capture_output=True, check=False, timeout=60)
            if found.returncode == 0:
                return candidate
    raise FileNotFoundError("no interpreter has the package e2b; scripts/setup --test makes one")


class Worker:
    """Gives orders to benchmarks/sdk_worker.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, op: str, **order: Any) -> Any:
        """Carry out one order. Raises RuntimeError with the SDK's exception."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"op": op, **order}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the SDK worker ended")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["ok"]


@contextmanager
def worker(command: Sequence[str] = ()) -> Iterator[Worker]:
    """A process with E2B's SDK imported; or that of `command`, which is spoken to likewise."""
    process = subprocess.Popen(
        command or [interpreter(), str(HERE / "sdk_worker.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Worker(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
