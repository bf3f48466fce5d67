"""`sandbox.files` of our own SDK, both flavours, against a real server: what E2B's users know, streams, healing."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from sandpty import (
    AsyncSandbox,
    FilesystemEvent,
    FilesystemEventType,
    FileType,
    NotAllowedError,
    RequestTimeoutError,
    Sandbox,
    SandptyError,
)
from tests.e2e.cut import relay
from tests.server_fixture import RunningServer
from tests.waiting import turn, until, until_sync

MIB = 1024 * 1024
EVENT_WAIT_S = 30.0


@pytest.fixture(scope="module")
def box(server: RunningServer) -> Iterator[Sandbox]:
    """One sandbox for this file, by the blocking flavour."""
    with Sandbox(url=server.url, api_key=server.api_key, timeout=600) as made:
        yield made


@pytest_asyncio.fixture(scope="module")
async def abox(server: RunningServer, box: Sandbox) -> AsyncIterator[AsyncSandbox]:
    """The same sandbox, by the other flavour."""
    made = await AsyncSandbox.connect(box.sandbox_id, url=server.url, api_key=server.api_key)
    yield made
    await made.close()


# --- what E2B's users know --------------------------------------------------------------------------------------------


def test_files_as_e2bs_users_know_them(box: Sandbox) -> None:
    """read, write, write_files, list, exists, get_info, make_dir, rename, remove; directories are made on the way."""
    files = box.files
    written = files.write("notes/a.txt", "hé\n")
    assert (written.path, written.name, written.type, written.size) == (
        "/home/user/notes/a.txt",
        "a.txt",
        FileType.FILE,
        4,
    )
    assert files.read("notes/a.txt") == "hé\n"
    assert files.read("/home/user/notes/a.txt", format="bytes") == b"h\xc3\xa9\n"
    many = files.write_files([{"path": "notes/b", "data": b"\0"}, {"path": "notes/c/d", "data": io.BytesIO(b"12")}])
    assert [each.size for each in many] == [1, 2]
    assert [each.name for each in files.list("notes")] == ["a.txt", "b", "c"]
    assert [each.path.rpartition("notes/")[2] for each in files.list("notes", depth=2)] == ["a.txt", "b", "c", "c/d"]
    assert files.make_dir("notes/c") is False
    assert files.make_dir("notes/e/f") is True
    assert files.rename("notes/c/d", "notes/g/h").path == "/home/user/notes/g/h"
    assert (files.exists("notes/c/d"), files.exists("notes/g/h")) == (False, True)
    info = files.get_info("notes/a.txt")
    assert (info.mode, info.permissions, info.owner, info.group) == (0o644, "-rw-r--r--", "user", "user")
    assert abs(info.modified_time.timestamp() - os.stat(__file__).st_atime) < 10 * 365 * 86400
    files.remove("notes")
    files.remove("notes")  # what is not there is as good as removed
    assert not files.exists("notes")


async def test_the_other_flavour_does_the_same(abox: AsyncSandbox) -> None:
    """Awaited; also with an async iterable as content, and iterated entries."""

    async def content() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    files = abox.files
    assert (await files.write("async/a", content())).size == 7
    assert await files.read("async/a") == "one two"
    async with await files.read("async/a", format="stream") as stream:
        assert b"".join([piece async for piece in stream]) == b"one two"
    assert [entry.name async for entry in files.scan("async")] == ["a"]
    assert await files.make_dir("async") is False
    assert (await files.copy("async", "again")).type is FileType.DIR
    assert await files.exists("again/a")
    assert (await files.get_info("again/a")).metadata is None
    await files.remove("async")


def test_content_may_be_anything_that_has_bytes(box: Sandbox, tmp_path: Path) -> None:
    """Text, bytes, views, binary and text files, iterables; anything else is a TypeError that says what it takes."""
    local = tmp_path / "x"
    local.write_bytes(b"file")
    with local.open("rb") as binary, local.open() as text:
        for data, expected in (
            ("é", b"\xc3\xa9"),
            (b"b", b"b"),
            (bytearray(b"ba"), b"ba"),
            (memoryview(b"mv"), b"mv"),
            (binary, b"file"),
            (text, b"file"),
            (iter([b"1", b"", b"2"]), b"12"),
            ("", b""),
        ):
            box.files.write("/tmp/any", data)
            assert box.files.read("/tmp/any", format="bytes") == expected
    for wrong in (7, [1, 2], None):
        with pytest.raises(TypeError, match="bytes"):
            box.files.write("/tmp/any", wrong)


def test_modes_owners_metadata_times_and_symlinks(box: Sandbox) -> None:
    """What a file has besides its content is given, kept and told."""
    files = box.files
    made = files.write("/srv/x", b"1", user="root", mode=0o750, owner="user", metadata={"k": "100%"})
    assert (made.mode, made.owner, made.metadata) == (0o750, "user", {"k": "100%"})
    assert files.write("/srv/x", b"2", user="root", append=True).size == 2
    changed = files.change("/srv/x", "root", mode=0o4600, owner="0:7", modified_ns=1_000_000_001)
    assert (changed.mode, changed.uid, changed.gid, changed.modified_ns) == (0o4600, 0, 7, 1_000_000_001)
    link = files.make_symlink("/tmp/link", "../srv/x")
    assert (link.type, link.symlink_target, link.link_text) == (FileType.SYMLINK, "/srv/x", "../srv/x")
    assert files.get_info("/tmp/link", follow=True).type is FileType.FILE
    assert files.make_symlink("/tmp/dangling", "no where").symlink_target == "no where"
    assert files.exists("/tmp/dangling")


@pytest.mark.parametrize("name", ["\udcff\udcfe", "100%41", "a b\n\t'\"\\", "é", "?&=#+", "-", "~"])
def test_any_name_survives(box: Sandbox, name: str) -> None:
    """Bytes that are no UTF-8 are surrogates in Python, as everywhere."""
    path = f"/tmp/names/{name}"
    assert box.files.write(path, name.encode("utf-8", "surrogateescape")).path == path
    assert name in [entry.name for entry in box.files.list("/tmp/names")]
    assert box.files.read(path, format="bytes") == name.encode("utf-8", "surrogateescape")
    box.files.remove(path)
    assert not box.files.exists(path)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_are_those_that_python_has_and_ours(box: Sandbox) -> None:
    """Each is caught by its builtin name, by SandptyError, and says what to do."""
    files = box.files
    with pytest.raises(FileNotFoundError, match="/nowhere") as missing:
        files.read("/nowhere")
    assert isinstance(missing.value, SandptyError)
    assert missing.value.reason.name == "no_such_file"
    with pytest.raises(PermissionError) as refused:
        files.write("/etc/x", "")
    assert isinstance(refused.value, NotAllowedError)
    assert "user" in refused.value.reason.hint
    with pytest.raises(IsADirectoryError):
        files.read("/tmp")
    with pytest.raises(NotADirectoryError):
        files.list("/etc/passwd")
    with pytest.raises(FileExistsError):
        files.make_symlink("/etc", "x", "root")
    with pytest.raises(SandptyError, match='format="bytes"'):
        files.read("/bin/true")
    with pytest.raises(SandptyError, match="no such user"):
        files.read("/etc/passwd", user="nobody-knows")


async def test_silence_is_a_timeout_that_names_its_knob(server: RunningServer, box: Sandbox) -> None:
    """Not the process's, not "no server": request_timeout of this call, or of the sandbox."""
    async with relay(server.port) as network:
        sandbox = await AsyncSandbox.connect(box.sandbox_id, url=network.url, api_key=server.api_key)
        network.stall()
        with pytest.raises(RequestTimeoutError, match="request_timeout") as silent:
            await sandbox.files.get_info("/tmp", request_timeout=0.2)
        assert isinstance(silent.value, TimeoutError)
        network.flow()
        assert (await sandbox.files.get_info("/tmp")).type is FileType.DIR
        await sandbox.close()


