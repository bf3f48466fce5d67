"""One builder (or collector) at a time in a templates' directory."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from sandpty.templates.progress import Progress, Show


@contextlib.contextmanager
def locked(templates: Path, show: Show) -> Iterator[None]:
    """Waits for another one, and says so."""
    templates.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(templates / "build.lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            show(Progress(0, "waiting for another build"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
