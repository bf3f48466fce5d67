"""Sandboxes outlive their supervisor; a supervisor outlives bad input, a killed runtime and a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sandpty.supervisor import state, watch
from sandpty.wire.errors import SandptyError
from tests.component.supervisor_peer import (
    SERVER_UID,
    TEMPLATES,
    Peer,
    Supervised,
    alive,
    fds,
    program,
    run,
    supervised,
)
from tests.waiting import until


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Supervised]:
    """A supervisor of its own for each test: they break it."""
    async with supervised() as running:
        yield running


async def answering(host: Supervised, other_than: int = 0) -> None:
    """Wait until a supervisor (another one than `other_than`) answers."""

    async def answers() -> bool:
        try:
            async with host.peer() as peer:
                return bool((await peer.call("hello"))["pid"] != other_than)
        except (OSError, ValueError):
            return False

    await until(answers, 20, "a supervisor that answers")


async def test_sandboxes_live_through_the_supervisors_sigkill(host: Supervised) -> None:
    """The watcher starts it again; the same processes run on, deadlines are kept."""
    async with host.peer() as peer:
        stays = await peer.create(annotations={"mine": True})
        expires = await peer.create(timeout_s=3)
        frozen = await peer.create()
        await peer.call("pause", id=frozen["id"], memory=True)
        await run(stays, "echo before > /tmp/file; (setsid sleep 1000 &)")
    killed = host.kill_supervisor()
    await answering(host, killed)
    async with host.peer() as peer:
        await peer.call("watch")
        listed = {each["id"]: each for each in (await peer.call("list"))["sandboxes"]}
        assert listed[stays["id"]] == stays
        assert listed[frozen["id"]]["state"] == "paused"
        assert (await run(stays, "cat /tmp/file; pgrep -c sleep")).split() == ["before", "1"]
        assert await peer.ended(expires["id"], 10) == "timeout"
        await peer.call("resume", id=frozen["id"], end_at=time.time() + 60)
        assert await run(frozen, "echo thawed") == "thawed\n"
        for each in (stays, frozen):
            await peer.call("kill", id=each["id"])


async def test_sandboxes_live_through_the_watchers_sigkill_too(host: Supervised) -> None:
    """Both gone: the next start adopts what runs, and can end, pause and resume it."""
    async with host.peer() as peer:
        sandbox = await peer.create()
        await run(sandbox, "echo before > /root/file")
    os.kill(host.watcher_pid, signal.SIGKILL)
    host.kill_supervisor()
    assert host.start() is True
    async with host.peer() as peer:
        assert await peer.ids() == {sandbox["id"]}
        assert await run(sandbox, "cat /root/file") == "before\n"
        await peer.call("pause", id=sandbox["id"], memory=False)
        resumed = await peer.call("resume", id=sandbox["id"], end_at=time.time() + 60)
        assert await run(resumed, "cat /root/file") == "before\n"
        new = await peer.create()
        assert await run(new, "echo also") == "also\n"


async def test_a_supervisor_whose_watcher_died_goes_on_and_can_be_ended(host: Supervised) -> None:
    """No second one can be started beside it; shutdown leaves no pid file."""
    os.kill(host.watcher_pid, signal.SIGKILL)
    async with host.peer() as peer:
        await peer.create()
        assert host.start() is False
        pid = host.supervisor_pid
        await peer.call("shutdown", kill=True)
    await until(lambda: not alive(pid), 10)
    assert not host.data.supervisor_pid.exists()
    assert host.traces() == []


async def test_a_second_start_says_that_one_is_running(host: Supervised) -> None:
    """Status 75 and one readable line."""
    argv = [sys.executable, "-m", "sandpty.supervisor.watch", "--data-dir", str(host.path)]
    done = program(*argv, "--isolation", "crun", "--server-uid", "1")
    assert done.returncode == 75
    assert done.stderr.strip() == f"sandpty: a supervisor is already running for {host.path}"


async def test_shutdown_leaves_sandboxes_running_unless_told(host: Supervised) -> None:
    """Without kill they live on and are adopted; with kill nothing at all is left on the host."""
    async with host.peer() as peer:
        sandbox = await peer.create()
        await peer.call("shutdown", kill=False)
    await until(lambda: not host.running(), 10)
    assert await run(sandbox, "echo alive") == "alive\n"
    assert host.start() is True
    async with host.peer() as peer:
        assert await peer.ids() == {sandbox["id"]}
        # One that is just being made is not forgotten.
        await asyncio.gather(peer.create(), peer.call("shutdown", kill=True), return_exceptions=True)
    await until(lambda: not host.running(), 10)
    assert host.traces() == []
    assert not alive(sandbox["pid"])
    assert list(host.data.sandboxes.iterdir()) == []
    assert list(host.data.agents.iterdir()) == []


async def test_half_made_sandboxes_are_cleaned_up_at_start(host: Supervised) -> None:
    """A directory without meta.json, one that was being created or resumed, a socket or a process without a sandbox.

    What another version may have written is left alone.
    """
    async with host.peer() as peer:
        sandbox, resumed = await peer.create(), await peer.create()
        await run(resumed, "echo kept > /root/file; sync")
    watcher, pid = host.watcher_pid, host.supervisor_pid
    os.kill(watcher, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    empty = host.data.sandboxes / state.new_id()
    empty.mkdir()
    torn = host.data.sandboxes / state.new_id()
    torn.mkdir()
    (torn / "meta.json").write_text('{"id": "i')
    strange = [host.data.sandboxes / state.new_id() for _ in range(2)]
    for left_alone, content in zip(
        strange, ('{"id": "", "annotations": {"x": ' + "[" * 100_000, '{"id": "", "phase": "unheard of"}'), strict=True
    ):
        left_alone.mkdir()
        (left_alone / "meta.json").write_text(content)
    stray_socket = host.data.agents / f"{state.new_id()}.sock"
    stray_socket.touch()
    stray = await asyncio.create_subprocess_exec("sleep", "1000")
    stray_group = Path(f"/sys/fs/cgroup/pids/sandpty-{host.tag}/slot-0")  # where the next sandbox would go
    os.makedirs(stray_group, exist_ok=True)
    (stray_group / "cgroup.procs").write_text(str(stray.pid))
    written = {sandbox["id"]: {"phase": "creating"}, resumed["id"]: {"phase": "stopped", "pid": 0, "start_time": 0}}
    for sandbox_id, members in written.items():
        meta_path = host.data.sandboxes / sandbox_id / "meta.json"
        meta_path.write_text(json.dumps({**json.loads(meta_path.read_text()), **members}))
    host.start()
    assert not alive(sandbox["pid"])
    assert not alive(resumed["pid"])
    assert not stray_socket.exists()
    assert await stray.wait() == -signal.SIGKILL
    async with host.peer() as peer:
        assert await peer.ids() == {resumed["id"]}
        again = await peer.call("resume", id=resumed["id"], end_at=time.time() + 60)
        assert await run(again, "cat /root/file") == "kept\n"
        await peer.call("kill", id=resumed["id"])
    await until(lambda: set(host.data.sandboxes.iterdir()) == set(strange), 30, "the directories' end")


async def test_after_a_restart_of_the_machine_only_sandboxes_paused_to_disk_are_left(host: Supervised) -> None:
    """Simulated by another boot id in the state: pids of before mean nothing."""
    async with host.peer() as peer:
        running, paused = await peer.create(), await peer.create()
        await run(paused, "echo kept > /root/file")
        await peer.call("pause", id=paused["id"], memory=False)
        await peer.call("shutdown", kill=False)
    await until(lambda: not host.running(), 10)
    for path in host.data.sandboxes.glob("*/meta.json"):
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({**meta, "host_boot_id": "another"}))
    host.start()
    async with host.peer() as peer:
        assert await peer.ids() == {paused["id"]}
        assert not (host.data.sandboxes / running["id"]).exists()
        resumed = await peer.call("resume", id=paused["id"], end_at=time.time() + 60)
        assert await run(resumed, "cat /root/file") == "kept\n"
    os.kill(running["pid"], signal.SIGKILL)


async def test_another_isolation_keeps_what_it_cannot_run(host: Supervised) -> None:
    """It does not start beside sandboxes that run; those paused to disk are listed, and resumed by their own."""
    async with host.peer() as peer:
        running, paused, unwanted = [await peer.create() for _ in range(3)]
        await run(paused, "echo kept > /root/file")
        for each in (paused, unwanted):
            await peer.call("pause", id=each["id"], memory=False)
        await peer.call("shutdown")
    await until(lambda: not host.running(), 30)
    host.isolation = "process"
    with pytest.raises(RuntimeError, match=r"isolation `crun` still run here \(1\): start with `--isolation crun`"):
        host.start()
    os.kill(running["pid"], signal.SIGKILL)
    await until(lambda: not alive(running["pid"]), 30)
    host.start()
    async with host.peer() as peer:
        listed = {each["id"]: (each["state"], each["tier"]) for each in (await peer.call("list"))["sandboxes"]}
        assert listed == dict.fromkeys((paused["id"], unwanted["id"]), ("paused", "crun"))
        for verb, args in (("resume", {"end_at": time.time() + 60}), ("snapshot", {})):
            with pytest.raises(SandptyError, match="serve --isolation crun` brings it back") as refused:
                await peer.call(verb, id=paused["id"], **args)
            assert refused.value.reason.name == "unsupported"
        await peer.call("kill", id=unwanted["id"])
        await peer.call("shutdown", kill=False)
    await until(lambda: not host.running(), 30)
    host.isolation = "crun"
    host.start()
    async with host.peer() as peer:
        assert await peer.ids() == {paused["id"]}
        resumed = await peer.call("resume", id=paused["id"], end_at=time.time() + 60)
        assert await run(resumed, "cat /root/file") == "kept\n"


async def test_garbage_on_the_socket_hurts_only_its_sender(host: Supervised) -> None:
    """Huge lengths, no JSON, unknown verbs, half messages: the others are served."""
    async with host.peer() as peer:
        sandbox = await peer.create()
        for garbage in (
            b"\xff" * 64,
            struct.pack("<I", 0),
            struct.pack("<I", 5) + b"hello",
            struct.pack("<I", 2) + b"{}",
            struct.pack("<I", 4_000_000) + b"x",
            b"GET / HTTP/1.0\r\n\r\n",
        ):
            with socket.socket(socket.AF_UNIX) as rude:
                rude.connect(str(host.data.supervisor_socket))
                rude.sendall(garbage)
        with pytest.raises(SandptyError) as unknown:
            await peer.call("run_command", argv=["id"])
        assert unknown.value.reason.name == "bad_request"
        deep: list[Any] = []
        for _ in range(200):  # a supervisor that could write it down and not read it again would never start again
            deep = [deep]
        for reason, wrong in (
            ("bad_request", {"template": 7}),
            ("bad_request", {"owner": "x" * 2000}),
            ("too_large", {"annotations": {"deep": deep}}),
            ("too_large", {"defaults": {"env": {"x": "y" * 20_000}}}),
        ):
            with pytest.raises(SandptyError) as caught:
                await peer.create(**wrong)
            assert caught.value.reason.name == reason
        assert await peer.ids() == {sandbox["id"]}


async def test_a_thousand_quick_connections_leave_no_descriptor(host: Supervised) -> None:
    """Connect and go, a thousand times; afterwards it answers and holds what it held."""
    pid = host.supervisor_pid
    async with host.peer() as peer:
        await peer.call("hello")
        before = fds(pid)
        for _ in range(1000):
            with socket.socket(socket.AF_UNIX) as quick:
                quick.connect(str(host.data.supervisor_socket))
        await until(lambda: fds(pid) <= before + 30, 10, "descriptors")
        assert (await peer.call("hello"))["version"] == 1


async def test_other_accounts_are_not_heard(host: Supervised) -> None:
    """Even if one gets at the socket: only the server's uid and root."""
    script = (
        "import os,socket,sys\n"
        "os.setresuid(*[int(sys.argv[1])]*3)\n"
        # The peer's credentials are those at connect(): so connect as the other account, through opened doors.
        "os.chdir('/')\n"
        "t=socket.socket(socket.AF_UNIX)\n"
        "try:\n    t.connect(sys.argv[2])\n    t.settimeout(5)\n    sys.exit(0 if t.recv(1)==b'' else 3)\n"
        "except (PermissionError, ConnectionResetError):\n    sys.exit(0)\n"
    )
    os.chmod(host.data.run, 0o755)
    os.chmod(host.data.supervisor_socket, 0o666)
    argv = ["/usr/bin/python3", "-c", script, "65534", str(host.data.supervisor_socket)]
    done = program(*argv)
    assert done.returncode == 0, done.stderr
    await until(lambda: "refused a connection of uid 65534" in host.log())


