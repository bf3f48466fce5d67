"""Which uids of the host a sandbox's users are.

Every sandbox has a range of its own, so that host-wide accounting by uid (keys, inotify, pending signals) does not
couple sandboxes. Several supervisors on one host begin at different places: the data directory's hash says where.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sandpty import config

SLOTS_MAX = 4000  # of one data directory: sandboxes, and a few being made or removed
_LAST_UID = 0x7FFF_FFFF  # beyond it programs that take a uid for a signed number fail
_PLACES = (_LAST_UID - config.UID_BASE) // (config.UID_RANGE * SLOTS_MAX)


@dataclass(frozen=True, slots=True)
class IdRange:
    """Guest ids 0 .. count-1 are host ids base .. base+count-1."""

    base: int
    count: int = config.UID_RANGE


def tag_of(data_dir: Path) -> str:
    """Four hexadecimal digits that tell this data directory's interfaces, tables and cgroups from another's."""
    return hashlib.sha256(str(data_dir).encode()).hexdigest()[:4]


def range_of(tag: str, slot: int) -> IdRange:
    """The range of a slot. Raises ValueError outside 0 .. SLOTS_MAX-1."""
    if not 0 <= slot < SLOTS_MAX:
        raise ValueError(f"slot {slot} is out of bounds")
    place = int(tag, 16) % _PLACES
    return IdRange(config.UID_BASE + (place * SLOTS_MAX + slot) * config.UID_RANGE)
