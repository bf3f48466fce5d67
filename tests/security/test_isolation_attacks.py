"""Root inside a sandbox attacks the host. Everything here must fail, and the host must not notice."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.component.supervisor_peer import Peer, Supervised, attempt, group, number, program, run, supervised
from tests.waiting import until

EPERM, EACCES, ENOSYS, EAFNOSUPPORT = 1, 13, 38, 97


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def host() -> AsyncIterator[Supervised]:
    """One supervisor for this module."""
    async with supervised() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def peer(host: Supervised) -> AsyncIterator[Peer]:
    """A connection that watches."""
    async with host.peer() as connected:
        await connected.call("watch")
        yield connected


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guest(peer: Peer) -> AsyncIterator[dict[str, Any]]:
    """One sandbox for the attacks that do not end it."""
    sandbox = await peer.create(limits={"memory_mb": 256, "pids": 128, "disk_mb": 64})
    yield sandbox
    await peer.call("kill", id=sandbox["id"])


async def syscall(guest: dict[str, Any], number: int, *args: object) -> int:
    """The errno of a system call that root makes inside; 0 when it succeeded."""
    words = ", ".join(str(arg) for arg in args)
    script = (
        "import ctypes; l = ctypes.CDLL(None, use_errno=True); "
        f"r = l.syscall({number}{', ' + words if words else ''}); print(ctypes.get_errno() if r < 0 else 0)"
    )
    return int(await run(guest, f'python3 -c "{script}"'))


@contextmanager
def victim() -> Iterator[int]:
    """A process of the host."""
    process = subprocess.Popen(["sleep", "600"])
    try:
        yield process.pid
        assert process.poll() is None, "the host's process did not survive"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "command",
    [
        "mknod /tmp/vda b 254 0 && head -c 1 /tmp/vda",
        "mknod /dev/vda b 254 0 && head -c 1 /dev/vda",
        "mknod /dev/mem c 1 1 && head -c 1 /dev/mem",
        "mknod /dev/kmsg c 1 11 && head -c 1 /dev/kmsg",
        "ls /dev/vd* /dev/sd* /dev/nvme* /dev/loop* /dev/kvm /dev/fuse",
        "mount -t tmpfs none /mnt",
        "mount -t proc proc /mnt",
        "mount --bind / /mnt",
        "mount -o remount,rw /proc/sys",
        "mount -o remount,rw /sys",
        "umount /proc/sys",
        "umount /sys/firmware",
        "mount -t cgroup -o memory none /mnt",
        "mount -t cgroup2 none /mnt",
        "mount -t overlay overlay -o lowerdir=/,upperdir=/tmp,workdir=/tmp /mnt",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo 1 > /proc/sys/kernel/sysrq",
        "echo b > /proc/sysrq-trigger",
        "echo x > /proc/sys/kernel/random/boot_id",
        "echo x > /proc/sys/kernel/modprobe",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo -1000 > /proc/self/oom_score_adj",
        "head -c 1 /proc/kcore",
        "head -c 1 /proc/kmsg",
        "dmesg",
        "test -s /proc/keys",
        "test -s /proc/timer_list",
        "cat /proc/1/environ",
        "ls -l /proc/1/exe /proc/1/fd/3",
        "echo x > /proc/1/mem",
        "echo x >> /run/.sandpty/agent",
        "rm -f /run/.sandpty/agent",
        "unshare -U true",
        "unshare -m true",
        "unshare -n true",
        "unshare -p -f true",
        "unshare -C true",
        "nsenter -t 1 -m true",
        "nsenter -t 1 -n true",
        "chroot /proc/1/root true",
        "ip link add dummy0 type dummy",
        "ip link set eth0 down",
        "ip addr add 10.0.0.1/32 dev eth0",
        "ip route add 192.0.2.0/24 dev eth0",
        "iptables -L",
        "nft list tables",
        "hostname other",
        "date -s 2001-01-01",
        "sysctl -w kernel.hostname=x",
        "modprobe dummy",
        "losetup -f",
        "reboot -f",
        "ls /sys/fs/cgroup/memory",
        "touch /sys/kernel/x",
        "cat /sys/kernel/debug/sched/debug",
        "perf stat true",
        "renice -n -5 $$",
        "chrt -f 50 true",
        "ulimit -n 1000000",
        "ulimit -c unlimited",
        "cat /etc/sandpty /var/lib/sandpty/api_key",
    ],
)
async def test_root_inside_cannot(guest: dict[str, Any], command: str) -> None:
    """Each of these commands fails."""
    code, text = await attempt(guest, f"({command}) 2>&1")
    assert code != 0, f"{command} succeeded: {text}"


@pytest.mark.parametrize(
    ("name", "number", "args"),
    [
        ("unshare(NEWUSER)", 272, [0x10000000]),
        ("setns", 308, [0, 0]),
        ("mount", 165, [0, 0, 0, 0, 0]),
        ("pivot_root", 155, [0, 0]),
        ("keyctl", 250, [0, 0, 0, 0, 0]),
        ("add_key", 248, [0, 0, 0, 0, 0]),
        ("request_key", 249, [0, 0, 0, 0]),
        ("bpf", 321, [0, 0, 0]),
        ("perf_event_open", 298, [0, 0, 0, 0, 0]),
        ("userfaultfd", 323, [0]),
        ("io_uring_setup", 425, [1, 0]),
        ("open_by_handle_at", 304, [0, 0, 0]),
        ("init_module", 175, [0, 0, 0]),
        ("finit_module", 313, [0, 0, 0]),
        ("kexec_load", 246, [0, 0, 0, 0]),
        ("syslog", 103, [3, 0, 0]),
        ("open_tree", 428, [0, 0, 0]),
        ("move_mount", 429, [0, 0, 0, 0, 0]),
        ("fsopen", 430, [0, 0]),
        ("quotactl", 179, [0, 0, 0, 0]),
        ("reboot", 169, [0, 0, 0, 0]),
        ("clone(NEWUSER)", 56, [0x10000000 | 17, 0, 0, 0, 0]),
        ("clone(NEWNS)", 56, [0x00020000 | 17, 0, 0, 0, 0]),
        ("clone3", 435, [0, 0]),
    ],
)
async def test_a_forbidden_system_call_fails(guest: dict[str, Any], name: str, number: int, args: list[int]) -> None:
    """EPERM or ENOSYS from the filter, before the kernel looks at the arguments."""
    assert await syscall(guest, number, *args) in (EPERM, ENOSYS), name


@pytest.mark.parametrize("family", [3, 4, 9, 17, 18, 21, 29, 31, 38, 40, 44])
async def test_unusual_socket_families_are_closed(guest: dict[str, Any], family: int) -> None:
    """AF_PACKET, AF_ALG, AF_VSOCK, AF_CAN, AF_XDP ...: code that a sandbox does not need."""
    assert await syscall(guest, 41, family, 2, 0) == EAFNOSUPPORT


async def test_no_32_bit_entry(guest: dict[str, Any]) -> None:
    """int 0x80 would reach system calls that the filter does not know; the process is refused or killed."""
    code = "b8140000 00cd80c3".replace(" ", "")  # mov eax, 20 (getpid); int 0x80; ret
    script = (
        "import ctypes, mmap; m = mmap.mmap(-1, 4096, prot=7); "
        f"m.write(bytes.fromhex('{code}')); "
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m))); print(f())"
    )
    status, text = await attempt(guest, f'python3 -c "{script}"')
    assert status != 0 or int(text) < 0


async def test_host_processes_are_out_of_reach(guest: dict[str, Any]) -> None:
    """Neither seen nor signalled nor traced."""
    with victim() as pid:
        code, _ = await attempt(guest, f"ls /proc/{pid} && readlink /proc/{pid}/exe | grep sleep")
        assert code != 0
        script = "for p in $(seq 2 40000); do [ $p = $$ ] || [ $p = $PPID ] || kill -0 $p 2>/dev/null && echo $p; done"
        seen = (await run(guest, script + "; true")).split()
        assert len(seen) < 20
        assert (await attempt(guest, f"kill -9 {pid}"))[0] != 0


async def test_no_path_of_the_host_is_visible(host: Supervised, guest: dict[str, Any]) -> None:
    """Mounts, the agent's links and the command line tell nothing of where things lie outside."""
    text = await run(guest, "cat /proc/self/mountinfo /proc/self/cgroup; ls -la / /run/.sandpty; cat /proc/1/cmdline")
    assert str(host.path) not in text
    assert "/work" not in text
    assert f"sandpty-{host.tag}" not in text
    for path in ("/work", "/root/.ssh", "/home/claude", "/etc/ssh", "/var/lib/dpkg/info", "/var/lib/sandpty"):
        assert (await attempt(guest, f"ls {path}"))[0] != 0, path
    assert (await run(guest, "ls -A /root /usr/local /home")).split().count(".ssh") == 0


