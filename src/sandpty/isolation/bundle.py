"""From what a sandbox shall be to the OCI runtime's config.json. Pure.

Layout: opencontainers/runtime-spec 1.0. Every line here was attacked in the labs; tests/security holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sandpty.isolation.cgroup import CPU_PERIOD_US
from sandpty.isolation.idmap import IdRange
from sandpty.wire.verbs import Limits

AGENT_PATH = "/run/.sandpty/agent"
BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"
PTYS_MAX = 256  # per sandbox; the host has 3,071 for all of them together
DEV_BYTES = 1024 * 1024  # /dev holds links and directories only
MESSAGE_QUEUE_BYTES = 819_200  # the kernel's default for /dev/mqueue
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# All within the sandbox's own user namespace. No NET_ADMIN: the guest cannot change its routes. No SYS_ADMIN,
# SYS_PTRACE ...
CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/cgroup",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything that differs between sandboxes or machines. Paths are the host's."""

    hostname: str
    root: str
    agent: str
    boot_id_file: str | None  # None: it is mounted later, because the runtime mounts nothing below /proc
    cgroups_path: str
    limits: Limits
    ids: IdRange
    user_namespace: str
    network_namespace: str
    open_files: int
    limit_swap: bool
    files_root: str = ""
    seccomp: dict[str, Any] | None = None  # the profile, unless it is given compiled
    seccomp_bpf: str | None = None  # compiled, base64 (crun only)


def _tmpfs(destination: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": ["nosuid", *options]}


def _bind(destination: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": ["bind", "ro", "nosuid", *options]}


def _mounts(spec: Spec) -> list[dict[str, Any]]:
    shm_bytes = spec.limits.memory_mb * 1024 * 1024 // 2  # counts as the sandbox's memory too
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        _tmpfs("/dev", "tmpfs", "strictatime", "mode=755", f"size={DEV_BYTES}"),
        _tmpfs("/dev/pts", "devpts", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5", f"max={PTYS_MAX}"),
        _tmpfs("/dev/shm", "tmpfs", "nodev", "mode=1777", f"size={shm_bytes}"),
        _tmpfs("/dev/mqueue", "mqueue", "noexec", "nodev"),
        _tmpfs("/sys", "sysfs", "noexec", "nodev", "ro"),
        _bind(AGENT_PATH, spec.agent, "nodev"),
    ]
    if spec.boot_id_file is not None:
        mounts.append(_bind(BOOT_ID_PATH, spec.boot_id_file, "nodev", "noexec"))
    return mounts


def _resources(spec: Spec) -> dict[str, Any]:
    memory_bytes = spec.limits.memory_mb * 1024 * 1024
    memory = {"limit": memory_bytes}
    if spec.limit_swap:
        memory["swap"] = memory_bytes  # memory and swap together
    quota_us = max(1000, int(spec.limits.cpu_count * CPU_PERIOD_US))
    return {
        "devices": [{"allow": False, "access": "rwm"}],
        "memory": memory,
        "pids": {"limit": spec.limits.pids},
        "cpu": {"quota": quota_us, "period": CPU_PERIOD_US},
    }


def config(spec: Spec) -> dict[str, Any]:
    """The config.json of a sandbox."""
    mapping = [{"containerID": 0, "hostID": spec.ids.base, "size": spec.ids.count}]
    linux: dict[str, Any] = {
        "namespaces": [
            {"type": "pid"},
            {"type": "ipc"},
            {"type": "uts"},
            {"type": "mount"},
            {"type": "cgroup"},
            {"type": "user", "path": spec.user_namespace},
            {"type": "network", "path": spec.network_namespace},
        ],
        "uidMappings": mapping,
        "gidMappings": mapping,
        "cgroupsPath": spec.cgroups_path,
        "resources": _resources(spec),
        "maskedPaths": list(MASKED),
        "readonlyPaths": list(READ_ONLY),
    }
    if spec.seccomp is not None:
        linux["seccomp"] = spec.seccomp
    return {
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "root": {"path": spec.root, "readonly": False},
        "process": _process(spec),
        "mounts": _mounts(spec),
        "linux": linux,
        "annotations": {"run.oci.seccomp_bpf_data": spec.seccomp_bpf} if spec.seccomp_bpf else {},
    }


def _process(spec: Spec) -> dict[str, Any]:
    capabilities = list(CAPABILITIES)
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": [AGENT_PATH, "3", *([spec.files_root] if spec.files_root else [])],
        "env": [f"PATH={_PATH}", "HOME=/root"],
        "cwd": "/",
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        "noNewPrivileges": False,  # sudo works inside; root inside is nobody outside
        "rlimits": [
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_NOFILE", "soft": spec.open_files, "hard": spec.open_files},
            {"type": "RLIMIT_MSGQUEUE", "soft": MESSAGE_QUEUE_BYTES, "hard": MESSAGE_QUEUE_BYTES},
        ],
    }
