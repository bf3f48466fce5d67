"""What happens to a sandbox between create and kill, with the real runtime."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from sandpty.server.registry import Registry
from sandpty.supervisor import state
from sandpty.wire.errors import SandptyError
from tests.component.supervisor_peer import (
    SERVER_UID,
    Peer,
    Supervised,
    alive,
    attempt,
    fds,
    group,
    number,
    run,
    supervised,
)
from tests.waiting import until


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def host() -> AsyncIterator[Supervised]:
    """One supervisor for this module, without warm sandboxes."""
    async with supervised() as running:
        yield running


@pytest_asyncio.fixture
async def peer(host: Supervised) -> AsyncIterator[Peer]:
    """A connection that watches."""
    async with host.peer() as connected:
        await connected.call("watch")
        yield connected


async def test_the_supervisor_says_what_tier_holds(peer: Peer) -> None:
    """`hello` names the tier and what the canary found."""
    hello = await peer.call("hello")
    assert hello["tier"] == "crun"
    assert hello["isolated"] is True
    assert hello["facts"]["canary"] == "all checks passed"
    assert "crun" in hello["runtime"]


async def test_a_created_sandbox_runs_commands_at_its_socket(peer: Peer) -> None:
    """The answer to create is a sandbox whose agent serves at once."""
    sandbox = await peer.create(owner="me", annotations={"a": 1})
    assert sandbox["state"] == "running"
    assert (sandbox["owner"], sandbox["annotations"]) == ("me", {"a": 1})
    assert (await run(sandbox, "echo hello; hostname")).split() == ["hello", sandbox["id"]]
    assert sandbox["id"] in await peer.ids()
    await peer.call("kill", id=sandbox["id"])
    assert await peer.ended(sandbox["id"]) == "killed"


async def test_the_agents_socket_is_the_servers_alone(host: Supervised, peer: Peer) -> None:
    """0600 and owned by the server's uid; the directory is closed to others."""
    sandbox = await peer.create()
    info = os.stat(sandbox["socket"])
    assert (info.st_uid, info.st_mode & 0o777) == (61_980, 0o600)
    assert os.stat(host.data.run).st_mode & 0o777 == 0o750
    assert os.stat(host.data.sandboxes).st_mode & 0o777 == 0o700
    assert os.stat(host.data.supervisor_socket).st_mode & 0o777 == 0o600
    await peer.call("kill", id=sandbox["id"])


async def test_a_server_that_takes_every_connection_does_not_keep_root_out(host: Supervised) -> None:
    """Whoever owns its account cannot prevent that everything is ended."""
    script = (
        "import os,socket,sys\n"
        "os.setresgid(*[int(sys.argv[1])]*3)\nos.setresuid(*[int(sys.argv[1])]*3)\n"
        "held=[socket.socket(socket.AF_UNIX) for _ in range(80)]\n"
        "for each in held: each.connect(sys.argv[2])\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    argv = ["/usr/bin/python3", "-c", script, str(SERVER_UID), str(host.data.supervisor_socket)]
    server = await asyncio.create_subprocess_exec(*argv, stdin=-1, stdout=-1)
    try:
        assert server.stdout is not None
        assert await server.stdout.readline() == b"held\n"
        async with host.peer() as another:
            assert isinstance(await another.ids(), set)
    finally:
        server.kill()
        await server.wait()


async def test_user_is_uid_1000_and_may_become_root_without_a_password(peer: Peer) -> None:
    """The accounts of the guest: user, root, sudo inside."""
    sandbox = await peer.create()
    text = await run(sandbox, "id -un; id -u; sudo -n id -u; echo ~; touch ~/x && stat -c %U ~/x", user="user")
    assert text.split() == ["user", "1000", "0", "/home/user", "user"]
    await peer.call("kill", id=sandbox["id"])


async def test_each_boot_has_its_own_boot_id_and_the_guest_sees_it(peer: Peer) -> None:
    """/proc/sys/kernel/random/boot_id is the sandbox's, not the host's."""
    one, two = await peer.create(), await peer.create()
    assert one["boot_id"] != two["boot_id"]
    for sandbox in (one, two):
        assert (await run(sandbox, "cat /proc/sys/kernel/random/boot_id")).strip() == sandbox["boot_id"]
        await peer.call("kill", id=sandbox["id"])


async def test_limits_are_the_ones_asked_for(peer: Peer) -> None:
    """memory, pids, cpu and disk as in the request."""
    limits = {"memory_mb": 256, "pids": 40, "cpu_count": 0.5, "disk_mb": 64}
    sandbox = await peer.create(limits=limits)
    pid = sandbox["pid"]
    assert number(group(pid, "memory") / "memory.limit_in_bytes") == 256 << 20
    assert number(group(pid, "memory") / "memory.memsw.limit_in_bytes") == 256 << 20
    assert number(group(pid, "pids") / "pids.max") == 40
    assert number(group(pid, "cpu") / "cpu.cfs_quota_us") == 50_000
    size = int((await run(sandbox, "df --output=size -m / | tail -1")).strip())
    assert 40 <= size <= 64
    await peer.call("kill", id=sandbox["id"])


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"template": "nope"}, "no_such_template"),
        ({"limits": {"memory_mb": 1}}, "bad_argument"),
        ({"limits": {"pids": 0}}, "bad_argument"),
        ({"limits": {"cpu_count": -1}}, "bad_argument"),
        ({"limits": {"disk_mb": 10**12}}, "bad_argument"),
        ({"annotations": {"x": "y" * 300_000}}, "too_large"),
        ({"on_timeout": "explode"}, "bad_request"),
        ({"colour": "red"}, "bad_request"),
    ],
)
async def test_a_bad_create_says_why_and_makes_nothing(peer: Peer, args: dict[str, object], reason: str) -> None:
    """Each error has its reason; no sandbox appears."""
    before = await peer.ids()
    with pytest.raises(SandptyError) as caught:
        await peer.create(**args)  # type: ignore[arg-type]
    assert caught.value.reason.name == reason
    assert await peer.ids() == before