async def test_secrets_of_the_host_are_not_in_the_guests_etc(guest: dict[str, Any]) -> None:
    """shadow is the guest's own; nothing of the supervisor's environment leaks into a process."""
    shadow = await run(guest, "cat /etc/shadow")
    assert all(line.split(":")[1] == "*" for line in shadow.split())
    environment = (await run(guest, "env")).splitlines()
    assert {line.partition("=")[0] for line in environment} <= {
        "PATH", "HOME", "USER", "LOGNAME", "PWD", "SHLVL", "_", "OLDPWD",
    }  # fmt: skip


async def test_a_guest_sees_no_interface_of_the_host(guest: dict[str, Any]) -> None:
    """lo and its own eth0, in /proc and in /sys."""
    names = (await run(guest, "ls /sys/class/net; ip -o link | cut -d: -f2 | cut -d@ -f1")).split()
    assert set(names) == {"lo", "eth0"}


def uids_of(pid: int) -> set[int]:
    """Real, effective, saved and file system uid of a process of the host."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return set(map(int, next(line for line in lines if line.startswith("Uid:")).split()[1:]))


async def test_setuid_files_of_the_guest_are_nobodys_on_the_host(host: Supervised, guest: dict[str, Any]) -> None:
    """What root inside owns belongs to a high uid outside."""
    await run(guest, "cp /bin/bash /root/evil && chmod 4755 /root/evil")
    uid = int((await run(guest, "cat /proc/self/uid_map")).split()[1])
    assert uid >= 200_000
    assert os.stat(f"/proc/{guest['pid']}").st_uid in (0, uid)  # 0: not dumpable
    assert uids_of(guest["pid"]) == {uid}


async def test_a_fork_bomb_stays_within_the_limit(peer: Peer) -> None:
    """pids holds it; the sandbox can still be killed, the host forks on."""
    sandbox = await peer.create(limits={"pids": 64})
    await attempt(sandbox, "(bomb() { bomb | bomb & }; bomb) >/dev/null 2>&1; sleep 0.3; true")
    assert number(group(sandbox["pid"], "pids") / "pids.max") == 64
    assert number(group(sandbox["pid"], "pids") / "pids.current") <= 64
    assert program("true").returncode == 0
    await peer.call("kill", id=sandbox["id"])


async def test_a_memory_bomb_is_killed_and_the_sandbox_lives(peer: Peer) -> None:
    """The eater dies of SIGKILL; the agent and the next command do not."""
    sandbox = await peer.create(limits={"memory_mb": 128})
    code, _ = await attempt(sandbox, "python3 -c 'x = bytearray(1 << 30)'")
    assert code == 137
    assert await run(sandbox, "echo alive") == "alive\n"
    code, _ = await attempt(sandbox, "head -c 300M /dev/zero > /dev/shm/x")
    assert code != 0
    await run(sandbox, "rm -f /dev/shm/x; echo alive")
    await peer.call("kill", id=sandbox["id"])


async def test_a_full_disk_inside_is_the_guests_own(host: Supervised, guest: dict[str, Any]) -> None:
    """Writing stops at the bound, in every directory; the host's disk does not fill."""
    code, text = await attempt(guest, "head -c 200M /dev/zero > /root/x; df -m / | tail -1; rm /root/x")
    assert "No space left" in text
    for directory in ("/tmp", "/usr", "/var/tmp", "/dev", "/run"):
        code, _ = await attempt(guest, f"head -c 200M /dev/zero > {directory}/x; s=$?; rm -f {directory}/x; exit $s")
        assert code != 0, directory
    image = host.data.sandboxes / guest["id"] / "disk.img"
    assert image.stat().st_blocks * 512 <= 70 << 20


