"""kill -9 of the supervisor in the middle of pause, resume, snapshot and fork: nothing is broken, nothing is left."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sandpty.supervisor import state
from sandpty.wire.errors import SandptyError
from tests.component.supervisor_peer import Peer, Supervised, run, supervised
from tests.waiting import pace, until

MOMENTS_S = (0.004, 0.03)  # after the request: in the middle of what it asks for, or at its end
WRITE = "head -c 30000000 /dev/urandom > /root/big; md5sum /root/big > /root/sum; sync"


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Supervised]:
    """A watcher for each test: one whose supervisors die again and again waits longer and longer."""
    async with supervised() as running:
        yield running


async def shot_during(host: Supervised, verb: str, args: dict[str, Any], moment_s: float) -> None:
    """Ask, kill the supervisor `moment_s` later, and wait for the next one."""
    async with host.peer() as peer:
        asked = asyncio.create_task(peer.call(verb, **args))
        await pace(moment_s, "the moment of the crash is what is tested")
        killed = host.kill_supervisor()
        await asyncio.gather(asked, return_exceptions=True)
    await host.answering(killed)


async def awake(peer: Peer, sandbox_id: str) -> dict[str, Any]:
    """The sandbox as it is now, resumed if it is paused."""
    listed: dict[str, Any] = next(s for s in (await peer.call("list"))["sandboxes"] if s["id"] == sandbox_id)
    if listed["state"] == "paused":
        listed = await peer.call("resume", id=sandbox_id, end_at=time.time() + 300)
    return listed


async def nothing_left(host: Supervised, peer: Peer) -> None:
    """Once everything is ended: no directory, no device, no mount of a sandbox or a snapshot."""
    for sandbox_id in await peer.ids():
        await peer.call("kill", id=sandbox_id)
    for snapshot in (await peer.call("snapshots"))["snapshots"]:
        await peer.call("delete_snapshot", id=snapshot["id"])

    def left() -> list[str]:
        found = os.listdir(host.data.sandboxes) + os.listdir(host.data.snapshots) + os.listdir(host.path / "trash")
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                text = backing.read_text()
            except OSError:
                continue
            found += [text] if f"{host.path}/sandboxes" in text or f"{host.path}/snapshots" in text else []
        return found

    await until(lambda: not left(), 30, "everything to be gone")


@pytest.mark.parametrize(
    ("verb", "args", "paused"),
    [
        ("pause", {"memory": True}, None),
        ("pause", {"memory": False}, None),
        ("resume", {}, True),
        ("resume", {}, False),
        ("snapshot", {"name": "n"}, None),
    ],
    ids=["pause", "pause-to-disk", "resume", "resume-from-disk", "snapshot"],
)
async def test_a_supervisor_shot_in_the_middle_breaks_nothing(
    host: Supervised, verb: str, args: dict[str, Any], paused: bool | None
) -> None:
    """The sandbox is what it was or what was asked for, and works; its files are whole; in the end all is gone."""
    async with host.peer() as peer:
        sandbox = await peer.create(timeout_s=600)
        await run(sandbox, WRITE)
    for moment_s in MOMENTS_S:
        async with host.peer() as peer:
            await awake(peer, sandbox["id"])
            if paused is not None:
                await peer.call("pause", id=sandbox["id"], memory=paused)
        more = {"end_at": time.time() + 600} if verb == "resume" else {}
        await shot_during(host, verb, {"id": sandbox["id"], **args, **more}, moment_s)
        async with host.peer() as peer:
            assert "OK" in await run(await awake(peer, sandbox["id"]), "md5sum -c /root/sum")
            for snapshot in (await peer.call("snapshots"))["snapshots"]:
                child = await peer.create(template=snapshot["id"], snapshot=snapshot["id"])
                assert "OK" in await run(child, "md5sum -c /root/sum")
                await peer.call("kill", id=child["id"])
    async with host.peer() as peer:
        await nothing_left(host, peer)


async def test_a_supervisor_shot_in_the_middle_of_a_fork_leaves_whole_children_or_none(host: Supervised) -> None:
    """Children that were made work, also when the copy that they stand on is nobody's any more."""
    async with host.peer() as peer:
        sandbox = await peer.create(timeout_s=600)
        await run(sandbox, WRITE)
        snapshot = await peer.call("snapshot", id=sandbox["id"], temporary=True)
        first = await peer.create(template="host-usr", snapshot=snapshot["id"])
    args = {"template": "host-usr", "snapshot": snapshot["id"], "end_at": time.time() + 600}
    for moment_s in MOMENTS_S:
        await shot_during(host, "create", args, moment_s)
    async with host.peer() as peer:
        for sandbox_id in await peer.ids():
            assert "OK" in await run(await awake(peer, sandbox_id), "md5sum -c /root/sum")
        await peer.call("pause", id=first["id"], memory=False)
        with pytest.raises(SandptyError):
            await peer.create(template="host-usr", snapshot=snapshot["id"])
        assert "OK" in await run(await awake(peer, first["id"]), "md5sum -c /root/sum")
        await nothing_left(host, peer)


async def test_snapshots_and_what_is_paused_to_disk_outlive_the_machine(host: Supervised) -> None:
    """After a restart of the machine: a sandbox from a snapshot, paused to disk, and the snapshot itself come back."""
    async with host.peer() as peer:
        sandbox = await peer.create(timeout_s=600)
        await run(sandbox, WRITE)
        snapshot = await peer.call("snapshot", id=sandbox["id"], name="survives")
        child = await peer.create(template=snapshot["id"], snapshot=snapshot["id"])
        await run(child, "echo mine > /root/mine")
        await peer.call("pause", id=child["id"], memory=False)
        killed = host.supervisor_pid
    meta = host.data.sandboxes / sandbox["id"] / "meta.json"
    meta.write_text(meta.read_text().replace(state.host_boot_id(), "another-boot-of-the-machine"))
    host.kill_supervisor()
    await host.answering(killed)
    async with host.peer() as peer:
        assert await peer.ids() == {child["id"]}
        told = (await peer.call("history", owner=sandbox["owner"], sandbox=sandbox["id"]))["entries"][-1]
        assert (told["kind"], told["reason"]) == ("ended", "host_restart")
        assert [each["name"] for each in (await peer.call("snapshots"))["snapshots"]] == ["survives"]
        assert "mine" in await run(await awake(peer, child["id"]), "md5sum -c /root/sum; cat /root/mine")
        again = await peer.create(template=snapshot["id"], snapshot=snapshot["id"])
        assert "OK" in await run(again, "md5sum -c /root/sum")
        await nothing_left(host, peer)
