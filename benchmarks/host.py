"""Facts of this machine and of its processes, read from /proc."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def machine() -> dict[str, str]:
    """What a figure means nothing without."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cores": str(os.cpu_count()),
        "cpu": model,
        "memory": f"{mem_total() / 2**30:.1f} GiB",
        "kernel": platform.release(),
        "system": _system(),
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _system() -> str:
    with suppress(OSError):
        for line in Path("/etc/os-release").read_text().splitlines():
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip('"')
    return platform.system()


def _meminfo(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def mem_total() -> int:
    """Bytes of the machine's memory."""
    return _meminfo("MemTotal")


def mem_available() -> int:
    """Bytes the kernel could still give to programs."""
    return _meminfo("MemAvailable")


def cpu_s(pid: int) -> float:
    """CPU seconds of all of a process's threads so far; to the nanosecond where the kernel counts so."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    if total:
        return total / 1e9
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def rss(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