async def test_a_killed_runtime_is_an_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """crun dies in the middle of create: runtime_failed, no trace of the sandbox, and the next create works."""
    flag = tmp_path / "die"
    wrapper = tmp_path / "crun"
    body = f'#!/bin/sh\n[ -e {flag} ] && case "$*" in *" run "*) kill -9 $$;; esac\nexec /usr/bin/crun "$@"\n'
    wrapper.write_text(body)
    wrapper.chmod(0o755)
    monkeypatch.setenv("SANDPTY_RUNTIME_PATH", str(wrapper))
    async with supervised() as host, host.peer() as peer:
        flag.touch()
        for _ in range(3):
            with pytest.raises(SandptyError) as caught:
                await peer.create()
            assert caught.value.reason.name == "runtime_failed"
        assert await peer.ids() == set()
        await until(lambda: not list(host.data.sandboxes.iterdir()))
        assert list(host.data.agents.iterdir()) == []
        flag.unlink()
        sandbox = await peer.create()
        assert await run(sandbox, "echo fine") == "fine\n"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small() -> AsyncIterator[Supervised]:
    """A supervisor on a disk of 800 MiB, for the tests that fill it."""
    host = Supervised()
    program("mount", "-t", "tmpfs", "-o", "size=800m", "tmpfs", str(host.path))
    try:
        assert host.start()
        yield host
    finally:
        try:
            await host.stop()  # before the disk is gone, and with it who runs there
        finally:
            program("umount", "-l", str(host.path))
            host.path.rmdir()


