"""What /proc says about processes of the host."""

from __future__ import annotations

import os
from pathlib import Path

from sandpty.isolation.driver import Started


def _stat(pid: int) -> list[str]:
    # The second field is the name in parentheses and may hold anything, so count from the last parenthesis.
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text[text.rindex(")") + 2 :].split()


def start_time(pid: int) -> int:
    """Clock ticks since boot at which `pid` started. Raises ProcessLookupError when there is none."""
    try:
        return int(_stat(pid)[19])
    except (OSError, ValueError):
        raise ProcessLookupError(pid) from None


def is_alive(started: Started) -> bool:
    """Whether exactly this process is there and is not a zombie."""
    try:
        fields = _stat(started.pid)
    except (OSError, ValueError):
        return False
    return int(fields[19]) == started.start_time and fields[0] not in "ZX"


def used(pid: int) -> tuple[int, float]:
    """(resident bytes, seconds of CPU) of one process; zeros when it is gone."""
    try:
        fields = _stat(pid)
    except (OSError, ValueError):
        return 0, 0.0
    ticks = int(fields[11]) + int(fields[12])
    return int(fields[21]) * os.sysconf("SC_PAGE_SIZE"), ticks / os.sysconf("SC_CLK_TCK")


def open_pidfd(started: Started) -> int:
    """A pidfd of exactly this process. Raises ProcessLookupError when it is gone (or its pid is another's now)."""
    if started.pid <= 0:
        raise ProcessLookupError(started.pid)
    pidfd = os.pidfd_open(started.pid)
    if is_alive(started):
        return pidfd
    os.close(pidfd)
    raise ProcessLookupError(started.pid)


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`, parents before children."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = _stat(int(name))
            except (OSError, ValueError):
                continue
            if fields[0] not in "ZX":
                children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found
