"""Snapshots at the supervisor: a sandbox's files at one moment, and sandboxes that start from them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sandpty.wire.errors import SandptyError
from tests.component.supervisor_peer import Peer, Supervised, run, supervised
from tests.waiting import until


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
        for each in (await connected.call("snapshots"))["snapshots"]:
            await connected.call("delete_snapshot", id=each["id"])
        for sandbox_id in await connected.ids():
            await connected.call("kill", id=sandbox_id)


async def started_from(peer: Peer, snapshot: dict[str, Any], **args: Any) -> dict[str, Any]:
    """Create from a snapshot."""
    return await peer.create(template=snapshot["id"], snapshot=snapshot["id"], **args)


def directories(host: Supervised) -> list[str]:
    """Of snapshots, deleted ones included."""
    return os.listdir(host.data.snapshots)


async def gone(host: Supervised, snapshot: dict[str, Any]) -> None:
    """Wait until its bytes are."""
    await until(lambda: snapshot["id"] not in directories(host), 20, "the snapshot's directory to go")


async def test_a_sandbox_from_a_snapshot_has_the_files_and_the_other_runs_on(peer: Peer) -> None:
    """Contents, owners, modes, links, attributes, deletions and replaced directories; processes of the first go on."""
    first = await peer.create()
    await run(
        first,
        "cd /home/user; echo text > file; chown user:user file; chmod 640 file; ln file hard; ln -s file soft;"
        "mkfifo pipe; setcap cap_net_raw+ep /usr/bin/env 2>/dev/null; cp /usr/bin/env own-env;"
        "rm -rf /etc/profile.d; mkdir /etc/profile.d; echo x > /etc/profile.d/new; rm /etc/debian_version;"
        "truncate -s 1G sparse; echo '10.9.8.7 friend' >> /etc/hosts; chmod 4755 own-env; (setsid sleep 1000 &)",
    )
    snapshot = await peer.call("snapshot", id=first["id"])
    assert snapshot["sandbox_id"] == first["id"]
    assert snapshot["size_bytes"] > 0
    assert (await run(first, "pgrep -c sleep")).strip() == "1"
    second = await started_from(peer, snapshot)
    looks = (
        "cd /home/user; cat file; stat -c '%U %G %a %h' file; stat -c '%i' file hard | uniq | wc -l; readlink soft;"
        "stat -c %F pipe; ls /etc/profile.d; test -e /etc/debian_version; echo $?; stat -c '%s %b' sparse;"
        "stat -c '%U %a' own-env; grep friend /etc/hosts"
    )
    assert await run(second, looks) == await run(first, looks)
    assert "text\nuser user 640 2\n1\nfile\nfifo\nnew\n1\n1073741824 0\nroot 4755\n" in await run(second, looks)
    assert (await run(second, 'hostname; grep -c "$(hostname)" /etc/hosts; pgrep -c sleep || true')).split() == [
        second["id"],
        "1",
        "0",
    ]


async def test_sandboxes_from_one_snapshot_are_independent(peer: Peer) -> None:
    """Of each other, of the first one, and of the snapshot: what one writes, no other sees."""
    first = await peer.create()
    await run(first, "echo shared > /home/user/file; chown user:user /home/user/file")
    snapshot = await peer.call("snapshot", id=first["id"])
    one, two = await asyncio.gather(*(started_from(peer, snapshot) for _ in range(2)))
    await run(one, "echo changed > /home/user/file; rm -r /etc/apt || true", user="user")
    await run(two, "sudo rm -rf /home/user/file", user="user")
    assert await run(first, "cat /home/user/file") == "shared\n"
    three = await started_from(peer, snapshot)
    assert await run(three, "cat /home/user/file") == "shared\n"
    assert await run(one, "cat /home/user/file") == "changed\n"


async def test_snapshots_of_snapshots_stack(peer: Peer) -> None:
    """Three generations: each adds, changes and deletes; a deleted ancestor stays for those that stand on it."""
    sandbox, kept = await peer.create(), []
    for generation in range(3):
        await run(sandbox, f"cd /root; echo {generation} >> log; touch only{generation}; rm -f only{generation - 2}")
        snapshot = await peer.call("snapshot", id=sandbox["id"])
        kept.append(snapshot)
        await peer.call("kill", id=sandbox["id"])
        sandbox = await started_from(peer, snapshot)
    for snapshot in kept:
        await peer.call("delete_snapshot", id=snapshot["id"])
    assert (await run(sandbox, "cd /root; cat log; ls -d only*")).split() == ["0", "1", "2", "only1", "only2"]
    await peer.call("pause", id=sandbox["id"], memory=False)
    await peer.call("resume", id=sandbox["id"], end_at=time.time() + 60)
    assert (await run(sandbox, "cat /root/log")).split() == ["0", "1", "2"]


@pytest.mark.parametrize("memory", [True, False])
async def test_a_paused_sandbox_can_be_snapshot_and_stays_paused(peer: Peer, memory: bool) -> None:
    """Frozen or stopped: its files as it left them."""
    first = await peer.create()
    await run(first, "echo before > /root/file")
    await peer.call("pause", id=first["id"], memory=memory)
    snapshot = await peer.call("snapshot", id=first["id"])
    assert [each["state"] for each in (await peer.call("list"))["sandboxes"]] == ["paused"]
    second = await started_from(peer, snapshot)
    assert await run(second, "cat /root/file") == "before\n"
    await peer.call("resume", id=first["id"], end_at=time.time() + 60)
    assert await run(first, "cat /root/file") == "before\n"


async def test_what_a_deleted_snapshot_took_goes_with_the_last_that_stands_on_it(host: Supervised, peer: Peer) -> None:
    """Gone from the list at once, from the disk with its last sandbox; starting from it is refused."""
    first = await peer.create()
    snapshot = await peer.call("snapshot", id=first["id"])
    second = await started_from(peer, snapshot)
    await peer.call("delete_snapshot", id=snapshot["id"])
    assert (await peer.call("snapshots"))["snapshots"] == []
    for call in (peer.call("delete_snapshot", id=snapshot["id"]), started_from(peer, snapshot)):
        with pytest.raises(SandptyError) as refused:
            await call
        assert refused.value.reason.name == "no_such_snapshot"
    assert directories(host) == [snapshot["id"]]
    assert await run(second, "echo well") == "well\n"
    await peer.call("kill", id=second["id"])
    await gone(host, snapshot)


async def test_a_name_means_the_newest_snapshot_that_got_it(host: Supervised, peer: Peer) -> None:
    """Of the same owner; another owner's namesake stays."""
    mine, other = await peer.create(owner="me"), await peer.create(owner="other")
    old = await peer.call("snapshot", id=mine["id"], name="n")
    theirs = await peer.call("snapshot", id=other["id"], name="n")
    new = await peer.call("snapshot", id=mine["id"], name="n")
    assert {each["id"] for each in (await peer.call("snapshots"))["snapshots"]} == {theirs["id"], new["id"]}
    await gone(host, old)


