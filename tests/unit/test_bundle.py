"""The bundle says exactly what isolates a sandbox."""

from __future__ import annotations

from dataclasses import replace

from sandpty.isolation.bundle import AGENT_PATH, PTYS_MAX, Spec, config
from sandpty.isolation.idmap import IdRange
from sandpty.wire.verbs import Limits

SPEC = Spec(
    hostname="iabc",
    root="/stage/iabc/root",
    agent="/stage/agent",
    boot_id_file="/stage/iabc/boot_id",
    cgroups_path="/sandpty-0000/slot-1",
    limits=Limits(cpu_count=1.5, memory_mb=512, pids=100, disk_mb=100),
    ids=IdRange(200_000),
    user_namespace="/proc/1/fd/7",
    network_namespace="/proc/1/fd/8",
    open_files=4096,
    limit_swap=True,
)


def test_the_agent_is_the_first_process_and_gets_its_socket_as_descriptor_3() -> None:
    """Read-only, from outside the image."""
    made = config(SPEC)
    assert made["process"]["args"] == [AGENT_PATH, "3"]
    (mount,) = [mount for mount in made["mounts"] if mount["destination"] == AGENT_PATH]
    assert {"bind", "ro", "nosuid"} <= set(mount["options"])


def test_every_namespace_is_the_sandboxs_own() -> None:
    """User and network namespaces are the prepared ones, the others new."""
    namespaces = {item["type"]: item.get("path") for item in config(SPEC)["linux"]["namespaces"]}
    assert namespaces.pop("user") == "/proc/1/fd/7"
    assert namespaces.pop("network") == "/proc/1/fd/8"
    assert namespaces == dict.fromkeys(["pid", "ipc", "uts", "mount", "cgroup"])


def test_root_inside_is_nobody_outside() -> None:
    """uid 0 is mapped to the range's beginning, nothing else is mapped."""
    linux = config(SPEC)["linux"]
    mapping = [{"containerID": 0, "hostID": 200_000, "size": 65_536}]
    assert linux["uidMappings"] == linux["gidMappings"] == mapping


def test_no_capability_reaches_the_host_or_the_network() -> None:
    """What would let root inside mount, trace, load, or change routes is absent from every set."""
    for capabilities in config(SPEC)["process"]["capabilities"].values():
        forbidden = {"SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO", "MKNOD", "BPF", "SYS_BOOT"}
        assert not {f"CAP_{name}" for name in forbidden} & set(capabilities)


def test_limits_become_resources() -> None:
    """memory with swap, pids, cpu quota; swap only where it can be limited."""
    resources = config(SPEC)["linux"]["resources"]
    assert resources["memory"] == {"limit": 512 << 20, "swap": 512 << 20}
    assert resources["pids"] == {"limit": 100}
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000}
    assert resources["devices"] == [{"allow": False, "access": "rwm"}]
    assert "swap" not in config(replace(SPEC, limit_swap=False))["linux"]["resources"]["memory"]


def test_a_tiny_cpu_share_is_what_the_kernel_accepts() -> None:
    """The quota never falls below a millisecond."""
    small = replace(SPEC, limits=Limits(cpu_count=0.001))
    assert config(small)["linux"]["resources"]["cpu"]["quota"] == 1000


def test_terminals_shared_memory_and_files_are_bounded() -> None:
    """devpts max, /dev/shm size, open files, no core dumps."""
    made = config(SPEC)
    options = {mount["destination"]: mount.get("options", []) for mount in made["mounts"]}
    assert f"max={PTYS_MAX}" in options["/dev/pts"]
    assert f"size={256 << 20}" in options["/dev/shm"]
    limits = {limit["type"]: (limit["soft"], limit["hard"]) for limit in made["process"]["rlimits"]}
    assert limits["RLIMIT_CORE"] == (0, 0)
    assert limits["RLIMIT_NOFILE"] == (4096, 4096)


def test_the_hosts_secrets_in_proc_and_sys_are_masked() -> None:
    """kcore, keys, firmware; /proc/sys is read-only; there is no cgroup mount."""
    made = config(SPEC)
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware", "/sys/fs/cgroup"} <= set(made["linux"]["maskedPaths"])
    assert {"/proc/sys", "/proc/sysrq-trigger"} <= set(made["linux"]["readonlyPaths"])
    assert "cgroup" not in {mount.get("type") for mount in made["mounts"]}


def test_the_boot_id_is_the_sandboxs_own() -> None:
    """Bound by the runtime, or later where the runtime mounts nothing below /proc."""
    targets = {mount["destination"] for mount in config(SPEC)["mounts"]}
    assert "/proc/sys/kernel/random/boot_id" in targets
    later = {mount["destination"] for mount in config(replace(SPEC, boot_id_file=None))["mounts"]}
    assert later == targets - {"/proc/sys/kernel/random/boot_id"}


def test_the_filter_is_given_compiled_or_as_a_profile() -> None:
    """Exactly one of them."""
    compiled = config(replace(SPEC, seccomp_bpf="AAAA"))
    assert compiled["annotations"] == {"run.oci.seccomp_bpf_data": "AAAA"}
    assert "seccomp" not in compiled["linux"]
    written = config(replace(SPEC, seccomp={"defaultAction": "x"}))
    assert written["linux"]["seccomp"] == {"defaultAction": "x"}
    assert written["annotations"] == {}