@pytest.mark.parametrize("verb", ["kill", "pause", "resume", "set_deadline", "annotate"])
async def test_an_unknown_sandbox_is_no_such_sandbox(peer: Peer, verb: str) -> None:
    """Every verb about one sandbox says so."""
    extra = {"resume": {"end_at": 1.0}, "set_deadline": {"end_at": 1.0}, "annotate": {"annotations": {}}}.get(verb, {})
    with pytest.raises(SandptyError, match="does not exist") as caught:
        await peer.call(verb, id="i" + "x" * 20, **extra)
    assert caught.value.reason.name == "no_such_sandbox"


async def test_kill_answers_once_everything_is_gone(host: Supervised, peer: Peer) -> None:
    """Processes, groups, files, socket: none is left when the answer arrives."""
    sandbox = await peer.create()
    await run(sandbox, "for i in 1 2 3; do setsid sleep 1000 & done; (setsid nohup sleep 1000 &) ; true")
    pid, pids_group = sandbox["pid"], group(sandbox["pid"], "pids")
    pids = (pids_group / "cgroup.procs").read_text().split()
    assert len(pids) >= 5
    await peer.call("kill", id=sandbox["id"])
    await until(lambda: all(not alive(int(each)) for each in [pid, *pids]), what="reaping")
    assert not pids_group.exists()
    assert not (host.data.sandboxes / sandbox["id"]).exists()
    assert not (host.data.agents / f"{sandbox['id']}.sock").exists()
    with pytest.raises(SandptyError, match="does not exist"):
        await peer.call("kill", id=sandbox["id"])


async def test_two_kills_at_once_both_end_well(peer: Peer) -> None:
    """One kills, the other learns that it is gone."""
    sandbox = await peer.create()
    results = await asyncio.gather(*(peer.call("kill", id=sandbox["id"]) for _ in range(2)), return_exceptions=True)
    errors = [result for result in results if isinstance(result, SandptyError)]
    assert [error.reason.name for error in errors] == ["no_such_sandbox"]


async def test_at_its_deadline_a_sandbox_is_killed(peer: Peer) -> None:
    """on_timeout=kill, with the event that says so."""
    sandbox = await peer.create(timeout_s=0.3)
    assert await peer.ended(sandbox["id"], 5) == "timeout"
    assert sandbox["id"] not in await peer.ids()


async def test_a_moved_deadline_counts(peer: Peer) -> None:
    """Later and earlier, both at once."""
    later, earlier = await peer.create(timeout_s=0.5), await peer.create(timeout_s=300)
    await peer.call("set_deadline", id=later["id"], end_at=time.time() + 300)
    await peer.call("set_deadline", id=earlier["id"], end_at=time.time() + 0.6)
    assert await peer.ended(earlier["id"], 5) == "timeout"
    assert later["id"] in await peer.ids()
    await peer.call("kill", id=later["id"])