async def test_a_sandbox_from_a_snapshot_has_its_limits_unless_told(peer: Peer) -> None:
    """Memory, processors, disk."""
    limits = {"memory_mb": 256, "cpu_count": 1.0, "disk_mb": 512, "pids": 100}
    first = await peer.create(limits=limits)
    snapshot = await peer.call("snapshot", id=first["id"])
    assert (await started_from(peer, snapshot))["limits"] == limits
    assert (await started_from(peer, snapshot, limits={**limits, "memory_mb": 300}))["limits"]["memory_mb"] == 300


async def test_a_snapshot_under_load_is_whole(peer: Peer) -> None:
    """Taken while programs write: every file that was complete is complete in it, and none is torn in two versions."""
    first = await peer.create()
    script = "\n".join(
        (
            "import os, itertools",
            "for i in itertools.count():",
            "    open('/root/new', 'w').write(str(i) * 50000)",
            "    os.rename('/root/new', '/root/f')",
        )
    )
    await run(first, f'echo "{script}" > /root/p.py; (setsid python3 /root/p.py > /dev/null 2>&1 &)')
    await run(first, "until [ -e /root/f ]; do sleep 0.02; done")
    for _ in range(2):
        second = await started_from(peer, await peer.call("snapshot", id=first["id"]))
        check = "d = open('/root/f').read(); n = d[:len(d) // 50000]; assert d == n * 50000, len(d)"
        assert await run(second, f'python3 -c "{check}"; echo whole') == "whole\n"


async def test_temporary_snapshots_are_not_listed(host: Supervised, peer: Peer) -> None:
    """What a fork stands on is nobody's to see; it goes with the fork."""
    first = await peer.create()
    snapshot = await peer.call("snapshot", id=first["id"], temporary=True)
    fork = await peer.create(template="host-usr", snapshot=snapshot["id"])
    assert fork["template"] == first["template"]
    assert (await peer.call("snapshots"))["snapshots"] == []
    await peer.call("delete_snapshot", id=snapshot["id"])
    await peer.call("kill", id=fork["id"])
    await gone(host, snapshot)


def devices(host: Supervised) -> list[str]:
    """Loop devices of snapshots, by what lies behind them."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it has just been freed
            found.append(path.read_text())
    return [text for text in found if str(host.path / "snapshots") in text]


async def test_nothing_of_snapshots_is_left_on_the_host(host: Supervised, peer: Peer) -> None:
    """All that stand on a snapshot share one device; it is free once they are gone."""
    await until(lambda: not devices(host), 30, "the devices of other tests to be free")
    first = await peer.create()
    snapshot = await peer.call("snapshot", id=first["id"])
    children = [await started_from(peer, snapshot) for _ in range(2)]
    assert len(devices(host)) == 1
    for sandbox in children:
        await peer.call("kill", id=sandbox["id"])
    await until(lambda: not devices(host), 30, "the device to be free")
