"""Volumes at the supervisor: directories that outlive sandboxes and are shared, and no way to the host."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sandpty.terminal.files import open_files
from sandpty.wire.errors import SandptyError
from tests.component.supervisor_peer import Peer, Supervised, attempt, run, supervised
from tests.waiting import until

OWNER = "team"
DISK_MB = 32


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def host() -> AsyncIterator[Supervised]:
    """One supervisor for this module, without warm sandboxes."""
    async with supervised() as running:
        yield running


@pytest_asyncio.fixture
async def peer(host: Supervised) -> AsyncIterator[Peer]:
    """A connection that watches; what the test made is removed after it."""
    async with host.peer() as connected:
        await connected.call("watch")
        yield connected
        await clean(connected)


async def clean(peer: Peer) -> None:
    """End every sandbox, delete every snapshot and volume."""
    for sandbox_id in await peer.ids():
        await peer.call("kill", id=sandbox_id)
    for snapshot in (await peer.call("snapshots"))["snapshots"]:
        await peer.call("delete_snapshot", id=snapshot["id"])
    for volume in (await peer.call("volumes"))["volumes"]:
        await peer.call("delete_volume", id=volume["id"])


async def made(peer: Peer, name: str = "data", **args: Any) -> str:
    """A new volume's id."""
    volume: str = (await peer.call("create_volume", name=name, owner=OWNER, **{"disk_mb": DISK_MB, **args}))["id"]
    return volume


async def mounting(peer: Peer, volume: str, path: str = "/mnt/data", **args: Any) -> dict[str, Any]:
    """A new sandbox with the volume."""
    mount = {"volume": volume, "path": path, "read_only": args.pop("read_only", False)}
    return await peer.create(owner=OWNER, volumes=[mount], **args)


async def refused(work: Any) -> tuple[str, str]:
    """Reason and message of the error that `work` ends with."""
    with pytest.raises(SandptyError) as error:
        await work
    return error.value.reason.name, error.value.message


