"""Control groups of both versions, on a tree of plain files."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandpty.isolation.cgroup import CgroupsV1, CgroupsV2, detect
from sandpty.wire.verbs import Limits

LIMITS = Limits(cpu_count=0.5, memory_mb=64, pids=20)


def group_v2(root: Path, name: str) -> Path:
    """The files that the kernel would make."""
    directory = root / "sandpty-x" / name
    directory.mkdir(parents=True, exist_ok=True)
    for file in (
        "memory.max",
        "memory.swap.max",
        "pids.max",
        "cpu.max",
        "cgroup.procs",
        "cgroup.freeze",
        "cgroup.kill",
    ):
        (directory / file).touch()
    return directory


def hierarchy_v1(root: Path, name: str, *, swap: bool = True) -> dict[str, Path]:
    """One directory per controller, with the files of a group."""
    files = {
        "memory": ["memory.limit_in_bytes", *(["memory.memsw.limit_in_bytes"] if swap else [])],
        "pids": ["pids.max"],
        "cpu": ["cpu.cfs_quota_us"],
        "freezer": ["freezer.state"],
        "devices": ["devices.allow", "devices.deny"],
    }
    groups = {}
    for controller, names in files.items():
        for directory in (root / controller, root / controller / "sandpty-x" / name):
            directory.mkdir(parents=True, exist_ok=True)
            for file in [*names, "cgroup.procs"]:
                (directory / file).touch()
        groups[controller] = root / controller / "sandpty-x" / name
    return groups


def test_the_version_is_detected(tmp_path: Path) -> None:
    """cgroup.controllers in the root is version 2; hybrid is version 1."""
    assert detect("p", tmp_path).version == 1
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified" / "cgroup.controllers").touch()
    assert detect("p", tmp_path).version == 1
    (tmp_path / "cgroup.controllers").touch()
    assert detect("p", tmp_path).version == 2


def test_v2_limits_are_written(tmp_path: Path) -> None:
    """Memory without swap, pids, and the quota with its period."""
    group = group_v2(tmp_path, "slot-1")
    CgroupsV2("sandpty-x", tmp_path).apply("slot-1", LIMITS)
    assert (group / "memory.max").read_text() == str(64 << 20)
    assert (group / "memory.swap.max").read_text() == "0"
    assert (group / "pids.max").read_text() == "20"
    assert (group / "cpu.max").read_text() == "50000 100000"


def test_v2_works_without_swap_accounting(tmp_path: Path) -> None:
    """A kernel without memory.swap.max has no swap to limit."""
    group = group_v2(tmp_path, "slot-1")
    (group / "memory.swap.max").unlink()
    CgroupsV2("sandpty-x", tmp_path).apply("slot-1", LIMITS)
    assert (group / "memory.max").read_text() == str(64 << 20)


def test_v2_freezing_waits_until_everything_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes with `frozen 1`; without it, an error in time."""
    group = group_v2(tmp_path, "slot-1")
    groups = CgroupsV2("sandpty-x", tmp_path)
    (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    groups.freeze("slot-1")
    assert (group / "cgroup.freeze").read_text() == "1"
    (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    monkeypatch.setattr("sandpty.isolation.cgroup.FREEZE_TIMEOUT_S", 0.02)
    with pytest.raises(TimeoutError):
        groups.freeze("slot-1")
    groups.thaw("slot-1")
    assert (group / "cgroup.freeze").read_text() == "0"


def test_v2_kill_uses_the_kernels_own(tmp_path: Path) -> None:
    """cgroup.kill ends all at once; a group that is not there is fine."""
    group = group_v2(tmp_path, "slot-1")
    groups = CgroupsV2("sandpty-x", tmp_path)
    groups.kill("slot-1")
    assert (group / "cgroup.kill").read_text() == "1"
    groups.kill("slot-2")


def test_v2_counts(tmp_path: Path) -> None:
    """Memory, time, processes, kills for want of memory; zero where nothing is known."""
    group = group_v2(tmp_path, "slot-1")
    (group / "memory.current").write_text("1234\n")
    (group / "pids.current").write_text("3\n")
    (group / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (group / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    groups = CgroupsV2("sandpty-x", tmp_path)
    stats = groups.stats("slot-1")
    assert (stats.memory_bytes, stats.processes, stats.cpu_s, stats.out_of_memory_kills) == (1234, 3, 2.5, 2)
    assert groups.stats("slot-9").memory_bytes == 0


def test_v2_missing_controllers_are_named(tmp_path: Path) -> None:
    """What cannot be limited is a reason to refuse."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io\n")
    assert CgroupsV2("sandpty-x", tmp_path).missing() == ["memory", "pids"]


def test_v1_limits_are_written(tmp_path: Path) -> None:
    """Memory and memory with swap, pids, cpu."""
    groups = hierarchy_v1(tmp_path, "slot-1")
    CgroupsV1("sandpty-x", tmp_path).apply("slot-1", LIMITS)
    assert (groups["memory"] / "memory.limit_in_bytes").read_text() == str(64 << 20)
    assert (groups["memory"] / "memory.memsw.limit_in_bytes").read_text() == str(64 << 20)
    assert (groups["pids"] / "pids.max").read_text() == "20"
    assert (groups["cpu"] / "cpu.cfs_quota_us").read_text() == "50000"


def test_v1_without_swap_accounting(tmp_path: Path) -> None:
    """Where memsw does not exist it is not written, and facts can say so."""
    hierarchy_v1(tmp_path, "slot-1", swap=False)
    groups = CgroupsV1("sandpty-x", tmp_path)
    assert groups.memory_and_swap() is False
    groups.apply("slot-1", LIMITS)


def test_v1_joining_moves_a_process_into_every_group(tmp_path: Path) -> None:
    """One write per controller."""
    groups = hierarchy_v1(tmp_path, "slot-1")
    CgroupsV1("sandpty-x", tmp_path).join("slot-1", 4242)
    assert {(group / "cgroup.procs").read_text() for group in groups.values()} == {"4242"}


def test_v1_freezing_thawing_and_missing_controllers(tmp_path: Path) -> None:
    """FROZEN and THAWED; a hierarchy without freezer is named."""
    groups = hierarchy_v1(tmp_path, "slot-1")
    one = CgroupsV1("sandpty-x", tmp_path)
    one.freeze("slot-1")
    assert (groups["freezer"] / "freezer.state").read_text() == "FROZEN"
    one.thaw("slot-1")
    assert (groups["freezer"] / "freezer.state").read_text() == "THAWED"
    assert one.missing() == []
    assert "freezer" in CgroupsV1("sandpty-x", tmp_path / "memory").missing()


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    """Both versions."""
    hierarchy_v1(tmp_path, "slot-1")
    CgroupsV1("sandpty-x", tmp_path).remove("slot-7")
    CgroupsV2("sandpty-x", tmp_path).remove("slot-7")


def test_all_sandboxes_together_are_bounded(tmp_path: Path) -> None:
    """In both versions, on the group that holds them all."""
    groups = hierarchy_v1(tmp_path / "1", "slot-1")
    parents = {name: group.parent for name, group in groups.items()}
    (parents["memory"] / "memory.limit_in_bytes").touch()
    (parents["pids"] / "pids.max").touch()
    CgroupsV1("sandpty-x", tmp_path / "1").bound_all(1 << 30, 999)
    assert (parents["memory"] / "memory.limit_in_bytes").read_text() == str(1 << 30)
    assert (parents["pids"] / "pids.max").read_text() == "999"
    parent = group_v2(tmp_path / "2", "slot-1").parent
    for file in (parent / "memory.max", parent / "pids.max", tmp_path / "2" / "cgroup.subtree_control"):
        file.touch()
    CgroupsV2("sandpty-x", tmp_path / "2").bound_all(1 << 30, 999)
    assert (parent / "memory.max").read_text() == str(1 << 30)
    assert (tmp_path / "2" / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