async def test_a_flood_of_files_is_bounded(guest: dict[str, Any]) -> None:
    """Inodes run out inside, not outside; afterwards all is well."""
    script = (
        "import os\nos.mkdir('/tmp/f')\n"
        "try:\n for i in range(200000): os.mknod(f'/tmp/f/{i}')\nexcept OSError as e: print(e.errno)"
    )
    assert int(await run(guest, f'python3 -c "{script}"; rm -rf /tmp/f', timeout_s=60)) == 28


async def test_a_flood_of_terminals_is_bounded(guest: dict[str, Any]) -> None:
    """devpts has room for 256; the host keeps its own."""
    script = "import os\nn=0\ntry:\n while True: os.open('/dev/ptmx', 2); n += 1\nexcept OSError: print(n)"
    assert 200 <= int(await run(guest, f'ulimit -n 5000; python3 -c "{script}"')) <= 256
    master, slave = os.openpty()
    os.close(master)
    os.close(slave)


async def test_root_inside_cannot_end_the_agent(guest: dict[str, Any]) -> None:
    """PID 1 does not hear its own namespace's signals, is not traceable, and its file is read-only."""
    await attempt(guest, "kill -9 1; kill -STOP 1; kill -SEGV 1; gdb -p 1 </dev/null")
    assert await syscall(guest, 101, 16, 1, 0, 0) in (EPERM, EACCES)  # PTRACE_ATTACH
    assert await syscall(guest, 310, 1, 0, 0, 0, 0, 0) in (EPERM, EACCES, 0)  # process_vm_readv of nothing
    assert await run(guest, "echo alive") == "alive\n"