# --- streams ----------------------------------------------------------------------------------------------------------

STREAM = """
import hashlib, resource, sys
from sandpty import Sandbox
size = 192 * 1024 * 1024
def content():
    for _ in range(size // 65536):
        yield bytes(65536)
sandbox = Sandbox.connect(sys.argv[1])
sandbox.files.write("/tmp/first", b"x")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seen = []
sandbox.files.write("/tmp/stream", content(), on_progress=lambda done, whole: seen.append((done, whole)))
assert seen[-1] == (size, None), seen[-1]
count = 0
with sandbox.files.read("/tmp/stream", format="stream", on_progress=lambda *told: seen.append(told)) as stream:
    assert stream.size == size
    for piece in stream:
        count += len(piece)
assert (count, seen[-1]) == (size, (size, size))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_big_files_pass_both_ways_in_little_memory(server: RunningServer, box: Sandbox) -> None:
    """192 MiB in less than 24 MiB, and each piece is told."""
    command = [sys.executable, "-c", STREAM, box.sandbox_id]
    env = {**os.environ, **server.env}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24
    box.files.remove("/tmp/stream")


async def test_a_download_survives_its_connections(server: RunningServer, abox: AsyncSandbox) -> None:
    """Cut in the middle twenty times, every byte once."""
    content = os.urandom(MIB) * 16
    await abox.files.write("/tmp/cut", content)
    async with relay(server.port) as network:
        sandbox = await AsyncSandbox.connect(abox.sandbox_id, url=network.url, api_key=server.api_key)
        back, cuts = hashlib.sha256(), 0
        async with await sandbox.files.read("/tmp/cut", format="stream") as stream:
            async for piece in stream:
                back.update(piece)
                if cuts < 20 and stream.position > cuts * MIB // 2:
                    cuts += 1
                    network.cut()
        await sandbox.close()
    assert cuts == 20
    assert back.digest() == hashlib.sha256(content).digest()
    async with await abox.files.read("/tmp/cut", format="stream", offset=16 * MIB - 5) as stream:
        assert b"".join([piece async for piece in stream]) == content[-5:]


async def test_a_file_that_was_changed_meanwhile_is_not_sewn_together(
    server: RunningServer, abox: AsyncSandbox
) -> None:
    """Two halves of two files are no file: that is an error."""
    await abox.files.write("/tmp/swapped", bytes(8 * MIB))
    async with relay(server.port) as network:
        sandbox = await AsyncSandbox.connect(abox.sandbox_id, url=network.url, api_key=server.api_key)
        async with await sandbox.files.read("/tmp/swapped", format="stream") as stream:
            assert await anext(stream)
            await abox.files.write("/tmp/other", bytes(8 * MIB))
            await abox.files.rename("/tmp/other", "/tmp/swapped")
            network.cut()
            with pytest.raises(SandptyError, match="changed while it was read"):
                async for _ in stream:
                    pass
        await sandbox.close()


async def test_a_reader_that_is_cancelled_leaves_nothing_open(abox: AsyncSandbox) -> None:
    """The next request has its place."""
    await abox.files.write("/tmp/cancelled", bytes(32 * MIB))

    async def read() -> None:
        async with await abox.files.read("/tmp/cancelled", format="stream") as stream:
            async for _ in stream:
                await asyncio.Event().wait()

    for _ in range(30):  # more than the sandbox has places for
        task = asyncio.create_task(read())
        await turn()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await abox.files.exists("/tmp/cancelled")


# --- watching ---------------------------------------------------------------------------------------------------------

NEW_FILE = {("new", FilesystemEventType.CREATE), ("new", FilesystemEventType.WRITE)}


def test_a_watch_is_asked_now_and_then(box: Sandbox) -> None:
    """As E2B's blocking SDK has it: what was written before the question is in the answer."""
    box.files.make_dir("/tmp/asked")
    with box.files.watch_dir("/tmp/asked", recursive=True, include_entry=True) as watch:
        assert watch.get_new_events() == []
        box.files.write("/tmp/asked/new", b"1")
        events = watch.get_new_events()
        assert {(event.name, event.type) for event in events} >= NEW_FILE
        assert events[0].entry is not None
        assert events[0].entry.path == "/tmp/asked/new"
        assert watch.get_new_events() == []
        box.files.remove("/tmp/asked")
        assert FilesystemEventType.GONE in [event.type for event in watch]  # which ends by itself


