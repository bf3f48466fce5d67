"""Hyperbrowser's files through its unmodified Python SDK, synchronous and asynchronous."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hyperbrowser import AsyncHyperbrowser, Hyperbrowser
from hyperbrowser.client.managers.async_manager.sandbox import SandboxHandle as AsyncSandboxHandle
from hyperbrowser.client.managers.sync_manager.sandbox import SandboxHandle
from hyperbrowser.exceptions import HyperbrowserError
from hyperbrowser.models import SandboxFileWriteEntry

from tests.waiting import until, until_sync

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def sandbox(hyperbrowser: Hyperbrowser, hyperbrowser_sandbox_id: str) -> SandboxHandle:
    """The sandbox of this module."""
    return hyperbrowser.sandboxes.get(hyperbrowser_sandbox_id)


@pytest_asyncio.fixture
async def asandbox(ahyperbrowser: AsyncHyperbrowser, hyperbrowser_sandbox_id: str) -> AsyncSandboxHandle:
    """The same, asynchronously."""
    return await ahyperbrowser.sandboxes.get(hyperbrowser_sandbox_id)


@pytest.fixture
def place() -> str:
    """A directory's name of its own for one test."""
    return f"/tmp/place-{uuid.uuid4().hex[:12]}"


def refused(call: Callable[[], Any]) -> tuple[int | None, str | None]:
    """Status and code of the error that a call ends in."""
    with pytest.raises(HyperbrowserError) as caught:
        call()
    return caught.value.status_code, caught.value.code


def test_files_are_written_and_read(sandbox: SandboxHandle, place: str) -> None:
    """Text, bytes, parts, streams; missing directories are made; modes are as asked for."""
    files = sandbox.files
    assert not files.exists(f"{place}/a.txt")
    written = files.write(f"{place}/deep/a.txt", "héllo\u2028")
    assert (written.path, written.name) == (f"{place}/deep/a.txt", "a.txt")
    assert files.read(written.path) == files.read_text(written.path) == "héllo\u2028"
    assert files.read(written.path, format="bytes") == files.read(written.path, format="blob") == "héllo\u2028".encode()
    assert files.read(written.path, format="stream").read() == "héllo\u2028".encode()
    assert files.read_text(written.path, offset=0, length=1) == "h"
    assert files.read_bytes(written.path, offset=1, length=2) == "é".encode()
    info = files.get_info(written.path)
    assert (info.name, info.type, info.size, info.mode) == ("a.txt", "file", 9, 0o644)
    assert (info.permissions, info.owner, info.group, info.symlink_target) == ("-rw-r--r--", "user", "user", None)
    assert info.modified_time is not None
    assert files.stat(written.path) == info
    batch = files.write(
        [
            SandboxFileWriteEntry(path=f"{place}/b1", data="one", mode="600"),
            SandboxFileWriteEntry(path=f"{place}/b2", data=bytes(range(256))),
        ]
    )
    assert [item.name for item in batch] == ["b1", "b2"]
    assert files.get_info(f"{place}/b1").mode == 0o600
    assert files.read_bytes(f"{place}/b2") == bytes(range(256))
    files.write_text(f"{place}/t", "hello", mode="0640")
    files.write_text(f"{place}/t", " world", append=True)
    files.write_bytes(f"{place}/t", b"!", append=True)
    assert (files.read_text(f"{place}/t"), files.get_info(f"{place}/t").mode) == ("hello world!", 0o640)
    assert files.read_bytes("/proc/self/status").startswith(b"Name:")


def test_big_files_go_up_and_down_whole(sandbox: SandboxHandle, place: str) -> None:
    """In one piece or as streams, of any size; an empty one too."""
    files, data = sandbox.files, bytes(range(256)) * 40_000
    assert files.upload(f"{place}/up", data).bytes_written == len(data)
    assert files.download(f"{place}/up") == data
    assert files.read_bytes(f"{place}/up") == data
    pieces = (data[at : at + 100_000] for at in range(0, len(data), 100_000))
    assert files.upload_stream(f"{place}/stream", pieces).bytes_written == len(data)
    assert b"".join(files.download_stream(f"{place}/stream")) == data
    assert files.upload(f"{place}/text", "téxt").bytes_written == 5
    assert files.upload(f"{place}/empty", b"").bytes_written == 0
    assert files.download(f"{place}/empty") == b""
    files.write_bytes(f"{place}/written", data)
    assert files.download(f"{place}/written") == data


