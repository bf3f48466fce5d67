"""Which of our programs that this run of tests started are alive: they, and all they start, inherit a mark."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_MARK = "SANDPTY_TEST_RUN"


@contextlib.contextmanager
def marked() -> Iterator[Callable[[], list[str]]]:
    """Gives what lists them, each with the test that was running when it was started."""
    mark = f"{_MARK}={uuid.uuid4().hex}"
    os.environ[_MARK] = mark.partition("=")[2]
    try:
        yield lambda: [found for entry in Path("/proc").iterdir() if (found := _ours(entry, mark))]
    finally:
        del os.environ[_MARK]


def _ours(process: Path, mark: str) -> str:
    """Empty for a process that is none of them."""
    with contextlib.suppress(OSError):
        if process.name.isdigit() and int(process.name) != os.getpid():
            environment = (process / "environ").read_text(errors="replace").split("\0")
            command = (process / "cmdline").read_text(errors="replace").replace("\0", " ")
            if mark in environment and "-m sandpty." in command:
                tests = [each for each in environment if each.startswith("PYTEST_CURRENT_TEST=")]
                return f"{process.name} {command}{''.join(tests)}"
    return ""