async def test_a_full_disk_is_no_space_and_passes(small: Supervised) -> None:
    """create says no_space; running sandboxes and the supervisor live; with room again it works.

    A supervisor that has to start meanwhile does, below the same watcher, and without giving up the bound on disks.
    """
    async with small.peer() as peer:
        sandbox = await peer.create()
        (small.path / "filler").write_bytes(b"x" * (620 << 20))
        with pytest.raises(SandptyError) as caught:
            await peer.create()
        assert caught.value.reason.name == "no_space"
        assert await run(sandbox, "echo alive") == "alive\n"
        before = await peer.call("hello")
        with contextlib.suppress(OSError):
            (small.path / "rest").write_bytes(b"x" * (200 << 20))
        watcher, killed = small.watcher_pid, small.kill_supervisor()
    await small.answering(killed)
    async with small.peer() as peer:
        assert (await peer.call("hello"))["facts"]["disk quota"] == before["facts"]["disk quota"]
        assert small.watcher_pid == watcher
        assert alive(watcher)
        assert await run(sandbox, "echo alive") == "alive\n"
        for name in ("filler", "rest"):
            (small.path / name).unlink()
        for each in (sandbox, await peer.create()):
            await peer.call("kill", id=each["id"])


async def test_who_writes_is_paused_before_the_hosts_disk_is_full_and_loses_nothing(small: Supervised) -> None:
    """And goes on when there is room again, by itself; until then nobody resumes it. Who does not write runs on."""
    async with small.peer() as peer:
        idle, writer = await peer.create(), await peer.create()
        (small.path / "filler").write_bytes(b"x" * (560 << 20))
        piece = "dd if=/dev/zero of=/root/big iflag=fullblock oflag=append bs=1M count=4 conv=notrunc,fsync"
        script = f"for at in $(seq 50); do {piece} 2>&1 || exit; sleep 0.02; done"
        writing = asyncio.create_task(run(writer, script, timeout_s=60))

        async def state(sandbox: dict[str, Any]) -> str:
            return {each["id"]: each["state"] for each in (await peer.call("list"))["sandboxes"]}[sandbox["id"]]

        async def is_paused() -> bool:
            return await state(writer) == "paused"

        await until(is_paused, 30, "the pause of who writes")
        with pytest.raises(SandptyError) as refused:
            await peer.call("resume", id=writer["id"], end_at=time.time() + 60)
        assert refused.value.reason.name == "no_space"
        assert os.statvfs(small.path).f_bavail > 0
        assert not writing.done()
        assert await run(idle, "echo alive") == "alive\n"
        (small.path / "filler").unlink()
        assert "error" not in await writing
        assert await run(writer, "stat -c %s /root/big") == f"{200 << 20}\n"
        assert await state(writer) == "running"
        for each in (idle, writer):
            await peer.call("kill", id=each["id"])