def test_directories_are_made_listed_and_removed(sandbox: SandboxHandle, place: str) -> None:
    """Alphabetical, depth first; links are told and not followed, but one that is listed itself leads on."""
    files = sandbox.files
    assert files.make_dir(f"{place}/d/inner")
    assert not files.make_dir(f"{place}/d/inner")
    assert files.mkdir(f"{place}/private", mode="0700")
    assert files.get_info(f"{place}/private").mode == 0o700
    files.write_text(f"{place}/d/inner/leaf.txt", "leaf")
    files.write_text(f"{place}/root.txt", "root")
    sandbox.exec(f"cd {place}; ln -s .. d/loop; ln -s {place}/d link; ln -s missing broken")
    listed = files.list(place, depth=2)
    names = ["broken", "d", "d/inner", "d/loop", "link", "private", "root.txt"]
    assert [entry.path for entry in listed] == [f"{place}/{name}" for name in names]
    kinds = {entry.name: (entry.type, entry.symlink_target) for entry in listed}
    assert kinds["loop"] == ("dir", place)
    assert kinds["link"] == ("dir", f"{place}/d")
    assert kinds["broken"] == ("file", f"{place}/missing")
    assert kinds["private"] == ("dir", None)
    assert [entry.path for entry in files.list(f"{place}/link")] == [f"{place}/d/inner", f"{place}/d/loop"]
    assert files.exists(f"{place}/broken")
    files.remove(f"{place}/link", recursive=True)
    assert files.exists(f"{place}/d/inner/leaf.txt")
    files.remove(f"{place}/never-there")
    assert refused(lambda: files.remove(f"{place}/d"))[0] == 409
    files.delete(f"{place}/d", recursive=True)
    assert not files.exists(f"{place}/d")


def test_files_are_moved_copied_and_given_away(sandbox: SandboxHandle, place: str) -> None:
    """Nothing is overwritten unasked; a tree's relative links lead to the copies; root may give files away."""
    files, root = sandbox.files, sandbox.files.with_run_as("root")
    files.write_text(f"{place}/a/one.txt", "one")
    sandbox.exec(f"cd {place}/a; ln -s one.txt link")
    assert files.rename(f"{place}/a/one.txt", f"{place}/a/two.txt").path == f"{place}/a/two.txt"
    assert files.move(source=f"{place}/a/two.txt", destination=f"{place}/a/one.txt").name == "one.txt"
    assert files.copy(source=f"{place}/a", destination=f"{place}/b", recursive=True).type == "dir"
    assert files.get_info(f"{place}/b/link").symlink_target == f"{place}/b/one.txt"
    files.write_text(f"{place}/other.txt", "other")
    clash = {"source": f"{place}/other.txt", "destination": f"{place}/b/link"}
    assert refused(lambda: files.copy(**clash)) == (409, "file_exists")
    assert refused(lambda: files.move(**clash)) == (409, "file_exists")
    assert files.copy(**clash, overwrite=True).symlink_target is None
    assert files.read_text(f"{place}/b/one.txt") == "one"
    assert files.move(**clash, overwrite=True).size == 5
    files.chmod(path=f"{place}/b/one.txt", mode="0600")
    assert files.get_info(f"{place}/b/one.txt").permissions == "-rw-------"
    files.chmod(path=f"{place}/b", mode="0750", recursive=True)
    assert files.get_info(f"{place}/b/one.txt").mode == 0o750
    root.chown(path=f"{place}/b", uid=0, gid=0, recursive=True)
    assert files.get_info(f"{place}/b").owner == "root"
    assert refused(lambda: files.chown(path=f"{place}/a/one.txt", uid=0))[1] == "permission_denied"
    assert refused(lambda: files.write_text("/etc/mine", "x"))[1] == "permission_denied"
    root.write_text(f"{place}/b/roots.txt", "x")
    assert root.get_info(f"{place}/b/roots.txt").owner == "root"