@pytest.mark.parametrize(("on_timeout", "memory"), [("pause", True), ("pause_disk", False)])
async def test_at_its_deadline_a_sandbox_can_be_paused_instead(peer: Peer, on_timeout: str, memory: bool) -> None:
    """It is there afterwards, paused the way that was asked for, and resumes."""
    sandbox = await peer.create(timeout_s=0.4, on_timeout=on_timeout)
    await run(sandbox, "echo kept > /root/file")

    async def paused() -> bool:
        listed = (await peer.call("list"))["sandboxes"]
        return any(s["id"] == sandbox["id"] and s["state"] == "paused" for s in listed)

    await until(paused)
    resumed = await peer.call("resume", id=sandbox["id"], end_at=time.time() + 60)
    assert resumed["state"] == "running"
    assert (resumed["boot_id"] == sandbox["boot_id"]) is memory
    assert await run(resumed, "cat /root/file") == "kept\n"
    await peer.call("kill", id=sandbox["id"])


async def test_pause_with_memory_stops_processes_where_they_stand(peer: Peer) -> None:
    """A counter does not count while paused, and is the same process afterwards."""
    sandbox = await peer.create()
    script = "(while :; do echo x >> /tmp/count; sleep 0.01; done) & echo $!"
    pid = (await run(sandbox, script + "; disown")).strip()
    paused = await peer.call("pause", id=sandbox["id"], memory=True)
    assert (paused["state"], paused["paused_memory"]) == ("paused", True)
    with pytest.raises(TimeoutError):
        await attempt(sandbox, "true", timeout_s=0.2)
    with pytest.raises(SandptyError) as caught:
        await peer.call("pause", id=sandbox["id"], memory=True)
    assert caught.value.reason.name == "already_paused"
    with pytest.raises(SandptyError) as refused:
        await peer.call("set_deadline", id=sandbox["id"], end_at=time.time() + 5)
    assert refused.value.reason.name == "sandbox_paused"
    await peer.call("resume", id=sandbox["id"], end_at=time.time() + 60)
    assert (await run(sandbox, f"ps -o pid= -p {pid} || true")).strip() in (pid, "")
    with pytest.raises(SandptyError) as running:
        await peer.call("resume", id=sandbox["id"], end_at=time.time() + 60)
    assert running.value.reason.name == "conflict"
    await peer.call("kill", id=sandbox["id"])


async def test_pause_to_disk_keeps_files_and_ends_processes(peer: Peer) -> None:
    """New boot id, new processes, the same files with the same owners; twice in a row."""
    sandbox = await peer.create()
    await run(sandbox, "mkdir -p /data && echo one > /data/a && ln -s a /data/b && rm /etc/hostname", user="root")
    await run(sandbox, "echo mine > ~/mine", user="user")
    for turn in range(2):
        paused = await peer.call("pause", id=sandbox["id"], memory=False)
        assert (paused["state"], paused["paused_memory"], paused["pid"]) == ("paused", False, 0)
        await until(lambda pid=sandbox["pid"]: not alive(pid))
        sandbox = await peer.call("resume", id=sandbox["id"], end_at=time.time() + 60)
        text = await run(
            sandbox, "cat /data/b ~user/mine; stat -c %U ~user/mine; ls /etc/hostname || true", user="root"
        )
        assert text.splitlines()[:3] == ["one", "mine", "user"], turn
        assert (await run(sandbox, "cat /proc/sys/kernel/random/boot_id")).strip() == sandbox["boot_id"]
    await peer.call("kill", id=sandbox["id"])


async def test_a_change_that_cannot_be_written_down_does_not_happen(host: Supervised, peer: Peer) -> None:
    """The sandbox is what it was, and known as that; once there is room again it can be changed."""
    sandbox = await peer.create()
    in_the_way = host.data.sandboxes / sandbox["id"] / state.NEW_NAME

    async def refused_once(verb: str, **args: Any) -> Any:
        before = next(each for each in (await peer.call("list"))["sandboxes"] if each["id"] == sandbox["id"])
        in_the_way.mkdir()
        with pytest.raises(SandptyError, match="could not be") as caught:
            await peer.call(verb, id=sandbox["id"], **args)
        assert caught.value.reason.name == "runtime_failed"
        in_the_way.rmdir()
        after = next(each for each in (await peer.call("list"))["sandboxes"] if each["id"] == sandbox["id"])
        assert {**after, "revision": 0, "boot_id": ""} == {**before, "revision": 0, "boot_id": ""}
        if before["state"] == "running":
            assert await run(sandbox, "echo on") == "on\n"
        return await peer.call(verb, id=sandbox["id"], **args)

    for memory in (True, False):
        assert (await refused_once("pause", memory=memory))["state"] == "paused"
        assert (await refused_once("resume", end_at=time.time() + 300))["state"] == "running"
    await refused_once("set_deadline", end_at=time.time() + 200)
    await refused_once("annotate", annotations={"a": 1})
    await refused_once("network", internet=False, policy={})
    assert (await attempt(sandbox, "ip route | grep default"))[0] != 0
    await peer.call("kill", id=sandbox["id"])


