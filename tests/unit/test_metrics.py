"""Samples of what a sandbox uses: how many are kept, and what is made of the kernel's counters."""

from __future__ import annotations

import pytest

from sandpty import config
from sandpty.server.metrics import History
from sandpty.wire.verbs import Usage


def usage(at: float, cpu_s: float = 0.0, memory_bytes: int = 300, cache_bytes: int = 100) -> Usage:
    """What a supervisor answers."""
    return Usage(at=at, cpu_s=cpu_s, memory_bytes=memory_bytes, cache_bytes=cache_bytes, disk_bytes=7, processes=3)


def test_cpu_is_the_share_of_all_cpus_since_the_sample_before() -> None:
    """Two CPUs, one busy: 50 %. The first sample cannot know; a new boot's counters begin anew."""
    history = History()
    for each in (usage(0.0, 10.0), usage(5.0, 15.0), usage(10.0, 25.0), usage(15.0, 0.5)):
        history.add(each, cpu_count=2.0)
    assert [sample.cpu_pct for sample in history.samples()] == [0.0, 50.0, 100.0, 0.0]


def test_memory_in_use_is_without_the_cache() -> None:
    """As `free` counts."""
    history = History()
    history.add(usage(0.0), 1.0)
    sample = history.latest()
    assert sample is not None
    assert (sample.used_bytes, sample.cache_bytes, sample.disk_bytes, sample.processes) == (200, 100, 7, 3)


def test_a_range_has_both_its_ends() -> None:
    """And no range has everything."""
    history = History()
    for at in range(5):
        history.add(usage(float(at)), 1.0)
    assert [sample.at for sample in history.samples(1.0, 3.0)] == [1.0, 2.0, 3.0]
    assert [sample.at for sample in history.samples(start=3.0)] == [3.0, 4.0]
    assert [sample.at for sample in history.samples(end=1.0)] == [0.0, 1.0]
    assert len(history.samples()) == 5


def test_a_long_life_is_remembered_whole_and_ever_more_sparsely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sample and the newest are there, the number of all is bounded, the newest are the densest."""
    monkeypatch.setattr(config, "METRICS_SAMPLES_MAX", 64)
    history = History()
    for at in range(10_000):
        history.add(usage(float(at)), 1.0)
        assert len(history) <= 64
    times = [sample.at for sample in history.samples()]
    assert times[0] == 0.0
    assert times[-20:] == [float(at) for at in range(9_980, 10_000)]
    assert times == sorted(times)
    assert len(times) > 32


def test_samples_that_come_at_once_are_one() -> None:
    """A moment is too short to measure CPU in."""
    history = History()
    history.add(usage(1.0, 0.0), 1.0)
    history.add(usage(1.001, 0.001), 1.0)
    assert len(history) == 1