async def test_a_refused_tier_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A runtime that does not work: start raises with the reason, and no process stays."""
    broken = tmp_path / "crun"
    broken.write_text('#!/bin/sh\ncase "$*" in *--version*) echo crun version 1.0.0;; *) exit 1;; esac\n')
    broken.chmod(0o755)
    monkeypatch.setenv("SANDPTY_RUNTIME_PATH", str(broken))
    host = Supervised()
    try:
        with pytest.raises(RuntimeError, match=r"crun 1\.0\.0 is not usable: older than 1\.4\.4"):
            host.start()
        broken.write_text('#!/bin/sh\ncase "$*" in *--version*) echo crun version 1.8.1;; *) exit 1;; esac\n')
        with pytest.raises(RuntimeError, match="isolation `crun` does not work here"):
            host.start()
        monkeypatch.delenv("SANDPTY_RUNTIME_PATH")
        with pytest.raises(RuntimeError, match="`runsc` is not offered yet"):
            watch.start(host.path, "runsc", SERVER_UID, templates_dir=TEMPLATES, build_base=False)
        await until(lambda: not host.running())
        assert host.traces() == []
    finally:
        await host.stop()


# Starts a watcher that gives up soon, and waits for its end as its parent would.
_WATCH = """
import ctypes, os, sys
from sandpty.supervisor import watch
watch.FAILED_STARTS_MAX, watch.FAILED_STARTS_FOR_S = 3, 0.0
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: the watcher becomes ours when its own parent ends
print(watch.main(sys.argv[1:]), flush=True)
while True:
    pid, status = os.wait()
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