async def test_a_sandbox_is_changed_by_what_is_known_of_it(host: Supervised, peer: Peer) -> None:
    """Not by a number that a runtime wrote once, which may be another process's by now."""
    sandbox = await peer.create(internet=True)
    (host.data.sandboxes / sandbox["id"] / "pid").write_text("none")
    await peer.call("set_memory", id=sandbox["id"], memory_mb=2048)
    await peer.call("network", id=sandbox["id"], internet=False)
    assert "default" not in await run(sandbox, "cat /proc/net/route; ip route")
    await peer.call("kill", id=sandbox["id"])


async def test_a_paused_sandbox_can_be_killed(peer: Peer) -> None:
    """Frozen or on disk."""
    for memory in (True, False):
        sandbox = await peer.create()
        await peer.call("pause", id=sandbox["id"], memory=memory)
        await peer.call("kill", id=sandbox["id"])
        await until(lambda pid=sandbox["pid"]: not alive(pid))


async def test_the_end_of_the_agent_is_the_end_of_the_sandbox(peer: Peer) -> None:
    """An agent that dies by itself gives an ended event, and nothing stays."""
    sandbox = await peer.create()
    os.kill(sandbox["pid"], 9)
    assert await peer.ended(sandbox["id"]) == "agent_exited"
    assert sandbox["id"] not in await peer.ids()


async def test_annotations_are_kept_and_told(peer: Peer) -> None:
    """annotate replaces them; a watcher hears of it."""
    sandbox = await peer.create(annotations={"a": 1})
    changed = await peer.call("annotate", id=sandbox["id"], annotations={"b": [2]})
    assert changed["annotations"] == {"b": [2]}
    await until(lambda: {"b": [2]} in [event["sandbox"]["annotations"] for event in peer.events], what="the event")
    await peer.call("kill", id=sandbox["id"])


async def test_sandboxes_do_not_see_each_others_files_or_processes(peer: Peer) -> None:
    """Each has its own root, process list and users."""
    one, two = await peer.create(), await peer.create()
    await run(one, "echo secret > /root/secret; (setsid sleep 987654 &)")
    assert (await attempt(two, "cat /root/secret"))[0] != 0
    assert "987654" not in await run(two, "ps ax")
    maps = {(await run(sandbox, "cat /proc/self/uid_map")).split()[1] for sandbox in (one, two)}
    assert len(maps) == 2
    for sandbox in (one, two):
        await peer.call("kill", id=sandbox["id"])


async def test_thirty_creates_at_once_all_succeed_and_leave_nothing(host: Supervised, peer: Peer) -> None:
    """They share the slow parts without fighting; descriptors of the supervisor are back afterwards."""
    pid = host.supervisor_pid
    before = fds(pid)
    made = await asyncio.gather(*(peer.create() for _ in range(30)))
    assert len({sandbox["id"] for sandbox in made}) == 30
    assert len({sandbox["pid"] for sandbox in made}) == 30
    # More words about them than one message holds: a server that comes now still learns of all.
    words = {"metadata": {"text": "x" * 200_000}}
    await asyncio.gather(*(peer.call("annotate", id=sandbox["id"], annotations=words) for sandbox in made))
    async with Registry(str(host.data.supervisor_socket)) as registry:
        known = {sandbox.id: sandbox.annotations for sandbox in registry.everyone()}
    assert [known[sandbox["id"]] for sandbox in made] == [words] * 30
    await asyncio.gather(*(peer.call("kill", id=sandbox["id"]) for sandbox in made))
    assert not (await peer.ids()) & {sandbox["id"] for sandbox in made}
    await until(lambda: fds(pid) <= before + 30, 10, "descriptors")  # prepared slots hold some
    await until(lambda: not list((host.path / "trash").iterdir()), 10, "trash")