def test_what_cannot_be_is_said(sandbox: SandboxHandle, place: str) -> None:
    """404, 400, 409, in the vendor's words; FIFOs and devices hang nobody."""
    files = sandbox.files
    files.write_text(f"{place}/file", "x")
    sandbox.exec(f"mkfifo {place}/fifo")
    for call in (files.read_text, files.download, files.get_info, files.list):
        with pytest.raises(HyperbrowserError, match="no such file") as caught:
            call(f"{place}/missing")
        assert caught.value.status_code == 404
    with pytest.raises(HyperbrowserError, match="not a directory"):
        files.list(f"{place}/file")
    assert refused(lambda: files.read_text(place)) == (400, "is_a_directory")
    assert refused(lambda: files.read_text(f"{place}/fifo")) == (400, "not_a_file")
    assert refused(lambda: files.upload(f"{place}/fifo", "x"))[0] == 400
    assert refused(lambda: files.make_dir(f"{place}/file"))[0] == 409
    assert refused(lambda: files.read_text("/bad\0path"))[0] == 400
    assert refused(lambda: files.write_text(f"{place}/m", "x", mode="999"))[0] == 400
    assert refused(lambda: files.with_run_as("nobody-at-all").read_text("/etc/passwd")) == (400, "no_such_user")


def test_a_watched_directory_tells_what_happens(sandbox: SandboxHandle, place: str) -> None:
    """Of itself, or of all below it; through a link; until it is stopped."""
    files = sandbox.files
    files.make_dir(f"{place}/sub")
    sandbox.exec(f"ln -s {place} {place}-link")
    seen: dict[str, queue.Queue[tuple[str, str]]] = {}
    ended: queue.Queue[object] = queue.Queue()
    handles = []
    for name, path, recursive in (("flat", place, False), ("deep", place, True), ("link", f"{place}-link", False)):
        events = seen[name] = queue.Queue()
        handles.append(
            files.watch_dir(
                path,
                lambda event, events=events: events.put((event.type, event.name)),
                recursive=recursive,
                on_exit=ended.put,
            )
        )
    files.write_text(f"{place}/sub/below.txt", "x")
    files.write_text(f"{place}/here.txt", "x")
    assert seen["deep"].get(timeout=DEADLINE_S) == ("create", "sub/below.txt")
    for name in ("flat", "link"):
        assert seen[name].get(timeout=DEADLINE_S) == ("create", "here.txt")
        assert seen[name].get(timeout=DEADLINE_S) == ("write", "here.txt")
    for handle in handles:
        handle.stop()
    assert [ended.get(timeout=DEADLINE_S) for _ in handles] == [None, None, None]
    assert refused(lambda: files.watch_dir(f"{place}/missing", print))[0] == 404
    assert refused(lambda: files.watch_dir(f"{place}/here.txt", print)) == (400, "not_a_directory")


def test_a_watch_is_asked_now_and_then_or_resumed_by_cursor(sandbox: SandboxHandle, place: str) -> None:
    """Events have numbers; a cursor misses none; a stopped watch is unknown."""
    files = sandbox.files
    files.make_dir(place)
    watch = files.watch(place, recursive=True)
    assert (watch.current.path, watch.current.active, watch.current.recursive) == (place, True, True)
    assert watch.to_dict()["id"] == watch.to_json()["id"] == watch.id
    for name in ("a", "b", "c"):
        files.write_text(f"{place}/{name}", "x")
    until_sync(lambda: watch.refresh(include_events=True).current.last_seq >= 6, DEADLINE_S)
    events = watch.current.events
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.path for event in events if event.op == "create"] == [f"{place}/{name}" for name in "abc"]
    assert files.get_watch(watch.id).current.events is None
    assert files.get_watch(watch.id, include_events=True).current.event_count == len(events)
    stream = watch.events(cursor=2)
    assert next(stream).event.seq == 3
    stream.close()
    stopper = threading.Timer(0.2, files.get_watch(watch.id).stop)
    stopper.start()
    assert [message.type for message in watch.events(cursor=4, route="stream")][-1] == "done"
    stopper.join()
    assert refused(lambda: files.get_watch(watch.id))[0] == 404


