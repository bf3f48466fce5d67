"""The stub server as a process of its own: the SDK must not share an interpreter with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stub_url() -> Iterator[str]:
    """The URL of a running stub server."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.stub_server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait(10)
