"""Limits, freezing and accounting by control groups; versions 1 and 2 behind one interface.

A sandbox's groups are `<root>/<controller>/<parent>/<name>`, or `<root>/<parent>/<name>` in version 2. They are made
and joined here, in the background, and not by the runtime: joining nine hierarchies takes crun 16 ms of the 23 that a
start would take.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from sandpty.isolation.driver import Stats
from sandpty.wire.verbs import Limits

CGROUP_ROOT = Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000
FREEZE_TIMEOUT_S = 5.0
REMOVE_TIMEOUT_S = 5.0
_CONTROLLERS = ("memory", "pids", "cpu", "freezer", "devices")  # what the promises need, version 1
# Version 1: null zero full random urandom tty ptmx and terminals. (Guests can make no device anyway: nodev, user
# namespace.)
_DEVICES = (*(f"c 1:{minor} rwm" for minor in (3, 5, 7, 8, 9)), "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm")
_UNIFIED = "unified"  # where the hybrid layout has version 2
_V2_CONTROLLERS = ("memory", "pids", "cpu")


class Cgroups(Protocol):
    """The groups of one data directory."""

    version: int
    parent: str

    def oci_path(self, name: str) -> str:
        """What goes into the bundle as cgroupsPath."""

    def missing(self) -> list[str]:
        """Controllers that the promises need and that are not there."""

    def memory_and_swap(self) -> bool:
        """Whether swap can be limited together with memory."""

    def bound_all(self, memory_bytes: int, pids: int) -> None:
        """Bound all sandboxes together, so that many within their limits cannot take the host down."""

    def names(self) -> set[str]:
        """Those that are there."""

    def create(self, name: str, limits: Limits) -> None:
        """Make fresh groups with these limits."""

    def join(self, name: str, pid: int) -> None:
        """Move a process, and with it what it will start, into the groups."""

    def apply(self, name: str, limits: Limits) -> None:
        """Change the limits of a running sandbox."""

    def freeze(self, name: str) -> None:
        """Returns when every process stands still."""

    def thaw(self, name: str) -> None: ...

    def kill(self, name: str) -> None:
        """SIGKILL whatever is in the group."""

    def remove(self, name: str) -> None:
        """Remove the empty groups; nothing there is fine."""

    def remove_parent(self) -> None:
        """Remove the groups that hold all sandboxes."""

    def stats(self, name: str) -> Stats: ...

    def unwritten_bytes(self) -> int:
        """What all sandboxes together have in memory of files that is not on a disk yet."""


def _read(path: Path) -> str:
    # Plain system calls: hundreds of these files are read for every round of metrics.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(fd, 65536):
            pieces.append(piece)
    finally:
        os.close(fd)
    return b"".join(pieces).decode("ascii").strip()


def _number(path: Path) -> int:
    try:
        return int(_read(path))
    except (OSError, ValueError):
        return 0


def _counters(path: Path) -> dict[str, int]:
    try:
        pairs = [line.split() for line in _read(path).splitlines()]
    except OSError:
        return {}
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _sum(counters: Mapping[str, int], *names: str) -> int:
    return sum(counters.get(name, 0) for name in names)


def _write(path: Path, value: object) -> None:
    # One write, no truncation: these are switches, not files.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _cpu_quota_us(limits: Limits) -> int:
    return max(1000, int(limits.cpu_count * CPU_PERIOD_US))


def _directories(path: Path) -> set[str]:
    try:
        return {each.name for each in os.scandir(path) if each.is_dir()}
    except FileNotFoundError:
        return set()


def _kill_listed(path: Path) -> None:
    try:
        pids = _read(path).split()
    except OSError:
        return
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)


def _remove_tree(directory: Path) -> None:
    """rmdir bottom up. A group whose last process just ended may still be busy for a moment."""
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    for path, _, _ in os.walk(directory, topdown=False):
        while True:
            try:
                os.rmdir(path)
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.001)
            else:
                break


def _wait_for(reached: Iterable[bool], what: str) -> None:
    deadline = time.monotonic() + FREEZE_TIMEOUT_S
    for done in reached:
        if done:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} took longer than {FREEZE_TIMEOUT_S:g} s")
        time.sleep(0.0005)


class CgroupsV1:
    """One hierarchy per controller; also the hybrid layout, whose version 2 part is left alone."""

    version = 1
    _UNWRITTEN = ("total_dirty", "total_writeback")

    def __init__(self, parent: str, root: Path = CGROUP_ROOT) -> None:
        self.parent = parent
        self._root = root

    def _path(self, controller: str, name: str) -> Path:
        return self._root / controller / self.parent / name

    def oci_path(self, name: str) -> str:
        return f"/{self.parent}/{name}"

    def missing(self) -> list[str]:
        return [name for name in _CONTROLLERS if not (self._root / name / "cgroup.procs").exists()]

    def memory_and_swap(self) -> bool:
        return (self._root / "memory" / "memory.memsw.limit_in_bytes").exists()

    def bound_all(self, memory_bytes: int, pids: int) -> None:
        for controller, file, value in (
            ("memory", "memory.limit_in_bytes", memory_bytes),
            ("pids", "pids.max", pids),
        ):
            parent = self._path(controller, "")
            parent.mkdir(mode=0o755, exist_ok=True)
            _write(parent / file, value)

    def names(self) -> set[str]:
        return set().union(*(_directories(self._path(controller, "")) for controller in self._joined()))

    def create(self, name: str, limits: Limits) -> None:
        self.remove(name)  # what a crash left would keep its old limits
        for controller in self._joined():
            self._path(controller, name).mkdir(mode=0o755, parents=True)
        self.apply(name, limits)
        devices = self._path("devices", name)
        _write(devices / "devices.deny", "a")
        for rule in _DEVICES:
            _write(devices / "devices.allow", rule)

    def join(self, name: str, pid: int) -> None:
        for controller in self._joined():
            _write(self._path(controller, name) / "cgroup.procs", pid)

    def _joined(self) -> list[str]:
        extra = ["cpuacct"] if (self._root / "cpuacct").is_dir() and not (self._root / "cpuacct").is_symlink() else []
        return [*_CONTROLLERS, *extra]

    def apply(self, name: str, limits: Limits) -> None:
        wanted = limits.memory_mb * 1024 * 1024
        memory = self._path("memory", name)
        files = ["memory.limit_in_bytes"]
        if self.memory_and_swap():
            files.append("memory.memsw.limit_in_bytes")
        # memory <= memory+swap holds at every moment: so the outer one first when growing.
        growing = wanted > _number(memory / "memory.limit_in_bytes")
        for file in reversed(files) if growing else files:
            _write(memory / file, wanted)
        _write(self._path("pids", name) / "pids.max", limits.pids)
        _write(self._path("cpu", name) / "cpu.cfs_quota_us", _cpu_quota_us(limits))

    def freeze(self, name: str) -> None:
        switch = self._path("freezer", name) / "freezer.state"
        _write(switch, "FROZEN")
        _wait_for(iter(lambda: _read(switch) == "FROZEN", None), "freezing")

    def thaw(self, name: str) -> None:
        _write(self._path("freezer", name) / "freezer.state", "THAWED")

    def kill(self, name: str) -> None:
        _kill_listed(self._path("pids", name) / "cgroup.procs")
        with contextlib.suppress(OSError):
            self.thaw(name)  # a frozen process dies only when it is thawed

    def remove(self, name: str) -> None:
        for controller in os.listdir(self._root):
            if controller == _UNIFIED:
                # Hidden from the runtime, which then takes the place for one more controller and makes plain files.
                shutil.rmtree(self._path(controller, name), ignore_errors=True)
            else:
                _remove_tree(self._path(controller, name))

    def remove_parent(self) -> None:
        for controller in os.listdir(self._root):
            with contextlib.suppress(OSError):
                _remove_tree(self._root / controller / self.parent)

    def unwritten_bytes(self) -> int:
        return _sum(_counters(self._path("memory", "") / "memory.stat"), *self._UNWRITTEN)

    def stats(self, name: str) -> Stats:
        memory = self._path("memory", name)
        cpu_ns = _number(self._path("cpuacct", name) / "cpuacct.usage")
        counters = _counters(memory / "memory.stat")
        return Stats(
            memory_bytes=_number(memory / "memory.usage_in_bytes"),
            cache_bytes=counters.get("total_cache", 0),
            unwritten_bytes=_sum(counters, *self._UNWRITTEN),
            cpu_s=cpu_ns / 1e9,
            processes=_number(self._path("pids", name) / "pids.current"),
            out_of_memory_kills=_counters(memory / "memory.oom_control").get("oom_kill", 0),
        )


class CgroupsV2:
    """The unified hierarchy."""

    version = 2
    _UNWRITTEN = ("file_dirty", "file_writeback")

    def __init__(self, parent: str, root: Path = CGROUP_ROOT) -> None:
        self.parent = parent
        self._root = root

    def _path(self, name: str) -> Path:
        return self._root / self.parent / name

    def oci_path(self, name: str) -> str:
        return f"/{self.parent}/{name}"

    def missing(self) -> list[str]:
        try:
            present = _read(self._root / "cgroup.controllers").split()
        except OSError:
            present = []
        return [name for name in _V2_CONTROLLERS if name not in present]

    def memory_and_swap(self) -> bool:
        return True  # memory.swap.max is absent only where there is no swap to use

    def bound_all(self, memory_bytes: int, pids: int) -> None:
        parent = self._path("")
        parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _write(self._root / "cgroup.subtree_control", " ".join(f"+{each}" for each in _V2_CONTROLLERS))
        _write(parent / "memory.max", memory_bytes)
        _write(parent / "pids.max", pids)

    def names(self) -> set[str]:
        return _directories(self._path(""))

    def create(self, name: str, limits: Limits) -> None:
        self.remove(name)
        controllers = " ".join(f"+{name}" for name in _V2_CONTROLLERS)
        self._path(name).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        for directory in (self._root, self._root / self.parent):
            _write(directory / "cgroup.subtree_control", controllers)
        self._path(name).mkdir(mode=0o755)
        self.apply(name, limits)

    def join(self, name: str, pid: int) -> None:
        _write(self._path(name) / "cgroup.procs", pid)

    def apply(self, name: str, limits: Limits) -> None:
        group = self._path(name)
        _write(group / "memory.max", limits.memory_mb * 1024 * 1024)
        with contextlib.suppress(FileNotFoundError):
            _write(group / "memory.swap.max", 0)
        _write(group / "pids.max", limits.pids)
        _write(group / "cpu.max", f"{_cpu_quota_us(limits)} {CPU_PERIOD_US}")

    def freeze(self, name: str) -> None:
        group = self._path(name)
        _write(group / "cgroup.freeze", 1)
        _wait_for(iter(lambda: _counters(group / "cgroup.events").get("frozen") == 1, None), "freezing")

    def thaw(self, name: str) -> None:
        _write(self._path(name) / "cgroup.freeze", 0)

    def kill(self, name: str) -> None:
        group = self._path(name)
        try:
            _write(group / "cgroup.kill", 1)
        except FileNotFoundError:  # before Linux 5.14, or no such group
            _kill_listed(group / "cgroup.procs")

    def remove(self, name: str) -> None:
        _remove_tree(self._path(name))

    def remove_parent(self) -> None:
        with contextlib.suppress(OSError):
            _remove_tree(self._root / self.parent)

    def unwritten_bytes(self) -> int:
        return _sum(_counters(self._path("") / "memory.stat"), *self._UNWRITTEN)

    def stats(self, name: str) -> Stats:
        group = self._path(name)
        counters = _counters(group / "memory.stat")
        return Stats(
            memory_bytes=_number(group / "memory.current"),
            cache_bytes=counters.get("file", 0),
            unwritten_bytes=_sum(counters, *self._UNWRITTEN),
            cpu_s=_counters(group / "cpu.stat").get("usage_usec", 0) / 1e6,
            processes=_number(group / "pids.current"),
            out_of_memory_kills=_counters(group / "memory.events").get("oom_kill", 0),
        )


def detect(parent: str, root: Path = CGROUP_ROOT) -> Cgroups:
    """Whichever version holds the controllers on this machine."""
    return CgroupsV2(parent, root) if (root / "cgroup.controllers").exists() else CgroupsV1(parent, root)
