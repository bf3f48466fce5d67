"""The OCI driver: crun (default) or runc with user namespace, id-mapped overlay, strict seccomp and limits.

Start: disk image and overlay (4 ms), `crun run --detach` (7 ms); namespaces, veth and control groups are prepared
before. The agent listens on a socket that it gets as descriptor 3. What follows (freezing, killing, accounting) needs
no runtime.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sandpty import config, disk_room
from sandpty.config import DataDir
from sandpty.isolation import (
    bundle,
    canary,
    cgroup,
    disk,
    process_table,
    program,
    seccomp,
    syscalls,
)
from sandpty.isolation.background import Background
from sandpty.isolation.copies import Copies
from sandpty.isolation.driver import Copy, GuestNetwork, Layer, Plan, Started, Stats, TierRefusedError
from sandpty.isolation.failures import failure
from sandpty.isolation.idmap import range_of, tag_of
from sandpty.isolation.namespaces import Launcher, Namespaces
from sandpty.isolation.network import Network
from sandpty.isolation.outward import Outward
from sandpty.isolation.runtimes import Runtime, last_words
from sandpty.isolation.slots import Prepared, Slots, group_of
from sandpty.isolation.spares import Spares
from sandpty.isolation.stage import Stage
from sandpty.isolation.volumes import Volumes
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Limits

log = logging.getLogger(__name__)
HOST_SHARE = 0.1  # of memory and process ids, kept for the host itself
HOST_MEMORY_MIN_BYTES = 512 * 1024 * 1024
OPEN_FILES_MAX = 1_048_576


class OciDriver:
    """Sandboxes by an OCI runtime."""

    isolated = True

    def __init__(self, runtime: Runtime, data: DataDir, agent: Path, background: Background) -> None:
        self.name = runtime.name
        self._runtime = runtime
        self._data = data
        self._agent = agent
        self._background = background
        self._tag = tag_of(data.root)
        self._state = data.root / runtime.name
        self._cgroups = cgroup.detect(f"sandpty-{self._tag}")
        self._network = Network(self._tag, data.root / "network")
        self._disk = disk.Disk(data.root / "blank")
        stage = Path("/run") / f"sandpty-{self._tag}"
        self._own_groups = runtime.name == "crun"  # the others must make the groups themselves
        self._spares = Spares(self._disk, data.root / "spare", stage, self._tag)
        self._slots = Slots(
            self._tag,
            network=self._network,
            cgroups=self._cgroups,
            spares=self._spares,
            background=background,
            launchers=self._own_groups,
        )
        self._copies = Copies(self._tag, self._disk, self._slots, stage / "copies")
        self._volumes = Volumes(self._disk, self._slots, stage)
        self._stage = Stage(stage, self._tag, self._disk, self._copies, self._volumes)
        self.outward = Outward(self._network, self._slots, data)
        self._profile: dict[str, Any] | None = None
        self._bpf: str | None = None

    # --- what all sandboxes share ---

    async def open(self) -> None:
        if missing := self._cgroups.missing():
            raise TierRefusedError(f"cgroup controllers are missing: {', '.join(missing)}")
        self._state.mkdir(mode=0o700, exist_ok=True)
        try:
            self._profile = seccomp.profile()
            self._bpf = seccomp.compiled(self._profile) if self.name == "crun" else None
        except (ValueError, OSError) as error:
            raise TierRefusedError(str(error)) from error
        try:
            self._cgroups.bound_all(*_bounds_of_host())
            self._stage.open(self._agent)
        except OSError as error:
            raise TierRefusedError(f"no control groups or private mounts: {error}") from error
        await asyncio.to_thread(self._disk.open, self._stage.probe)
        await asyncio.to_thread(self._network.open)
        await self.outward.open()
        self._spares.open()

    async def probe(self, layers: Sequence[Layer]) -> dict[str, str]:
        await asyncio.to_thread(self._end_strays)
        place = self._data.root if disk_room.has_room(self._data.root) else self._stage.path
        found = await canary.examine(self, layers, place / "canary")
        await self.outward.adopted_all()
        self._slots.refill()
        return {
            "runtime": f"{self._runtime.name} {self._runtime.version}",
            "isolation": "user, pid, network, mount, ipc, uts and cgroup namespaces; seccomp; own root file system",
            "limits": f"memory, pids, cpu by cgroup v{self._cgroups.version}"
            + ("" if self._cgroups.memory_and_swap() else " (swap is not limited)"),
            "disk quota": self._disk.detail,
            "network": self._network.detail,
            "seccomp": "strict profile" + (", compiled" if self._bpf else ""),
            **found,
        }

    def _end_strays(self) -> None:
        """What an earlier supervisor had begun, and no sandbox has. All that are there were adopted."""
        for name in self._cgroups.names() - {group_of(slot) for slot in self._slots.used}:
            self._cgroups.kill(name)
            with contextlib.suppress(OSError):
                self._cgroups.remove(name)

    async def close(self, *, sandboxes_left: bool) -> None:
        await self._background.settle(config.STOP_TIMEOUT_S)  # slots being given back
        await self._slots.close()
        await self.outward.close(sandboxes_left=sandboxes_left)
        self._copies.close()
        if not sandboxes_left:
            await asyncio.to_thread(self._network.close)
            self._cgroups.remove_parent()
            self._stage.close()

    # --- start ---

    async def reserve(self) -> int:
        return self._slots.reserve()

    async def start(self, plan: Plan, listener: socket.socket) -> Started:
        prepared = await self._slots.prepared(plan.slot, plan.way_out, plan.rules)
        try:
            await self.outward.open_names(plan)
            await asyncio.to_thread(self._prepare, plan, prepared)
            if self._own_groups and plan.limits != Limits():
                self._cgroups.apply(group_of(plan.slot), plan.limits)
            started = await self._run(plan, listener, prepared)
            if not self._own_groups:
                # Before anybody knows the sandbox's socket: nothing of the guest runs yet that could interfere.
                source = str(self._stage.boot_id(plan))
                await asyncio.to_thread(syscalls.bind_inside, started.pid, source, bundle.BOOT_ID_PATH)
            return started
        except BaseException:
            await asyncio.shield(self._clean_up(plan))
            raise
        finally:
            prepared.close()
            self._stage.clear(plan)
            self._slots.refill()  # not earlier: both want the same kernel locks

    def _prepare(self, plan: Plan, prepared: Prepared) -> None:
        self._stage.prepare(plan, prepared, self._network.dns)
        (plan.directory / "config.json").write_text(
            json.dumps(self._config(plan, prepared.namespaces)), encoding="utf-8"
        )

    def _config(self, plan: Plan, namespaces: Namespaces) -> dict[str, Any]:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        fds = f"/proc/{os.getpid()}/fd"
        spec = bundle.Spec(
            hostname=plan.id,
            root=str(self._stage.root(plan)),
            agent=str(self._stage.agent),
            boot_id_file=str(self._stage.boot_id(plan)) if self._own_groups else None,
            cgroups_path=self._cgroups.oci_path(group_of(plan.slot)),
            limits=plan.limits,
            ids=range_of(self._tag, plan.slot),
            user_namespace=f"{fds}/{namespaces.user}",
            network_namespace=f"{fds}/{namespaces.network}",
            files_root=plan.files_root,
            open_files=OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX),
            limit_swap=self._cgroups.memory_and_swap(),
            seccomp=None if self._bpf else self._profile,
            seccomp_bpf=self._bpf,
        )
        return bundle.config(spec)

    async def _run(self, plan: Plan, listener: socket.socket, prepared: Prepared) -> Started:
        pid_file = plan.directory / "pid"
        pid_file.unlink(missing_ok=True)
        words = plan.directory / "runtime.log"
        argv = [self._runtime.path, "--root", str(self._state), "--log", str(words)]
        argv += ["--cgroup-manager=disabled"] if self._own_groups else []
        argv += ["run", "--detach", "--preserve-fds", "1", "--pid-file", str(pid_file)]
        argv += ["--bundle", str(plan.directory), plan.id]
        try:
            if prepared.launcher is not None:
                await self._launch(prepared.launcher, argv, listener)
            else:
                await program.run(argv, timeout_s=config.RUNTIME_TIMEOUT_S, fd3=listener.fileno())
        except TimeoutError as error:
            raise SandptyError("runtime_failed", str(error)) from error
        try:
            pid = int(pid_file.read_text(encoding="ascii"))
            return Started(pid, process_table.start_time(pid))
        except (OSError, ValueError):
            said = last_words(words)
            log.warning("%s fails for %s: %s", self.name, plan.id, said)
            for place in (self._stage.path, self._data.root):
                said = said.replace(str(place), "")
            raise SandptyError("runtime_failed", f"{self.name} fails: {said}") from None

    async def _launch(self, launcher: Launcher, argv: Sequence[str], listener: socket.socket) -> None:
        """Let the launcher become the runtime, and wait for its end; whether it succeeded, its pid file tells."""
        launcher.launch(argv, listener.fileno())
        ended = False
        try:
            ended = await program.readable(launcher.pidfd, config.RUNTIME_TIMEOUT_S)
        finally:
            if not ended:
                launcher.kill()
        if not ended:
            raise TimeoutError(f"{self.name} did not end within {config.RUNTIME_TIMEOUT_S:g} s")

    # --- while it runs ---

    async def apply(self, plan: Plan, started: Started) -> None:
        inside = self.network(plan, started)
        try:
            self._cgroups.apply(group_of(plan.slot), plan.limits)
            await self.outward.apply(plan, inside.fd)
        except (OSError, ValueError) as error:
            raise failure("limits cannot be applied", error) from error
        finally:
            os.close(inside.fd)

    async def freeze(self, plan: Plan) -> None:
        try:
            await asyncio.to_thread(self._cgroups.freeze, group_of(plan.slot))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._cgroups.thaw(group_of(plan.slot))
            raise failure("the sandbox does not freeze", error) from error

    async def thaw(self, plan: Plan) -> None:
        try:
            self._cgroups.thaw(group_of(plan.slot))
        except OSError as error:
            raise failure("the sandbox does not thaw", error) from error

    def network(self, plan: Plan, started: Started) -> GuestNetwork:
        try:
            fd = os.open(f"/proc/{started.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise SandptyError("sandbox_ended", f"sandbox {plan.id} has ended") from None
        if not process_table.is_alive(started):  # the pid may be somebody else's by now
            os.close(fd)
            raise SandptyError("sandbox_ended", f"sandbox {plan.id} has ended")
        return GuestNetwork(fd, str(self._network.link(plan.slot).address) if self._network.available else "")

    def stats(self, plan: Plan, started: Started) -> Stats:
        return replace(self._cgroups.stats(group_of(plan.slot)), disk_bytes=disk.used_bytes(plan.directory))

    def unwritten_bytes(self) -> int:
        return self._cgroups.unwritten_bytes()

    # --- copies ---

    async def copy(self, plan: Plan, started: Started, directory: Path) -> Copy:
        return await self._copies.copy(plan, started, directory)

    async def take(self, plan: Plan, directory: Path) -> Copy:
        return await self._copies.take(plan, directory)

    async def merge(self, copies: Sequence[Copy], directory: Path, *, layers: int, disk_mb: int) -> Copy:
        return await self._copies.merge(copies, directory, layers=layers, disk_mb=disk_mb)

    async def sync_copy(self, directory: Path) -> None:
        await self._copies.sync(directory)

    def forget_copy(self, directory: Path) -> None:
        self._copies.forget(directory)

    # --- volumes ---

    async def make_volume(self, directory: Path, disk_mb: int) -> None:
        try:
            await asyncio.to_thread(self._volumes.make, directory, disk_mb)
        except (OSError, subprocess.SubprocessError) as error:
            raise failure("the volume cannot be made", error) from error

    async def grow_volume(self, directory: Path, disk_mb: int) -> None:
        try:
            await asyncio.to_thread(self._disk.grow, directory, disk_mb)
        except (OSError, subprocess.SubprocessError) as error:
            raise failure("the volume cannot grow", error) from error

    # --- end ---

    async def stop(self, plan: Plan, started: Started) -> None:
        if started.pid:
            await self._kill(plan, started)
        await self._clean_up(plan)

    async def _kill(self, plan: Plan, started: Started) -> None:
        try:
            pidfd = process_table.open_pidfd(started)
        except ProcessLookupError:
            return
        except OSError as error:
            raise failure("the sandbox cannot be ended", error) from error
        try:
            # The death of PID 1 is the death of its pid namespace.
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            self._cgroups.kill(group_of(plan.slot))
            if not await program.readable(pidfd, config.STOP_TIMEOUT_S):
                raise SandptyError("runtime_failed", f"sandbox {plan.id} does not end")
        finally:
            os.close(pidfd)

    async def _clean_up(self, plan: Plan) -> None:
        """After the processes: groups, runtime state, mounts, network. Repeating it is fine."""
        self._stage.clear(plan)
        self._cgroups.kill(group_of(plan.slot))
        await self.outward.close_names(plan)
        try:
            await asyncio.to_thread(self._cgroups.remove, group_of(plan.slot))
        except OSError as error:
            log.warning("cgroups of %s stay: %s", plan.id, error)
        shutil.rmtree(self._state / plan.id, ignore_errors=True)

    async def destroy(self, plan: Plan) -> None:
        # Removing interfaces waits for the kernel; nobody waits for that.
        self._background.spawn(self._slots.give_back(plan.slot), f"give back slot {plan.slot}")

    async def adopt(self, plan: Plan, started: Started) -> bool:
        self._slots.taken(plan.slot)
        alive = started.pid > 0 and process_table.is_alive(started)
        if alive:
            await self.outward.adopt(plan)
        return alive


def _bounds_of_host() -> tuple[int, int]:
    """Bytes of memory and number of processes that all sandboxes together may have."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    pids = int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))
    kept = max(int(memory_bytes * HOST_SHARE), HOST_MEMORY_MIN_BYTES)
    return max(memory_bytes - kept, memory_bytes // 2), int(pids * (1 - HOST_SHARE))