def devices(host: Supervised) -> list[str]:
    """Loop devices of volumes, by what lies behind them."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it has just been freed
            found.append(path.read_text().strip())
    return [text for text in found if str(host.data.volumes.resolve()) in text]


async def test_sandboxes_share_a_volume_and_it_outlives_them(peer: Peer) -> None:
    """What one writes the other reads at once, with the same owners and modes; the next one finds all of it."""
    volume = await made(peer)
    first = await mounting(peer, volume)
    second = await mounting(peer, volume, "/home/user/deep/er/shared")
    await run(first, "echo mine > /mnt/data/mine; chmod 640 /mnt/data/mine; mkdir /mnt/data/sub", user="user")
    await run(first, "echo root > /mnt/data/root; chown 33:44 /mnt/data/sub")
    seen = "cd /home/user/deep/er/shared; cat mine root; stat -c '%n %u:%g %a' mine root sub ."
    owners = "mine 1000:1000 640\nroot 0:0 644\nsub 33:44 755\n. 1000:1000 777\n"
    assert await run(second, seen) == f"mine\nroot\n{owners}"
    for sandbox in (first, second):
        await peer.call("kill", id=sandbox["id"])
    third = await mounting(peer, volume)
    assert await run(third, "cat /mnt/data/mine; stat -c %u:%g /mnt/data/sub") == "mine\n33:44\n"
    assert third["volumes"] == [{"volume": volume, "name": "data", "path": "/mnt/data", "read_only": False}]


async def test_many_that_start_at_once_share_one_file_system(host: Supervised, peer: Peer) -> None:
    """One device, however they race: two would be two file systems that destroy each other."""
    volume = await made(peer)
    sandboxes = await asyncio.gather(*(mounting(peer, volume) for _ in range(6)))
    assert len(devices(host)) == 1
    await asyncio.gather(*(run(each, f"echo {each['id']} > /mnt/data/{each['id']}") for each in sandboxes))
    listed = await run(sandboxes[0], "cat /mnt/data/*")
    assert sorted(listed.split()) == sorted(each["id"] for each in sandboxes)


async def test_a_read_only_mount_takes_nothing(peer: Peer) -> None:
    """Not from root either; another sandbox may write meanwhile."""
    volume = await made(peer)
    reader, writer = await mounting(peer, volume, read_only=True), await mounting(peer, volume)
    code, text = await attempt(reader, "touch /mnt/data/x; mount -o remount,rw /mnt/data; touch /mnt/data/x")
    assert code != 0
    assert "Read-only file system" in text
    await run(writer, "echo news > /mnt/data/x")
    assert await run(reader, "cat /mnt/data/x") == "news\n"


async def test_a_volume_holds_no_more_than_its_size_and_gives_back_what_is_removed(peer: Peer) -> None:
    """`df` tells the truth inside; a full volume says so, grows when nobody mounts it, and shrinks on the host."""
    volume = await made(peer)
    sandbox = await mounting(peer, volume)
    code, text = await attempt(sandbox, "head -c 64M /dev/zero > /mnt/data/big")
    assert code != 0
    assert "No space left" in text
    assert (await peer.call("volumes"))["volumes"][0]["size_bytes"] > 20_000_000
    assert (await refused(peer.call("grow_volume", id=volume, disk_mb=96)))[0] == "volume_in_use"
    await run(sandbox, "rm /mnt/data/big; echo kept > /mnt/data/kept; sync /mnt/data")

    async def given_back() -> bool:
        return bool((await peer.call("volumes"))["volumes"][0]["size_bytes"] < 5_000_000)

    await until(given_back, 30, "the host to have the space")
    await peer.call("kill", id=sandbox["id"])
    grown = await peer.call("grow_volume", id=volume, disk_mb=96)
    assert grown["disk_mb"] == 96
    assert (await refused(peer.call("grow_volume", id=volume, disk_mb=DISK_MB)))[0] == "bad_argument"
    sandbox = await mounting(peer, volume)
    assert await run(sandbox, "cat /mnt/data/kept; head -c 64M /dev/zero > /mnt/data/big") == "kept\n"


async def test_set_id_programs_and_devices_mean_nothing_in_a_volume(peer: Peer) -> None:
    """A root of one sandbox cannot leave a root shell for users of another, nor a device; nobody mounts anew."""
    volume = await made(peer)
    first, second = await mounting(peer, volume), await mounting(peer, volume)
    await run(first, "cp /bin/bash /mnt/data/bash; chmod 6755 /mnt/data/bash")
    assert await run(second, "/mnt/data/bash -p -c 'id -u'", user="user") == "1000\n"
    assert (await attempt(first, "mknod /mnt/data/disk b 7 0"))[0] != 0
    options = await run(first, "grep ' /mnt/data ' /proc/mounts")
    assert {"nosuid", "nodev", "rw"} <= set(options.split()[3].split(","))
    assert (await attempt(first, "mount -o remount,suid,dev /mnt/data || umount /mnt/data"))[0] != 0


REFUSED_PATHS = (
    *("/", "relative", "", "/mnt/../etc/x", "/mnt/./x", "/mnt//x", "/mnt/x/", "/x" * 40, "/" + "n" * 256, "/nul\0"),
    *("/proc", "/proc/self", "/sys/x", "/dev", "/dev/shm", "/run", "/run/.sandpty/agent", "/etc", "/usr"),
)


async def test_paths_that_a_sandbox_needs_or_that_mean_something_else_are_refused(peer: Peer) -> None:
    """With words, and nothing is made."""
    volume = await made(peer)
    for path in REFUSED_PATHS:
        reason, message = await refused(mounting(peer, volume, path))
        assert (path, reason) == (path, "bad_argument")
        assert "mount" in message
    assert await peer.ids() == set()


async def test_mounts_do_not_overlap_and_are_bounded(peer: Peer) -> None:
    """The same volume at two places is fine; one place in another is not, nor are more than sixteen."""
    volume = await made(peer)

    async def create(*paths: str) -> dict[str, Any]:
        return await peer.create(owner=OWNER, volumes=[{"volume": volume, "path": path} for path in paths])

    for paths in (("/a", "/a"), ("/a", "/a/b"), ("/a/b", "/a")):
        assert (await refused(create(*paths)))[0] == "bad_argument"
    assert (await refused(create(*(f"/m{number}" for number in range(17)))))[0] == "limit"
    sandbox = await create("/a", "/ab")
    assert await run(sandbox, "echo same > /a/x; cat /ab/x") == "same\n"


async def test_links_of_a_template_or_a_guest_lead_nowhere(host: Supervised, peer: Peer) -> None:
    """A mount path that passes through a link is refused, at the start and when a guest has laid one meanwhile."""
    volume = await made(peer)
    reason, message = await refused(mounting(peer, volume, "/bin/tools"))
    assert reason == "bad_argument"
    assert "'bin' is a link" in message
    sandbox = await mounting(peer, volume, "/work/data")
    await run(sandbox, f"mv /work /was; ln -s {host.path} /work; mkdir -p {host.path}")
    await peer.call("pause", id=sandbox["id"], memory=False)
    again = peer.call("resume", id=sandbox["id"], end_at=time.time() + 60)
    assert (await refused(again))[0] == "bad_argument"
    assert not (host.path / "data").exists()


async def test_pause_resume_and_snapshots_keep_the_mounts(peer: Peer) -> None:
    """Frozen or stopped, and in what is made from a snapshot; another volume may take the place there."""
    volume, other = await made(peer), await made(peer, "other")
    sandbox = await mounting(peer, volume)
    await run(sandbox, "echo before > /mnt/data/x")
    for memory in (True, False):
        await peer.call("pause", id=sandbox["id"], memory=memory)
        assert (await refused(peer.call("delete_volume", id=volume)))[0] == "volume_in_use"
        sandbox = await peer.call("resume", id=sandbox["id"], end_at=time.time() + 60)
        assert await run(sandbox, "cat /mnt/data/x") == "before\n"
    snapshot = await peer.call("snapshot", id=sandbox["id"])
    child = await peer.create(template=snapshot["id"], snapshot=snapshot["id"], owner=OWNER)
    assert await run(child, "echo after > /mnt/data/x") == ""
    assert await run(sandbox, "cat /mnt/data/x") == "after\n"
    replaced = await mounting(peer, other, template=snapshot["id"], snapshot=snapshot["id"])
    assert await run(replaced, "ls /mnt/data") == ""
    for each in (sandbox, child):
        await peer.call("kill", id=each["id"])
    await peer.call("delete_volume", id=volume)
    gone = peer.create(template=snapshot["id"], snapshot=snapshot["id"], owner=OWNER)
    assert (await refused(gone))[0] == "no_such_volume"


async def test_a_volume_in_use_stays_and_a_deleted_one_is_gone_altogether(host: Supervised, peer: Peer) -> None:
    """Whoever asks is told who uses it; afterwards neither a directory nor a device is left."""
    volume = await made(peer)
    sandbox = await mounting(peer, volume)
    assert (await peer.call("volumes"))["volumes"][0]["mounted_by"] == [sandbox["id"]]
    reason, message = await refused(peer.call("delete_volume", id=volume))
    assert reason == "volume_in_use"
    assert sandbox["id"] in message
    await peer.call("kill", id=sandbox["id"])
    await peer.call("delete_volume", id=volume)
    assert (await refused(peer.call("delete_volume", id=volume)))[0] == "no_such_volume"
    assert (await refused(mounting(peer, volume)))[0] == "no_such_volume"
    await until(lambda: not devices(host) and not list(host.data.volumes.iterdir()), 30, "everything to be gone")


async def test_names_owners_and_sizes_are_checked(peer: Peer) -> None:
    """A name is its owner's only one; a volume of somebody else does not exist; sizes have bounds."""
    volume = await made(peer)
    assert (await refused(made(peer)))[0] == "conflict"
    assert (await peer.call("create_volume", name="data", owner="other", disk_mb=16))["id"] != volume
    theirs = peer.create(owner="other", volumes=[{"volume": volume, "path": "/mnt/x"}])
    assert (await refused(theirs))[0] == "no_such_volume"
    for name in ("", "a/b", "..", "-x", "x" * 129, "a b"):
        assert (await refused(made(peer, name)))[0] == "bad_argument"
    assert (await refused(made(peer, "small", disk_mb=8)))[0] == "bad_argument"
    assert (await refused(made(peer, "big", disk_mb=10**9)))[0] == "limit"


