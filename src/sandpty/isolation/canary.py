"""A sandbox that is started before any other, to see whether what is promised holds on this machine."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path

from sandpty.isolation.agent_call import output_of
from sandpty.isolation.driver import Driver, Layer, Plan, Started, TierRefusedError
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import FrameError
from sandpty.wire.verbs import Limits

CANARY_TIMEOUT_S = 15.0
_LIMITS = Limits(cpu_count=1.0, memory_mb=64, disk_mb=64, pids=64)
_READ = (
    "/proc/self/uid_map",
    "/proc/self/status",
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/kernel/hostname",
    "/proc/1/comm",
    "/proc/net/dev",
)
# What the sandbox must not be able to do, each a shell line that must fail.
_FORBIDDEN = {
    "mount a file system": "mount -t tmpfs none /mnt",
    "make a user namespace": "unshare -U true",
    "write the host's core_pattern": "echo x > /proc/sys/kernel/core_pattern",
    "make a block device": "mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk",
}


async def examine(driver: Driver, layers: Sequence[Layer], directory: Path) -> dict[str, str]:
    """What was found. Raises TierRefusedError when anything that is promised does not hold; no_space."""
    shutil.rmtree(directory, ignore_errors=True)
    os.mkdir(directory, 0o700)
    slot = await driver.reserve()
    plan = Plan(f"canary-{os.urandom(4).hex()}", directory, tuple(layers), slot, _LIMITS, False, str(uuid.uuid4()))
    path = str(directory / "agent.sock")
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(8)
            try:
                started = await driver.start(plan, listener)
            except SandptyError as error:
                if error.reason.name == "no_space":
                    raise  # it says nothing about the isolation
                raise TierRefusedError(f"isolation `{driver.name}` does not work here: {error}") from error
        try:
            return await _look(driver, plan, started, path)
        except (OSError, FrameError) as error:
            raise TierRefusedError(f"isolation `{driver.name}`: the canary does not answer ({error})") from error
        finally:
            await driver.stop(plan, started)
    finally:
        await driver.destroy(plan)
        shutil.rmtree(directory, ignore_errors=True)


def _namespaces(pid: int | str) -> dict[str, str]:
    kinds = ("user", "pid", "net", "mnt", "ipc", "uts")
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds}


async def _look(driver: Driver, plan: Plan, started: Started, path: str) -> dict[str, str]:
    faults: list[str] = []
    ours, theirs = _namespaces("self"), _namespaces(started.pid)
    faults += [f"the {kind} namespace is the host's" for kind in ours if ours[kind] == theirs[kind]]
    texts = await _read_files(path)
    uid_map = texts["/proc/self/uid_map"].split()
    if len(uid_map) != 3 or uid_map[0] != "0" or uid_map[1] == "0":
        faults.append(f"uids are not shifted ({' '.join(uid_map)})")
    if "Seccomp:\t2" not in texts["/proc/self/status"]:
        faults.append("seccomp is not active")
    if texts["/proc/sys/kernel/random/boot_id"].strip() != plan.boot_id:
        faults.append("the boot id is the host's")
    interfaces = [line.split(":")[0].strip() for line in texts["/proc/net/dev"].splitlines()[2:]]
    if set(interfaces) - {"lo", "eth0"}:
        faults.append(f"network interfaces of the host are visible ({', '.join(interfaces)})")
    faults += await _try_forbidden(path)
    faults += await _check_limits(driver, plan, started)
    faults += await _check_freeze(driver, plan, path)
    if faults:
        raise TierRefusedError(f"isolation `{driver.name}` does not hold here: {'; '.join(faults)}")
    return {"uids": f"0 -> {uid_map[1]} and up, another range for each sandbox", "canary": "all checks passed"}


async def _read_files(path: str) -> dict[str, str]:
    texts = {}
    for name in _READ:
        code, texts[name] = await output_of(path, ["cat", name], timeout_s=CANARY_TIMEOUT_S)
        if code != 0:
            raise FrameError(f"cat {name} gives {code}: {texts[name][:200]}")
    return texts


async def _try_forbidden(path: str) -> list[str]:
    lines = list(_FORBIDDEN.items())
    script = "".join(f"({line}) >/dev/null 2>&1 && echo {number};" for number, (_, line) in enumerate(lines))
    _, text = await output_of(path, ["sh", "-c", script], timeout_s=CANARY_TIMEOUT_S)
    return [f"the guest can {lines[int(word)][0] if word.isdigit() else word}" for word in text.split()]


async def _check_limits(driver: Driver, plan: Plan, started: Started) -> list[str]:
    faults = []
    stats = driver.stats(plan, started)
    if not 0 < stats.processes <= plan.limits.pids or not 0 < stats.memory_bytes <= plan.limits.memory_mb << 20:
        faults.append("cgroups do not count the sandbox")
    if resource.prlimit(started.pid, resource.RLIMIT_CORE) != (0, 0):
        faults.append("core dumps are possible")
    return faults


async def _check_freeze(driver: Driver, plan: Plan, path: str) -> list[str]:
    await driver.freeze(plan)
    try:
        await output_of(path, ["true"], timeout_s=0.05)
        return ["a frozen sandbox runs on"]
    except TimeoutError:
        return []
    finally:
        await driver.thaw(plan)
        await asyncio.sleep(0)
