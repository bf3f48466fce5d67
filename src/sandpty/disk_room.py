"""How much of a disk is left, and for whom."""

from __future__ import annotations

import os
from pathlib import Path

from sandpty import config


def has_room(directory: Path | str, more_bytes: int = 0) -> bool:
    """Whether there is more than the reserve and what everybody needs, after `more_bytes` more."""
    return above_reserve_bytes(directory) - more_bytes >= config.DISK_FREE_MIN_BYTES


def is_scarce(directory: Path) -> bool:
    """Whether there is no room, as far as one can see from here."""
    try:
        return not has_room(directory)
    except OSError:
        return False


def above_reserve_bytes(directory: Path | str) -> int:
    """What is left above what is kept for those who write already; negative when they use that."""
    found = os.statvfs(directory)
    reserve = min(config.DISK_RESERVE_BYTES, int(found.f_blocks * found.f_frsize * config.DISK_RESERVE_SHARE))
    return found.f_bavail * found.f_frsize - reserve