async def test_the_files_of_a_volume_are_served_without_a_sandbox(peer: Peer) -> None:
    """By an agent that sees the volume and nothing else, that no list shows, and that does not keep the volume."""
    volume = await made(peer)
    sandbox = await mounting(peer, volume)
    await run(sandbox, "cd /mnt/data; echo text > f; ln -s /etc/passwd out; ln -s ../../../etc up; mkfifo p; mkdir etc")
    opened = await peer.call("open_volume", id=volume)
    assert opened == await peer.call("open_volume", id=volume)
    assert await peer.ids() == {sandbox["id"]}
    async with await open_files(opened["socket"], "root") as files:
        names = [entry.path async for entries in files.list("/", depth=9) for entry in entries]
        assert names == ["/etc", "/f", "/out", "/p", "/up"]
        assert await files.real_path("/../../up") == "/etc"  # the volume's own
        for path in ("/out", "/up/passwd", "/../../../etc/passwd", "/proc/self/root/etc/passwd"):
            assert (await refused(files.stat(path, follow=True)))[0] == "no_such_file"
        await files.write("/up/new", b"new", uid=1000, gid=1000)
        assert (await files.change("/etc/new", mode=0o640)).mode == 0o640
    assert await run(sandbox, "stat -c '%U %a' /mnt/data/etc/new; ls /etc/new 2>&1 || true") == (
        "user 640\nls: cannot access '/etc/new': No such file or directory\n"
    )
    await peer.call("kill", id=sandbox["id"])
    await peer.call("delete_volume", id=volume)