async def test_a_supervisor_that_cannot_start_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once the first time; later, when one had served, after some more tries. The log's last line says why."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken = tmp_path / "uvloop.py"  # found before the real one
    broken.write_text("raise ImportError('it is being replaced')")
    host = Supervised("process")
    argv = [sys.executable, "-c", _WATCH, "--data-dir", str(host.path), "--isolation", "process"]
    argv += ["--server-uid", str(SERVER_UID), "--pool", "0"]
    try:
        first = program(*argv)
        assert first.stdout.split() == ["1", "0", "70"]  # the first child only forks
        assert "did not start: ImportError: it is being replaced" in first.stderr
        assert not host.running()
        broken.unlink()
        watching = await asyncio.create_subprocess_exec(*argv, stdout=-1, stderr=-3)
        await host.answering(0)
        await host.answering(host.kill_supervisor())  # one that served is started again
        broken.write_text("raise ImportError('it is being replaced')")
        host.kill_supervisor()
        said, _ = await asyncio.wait_for(watching.communicate(), 60)
        assert said.split() == [b"0", b"0", b"70"]
        assert "does not start (3 times" in host.log().splitlines()[-1]
        assert not host.running()
    finally:
        broken.unlink(missing_ok=True)
        await host.stop()


async def test_a_data_directory_with_too_long_a_path_is_refused(tmp_path: Path) -> None:
    """In one line, before anything is made that would fail later."""
    with pytest.raises(RuntimeError, match="too long for unix sockets"):
        watch.start(tmp_path / ("x" * 90), "process", SERVER_UID, templates_dir=TEMPLATES, build_base=False)


async def test_the_process_tier_works_and_says_that_it_is_none() -> None:
    """Create, run, kill with its whole tree, deadline; pausing is refused; its agents outlive the supervisor."""
    async with supervised("process") as host:
        async with host.peer() as peer:
            await peer.call("watch")
            hello = await peer.call("hello")
            assert (hello["tier"], hello["isolated"]) == ("process", False)
            assert "none" in hello["facts"]["isolation"]
            sandbox = await peer.create(template="base")
            pids = (await run(sandbox, "for i in 1 2; do setsid sleep 1000 & echo $!; done")).split()
            with pytest.raises(SandptyError) as refused:
                await peer.call("pause", id=sandbox["id"], memory=True)
            assert refused.value.reason.name == "unsupported"
            short = await peer.create(template="base", timeout_s=0.2)
            assert await peer.ended(short["id"], 5) == "timeout"
            pauses = await peer.create(template="base", timeout_s=0.2, on_timeout="pause")

            async def is_paused() -> bool:
                found = [each for each in (await peer.call("list"))["sandboxes"] if each["id"] == pauses["id"]]
                return [each["state"] for each in found] == ["paused"]

            await until(is_paused, 10, "a pause without memory, as there is no other here")
            await peer.call("resume", id=pauses["id"], end_at=time.time() + 60)
            await peer.call("kill", id=pauses["id"])
            with pytest.raises(SandptyError) as refused:
                await peer.call("snapshot", id=sandbox["id"])
            assert refused.value.reason.name == "unsupported"
        await answering(host, host.kill_supervisor())
        async with host.peer() as peer:
            assert await peer.ids() == {sandbox["id"]}
            await peer.call("kill", id=sandbox["id"])
            await until(lambda: not any(alive(int(pid)) for pid in pids))


async def test_a_peer_that_watches_and_never_reads_costs_nothing(host: Supervised) -> None:
    """Events for it are dropped with it; everyone else is served."""
    async with host.peer() as peer:
        sandbox = await peer.create()
        deaf = Peer(host.data.supervisor_socket)
        async with deaf:
            await deaf.call("watch")
            deaf._task.cancel()
            text = "x" * 100_000
            for number in range(60):
                await peer.call("annotate", id=sandbox["id"], annotations={"n": number, "text": text})
            assert (await peer.call("hello"))["version"] == 1
