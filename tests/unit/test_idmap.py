"""Which uids of the host belong to whom."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from sandpty import config
from sandpty.isolation.idmap import SLOTS_MAX, range_of, tag_of


def test_ranges_of_one_data_directory_never_overlap() -> None:
    """Neighbours touch, none shares a uid with another or with the host's accounts."""
    ranges = [range_of("0000", slot) for slot in range(SLOTS_MAX)]
    assert ranges[0].base == config.UID_BASE
    assert all(later.base == earlier.base + earlier.count for earlier, later in pairwise(ranges))


@pytest.mark.parametrize("tag", ["0000", "ffff", "1234"])
def test_every_range_is_a_valid_uid(tag: str) -> None:
    """Also the last one, for every place on the host."""
    last = range_of(tag, SLOTS_MAX - 1)
    assert last.base >= config.UID_BASE
    assert last.base + last.count < 2**32 - 1


def test_a_slot_out_of_bounds_is_refused() -> None:
    """Both sides."""
    for slot in (-1, SLOTS_MAX):
        with pytest.raises(ValueError, match="out of bounds"):
            range_of("0000", slot)


def test_the_tag_depends_on_the_directory_only() -> None:
    """The same after a restart, another for another directory."""
    assert tag_of(Path("/a")) == tag_of(Path("/a"))
    assert len({tag_of(Path(f"/{number}")) for number in range(50)}) > 45