async def test_volumes_survive_the_supervisor_and_what_was_half_made_does_not(host: Supervised) -> None:
    """kill -9: a sandbox that lives on and one that starts afterwards still share one file system.

    What cannot be read is left alone: it is somebody's data.
    """
    async with host.peer() as peer:
        volume = await made(peer)
        before = await mounting(peer, volume)
        await peer.call("open_volume", id=volume)
    (host.data.volumes / "halfmade").mkdir()
    unreadable = host.data.volumes / "unreadable" / "volume.json"
    unreadable.parent.mkdir()
    unreadable.write_text("{")
    killed = host.kill_supervisor()
    await until(lambda: host.data.supervisor_socket.exists() and host.supervisor_pid != killed, 30, "the next one")
    async with await connected(host) as again:
        after = await mounting(again, volume)
        assert len(devices(host)) == 1
        await run(after, "echo after > /mnt/data/x")
        assert await run(before, "cat /mnt/data/x; echo before >> /mnt/data/x") == "after\n"
        assert await run(after, "cat /mnt/data/x") == "after\nbefore\n"
        assert (await refused(again.call("delete_volume", id=volume)))[0] == "volume_in_use"
        assert len(list(host.data.sandboxes.iterdir())) == 2  # and not what served files
        await clean(again)
        await until(lambda: list(host.data.volumes.iterdir()) == [unreadable.parent], 30, "the half made's end")
        shutil.rmtree(unreadable.parent)


async def connected(host: Supervised) -> Peer:
    """A connection to a supervisor that may just be starting."""

    async def attempted() -> Peer | None:
        with contextlib.suppress(OSError):
            peer = host.peer()
            await peer.__aenter__()
            await peer.call("hello")
            return peer
        return None

    peer: Peer = await until(attempted, 30, "a supervisor that answers")
    await peer.__aexit__()
    return host.peer()


async def test_without_isolation_there_are_no_volumes() -> None:
    """The process tier says so."""
    async with supervised(isolation="process") as host, host.peer() as peer:
        assert (await refused(made(peer)))[0] == "unsupported"
        assert (await peer.call("volumes"))["volumes"] == []