async def test_deep_trees_and_strange_names_are_removed_with_the_sandbox(host: Supervised, peer: Peer) -> None:
    """10,000 levels, links to host paths, immutable-looking names: kill answers, nothing is left, the host is whole."""
    sandbox = await peer.create()
    script = (
        "import os\nos.chdir('/tmp')\nfor i in range(3000): os.mkdir('d'); os.chdir('d')\n"
        "os.symlink('/etc/passwd', 'link')\nopen('-rf', 'w'); open('new\\nline', 'w')"
    )
    await run(sandbox, f"python3 - <<'E'\n{script}\nE\nln -s / /root/slash")
    await peer.call("kill", id=sandbox["id"])
    assert not (host.data.sandboxes / sandbox["id"]).exists()
    await until(lambda: not list((host.path / "trash").iterdir()), 10, "the trash")
    assert program("head", "-1", "/etc/passwd").returncode == 0


async def test_replaced_files_in_the_guest_do_not_fool_the_host_on_resume(peer: Peer) -> None:
    """Root inside turns /etc and the agent's directory into links to elsewhere; the next boot does not follow them."""
    sandbox = await peer.create()
    await run(sandbox, "rm -f /etc/hosts && ln -s /root/target /etc/hosts; mv /etc/hostname /tmp; mkdir /etc/hostname")
    await peer.call("pause", id=sandbox["id"], memory=False)
    resumed = await peer.call("resume", id=sandbox["id"], end_at=sandbox["end_at"])
    assert (await attempt(resumed, "test -e /root/target"))[0] != 0
    assert await run(resumed, "readlink /etc/hosts") == "/root/target\n"
    await peer.call("kill", id=sandbox["id"])