async def test_a_watch_calls_back(abox: AsyncSandbox) -> None:
    """In the background, until it is stopped; then on_exit is called, once."""
    await abox.files.make_dir("/tmp/called")
    events: list[FilesystemEvent] = []
    ends: list[Exception | None] = []
    watch = await abox.files.watch_dir("/tmp/called", events.append, ends.append)
    await abox.files.write("/tmp/called/new", b"1")
    await until(lambda: {(event.name, event.type) for event in events} >= NEW_FILE, EVENT_WAIT_S)
    assert ends == []
    await abox.files.remove("/tmp/called")
    await until(lambda: ends, EVENT_WAIT_S)
    assert ends == [None]
    await watch.stop()
    with pytest.raises(FileNotFoundError):
        await abox.files.watch_dir("/tmp/called")


def test_the_blocking_flavour_calls_back_from_a_thread(box: Sandbox) -> None:
    """And `timeout` ends the watch by itself."""
    box.files.make_dir("/tmp/threads")
    events: list[FilesystemEvent] = []
    ends: list[Exception | None] = []
    with box.files.watch_dir("/tmp/threads", events.append) as watch:
        box.files.write("/tmp/threads/new", b"1")
        until_sync(lambda: {(event.name, event.type) for event in events} >= NEW_FILE, EVENT_WAIT_S)
        watch.stop()
    with box.files.watch_dir("/tmp/threads", on_exit=ends.append, timeout=0.2):
        until_sync(lambda: ends == [None], EVENT_WAIT_S)


async def test_a_watch_survives_its_connection_and_says_that_it_was_away(
    server: RunningServer, abox: AsyncSandbox
) -> None:
    """Nobody knows what happened meanwhile: that is an event of its own."""
    await abox.files.make_dir("/tmp/away")
    async with relay(server.port) as network:
        sandbox = await AsyncSandbox.connect(abox.sandbox_id, url=network.url, api_key=server.api_key)
        async with await sandbox.files.watch_dir("/tmp/away") as watch:
            network.cut()
            assert (await asyncio.wait_for(anext(watch), EVENT_WAIT_S)).type is FilesystemEventType.OVERFLOW
            await abox.files.write("/tmp/away/new", b"1")
            seen = set()
            while not seen >= NEW_FILE:
                seen |= {(event.name, event.type) for event in await watch.get_new_events()}
        await sandbox.close()


async def test_a_watch_ends_with_its_sandbox(server: RunningServer) -> None:
    """With the reason, whoever waits."""
    sandbox = await AsyncSandbox.create(url=server.url, api_key=server.api_key, timeout=60)
    async with await sandbox.files.watch_dir("/tmp") as watch:
        waiting = asyncio.create_task(anext(watch))
        await sandbox.kill()
        with pytest.raises(SandptyError) as ended:
            await asyncio.wait_for(waiting, EVENT_WAIT_S)
        assert ended.value.reason.name == "sandbox_ended"
    await sandbox.close()