def test_presigned_urls_need_nothing_else(sandbox: SandboxHandle, place: str) -> None:
    """One way, one path; a one-time URL is good once, also when two come at the same moment."""
    files = sandbox.files
    upload = files.upload_url(f"{place}/p.txt", one_time=True, expires_in_seconds=60)
    assert (upload.path, upload.method) == (f"{place}/p.txt", "PUT")
    with ThreadPoolExecutor(4) as pool:
        codes = sorted(pool.map(lambda n: httpx.put(upload.url, content=b"%d" % n, timeout=30).status_code, range(4)))
    assert codes == [200, 401, 401, 401]
    assert files.read_text(upload.path) in ("0", "1", "2", "3")
    download = files.download_url(upload.path)
    assert [httpx.get(download.url, timeout=30).status_code for _ in range(2)] == [200, 200]
    assert httpx.put(download.url, content=b"x", timeout=30).status_code == 401
    assert httpx.get(download.url[:-3] + "abc", timeout=30).status_code == 401
    assert download.expires_at > upload.expires_at
    assert refused(lambda: files.upload_url("/tmp/x", expires_in_seconds=10**9))[0] == 400


async def test_the_same_asynchronously(asandbox: AsyncSandboxHandle, place: str) -> None:
    """Every method of the asynchronous API."""
    files = asandbox.files
    assert await files.make_dir(place)
    assert not await files.mkdir(place)
    assert (await files.write(f"{place}/a", "one")).name == "a"
    await files.write_text(f"{place}/a", " two", append=True)
    await files.write_bytes(f"{place}/b", b"\0")
    assert await files.read(f"{place}/a") == await files.read_text(f"{place}/a") == "one two"
    assert await files.read_bytes(f"{place}/b") == b"\0"
    assert await files.exists(f"{place}/a")
    assert (await files.get_info(f"{place}/a")).size == (await files.stat(f"{place}/a")).size == 7
    assert [entry.name for entry in await files.list(place)] == ["a", "b"]
    assert (await files.upload(f"{place}/up", b"12345")).bytes_written == 5

    async def pieces() -> Any:
        yield b"123"
        yield b"45"

    assert (await files.upload_stream(f"{place}/up2", pieces())).bytes_written == 5
    assert await files.download(f"{place}/up") == b"12345"
    assert b"".join([piece async for piece in files.download_stream(f"{place}/up2")]) == b"12345"
    assert (await files.rename(f"{place}/up2", f"{place}/up3")).name == "up3"
    assert (await files.move(source=f"{place}/up3", destination=f"{place}/up4")).name == "up4"
    assert (await files.copy(source=f"{place}/up4", destination=f"{place}/up5")).name == "up5"
    await files.chmod(path=f"{place}/up5", mode="0600")
    await files.with_run_as("root").chown(path=f"{place}/up5", uid=0, gid=0)
    await files.remove(f"{place}/up4")
    await files.delete(f"{place}/up")
    watch = await files.watch(place)
    await files.write_text(f"{place}/new", "x")
    async for message in watch.events(cursor=0):
        assert message.event.path == f"{place}/new"
        break
    assert (await files.get_watch(watch.id, include_events=True)).current.event_count >= 1
    await (await watch.refresh()).stop()
    names: list[str] = []
    handle = await files.watch_dir(place, lambda event: names.append(event.name))
    await files.write_text(f"{place}/newer", "x")
    await until(lambda: "newer" in names, DEADLINE_S)
    await handle.stop()
    url = (await files.upload_url(f"{place}/signed")).url
    async with httpx.AsyncClient(timeout=30) as http:
        assert (await http.put(url, content=b"signed")).status_code == 200
        assert (await http.get((await files.download_url(f"{place}/signed")).url)).text == "signed"
