"""Files through E2B's unmodified asynchronous SDK: transfers side by side, and watches as streams."""

from __future__ import annotations

import asyncio
import os

import pytest
from e2b import AsyncSandbox, FilesystemEvent, FilesystemEventType
from e2b.exceptions import FileNotFoundException, InvalidArgumentException
from e2b.sandbox.filesystem.filesystem import WriteEntry

from tests.waiting import until

EVENTS_S = 30.0


class Seen:
    """What a watch has told so far."""

    def __init__(self) -> None:
        self.events: list[FilesystemEvent] = []
        self.ended: list[Exception | None] = []

    def __call__(self, event: FilesystemEvent) -> None:
        self.events.append(event)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(event.type.value, event.name) for event in self.events]

    async def saw(self, kind: str, name: str) -> None:
        await until(lambda: (kind, name) in self.pairs, EVENTS_S, f"{kind} {name}")


async def test_files_are_written_and_read(asandbox: AsyncSandbox) -> None:
    """Text, bytes, streams, many at once, with and without gzip."""
    data = os.urandom(3 << 20)
    for gzip in (False, True):
        await asandbox.files.write("f", data, gzip=gzip)
        assert bytes(await asandbox.files.read("f", format="bytes", gzip=gzip)) == data
        pieces = [piece async for piece in await asandbox.files.read("f", format="stream", gzip=gzip)]
        assert b"".join(pieces) == data
    await asandbox.files.write_files([WriteEntry(path=f"d/{i}", data=str(i)) for i in range(20)])
    assert [entry.name for entry in await asandbox.files.list("d")] == sorted(str(i) for i in range(20))
    assert await asandbox.files.exists("d/7")
    await asandbox.files.remove("d")
    assert not await asandbox.files.exists("d/7")
    with pytest.raises(FileNotFoundException):
        await asandbox.files.read("d/7")


async def test_transfers_do_not_wait_for_each_other(asandbox: AsyncSandbox) -> None:
    """Sixty at once, more than there are connections into the sandbox."""

    async def there_and_back(number: int) -> bool:
        data = bytes([number]) * (200_000 + number)
        await asandbox.files.write(f"{number}.bin", data, use_octet_stream=number % 2 == 0)
        return bytes(await asandbox.files.read(f"{number}.bin", format="bytes")) == data

    assert all(await asyncio.gather(*(there_and_back(number) for number in range(60))))


async def test_a_watch_tells_as_it_happens(asandbox: AsyncSandbox) -> None:
    """A new file is three events; the stream ends when it is stopped."""
    await asandbox.files.make_dir("d")
    seen = Seen()
    watch = await asandbox.files.watch_dir("d", seen, on_exit=seen.ended.append)
    await asandbox.files.write("d/f", "x")
    await until(lambda: len(seen.events) >= 3, EVENTS_S)
    assert seen.pairs == [("create", "f"), ("chmod", "f"), ("write", "f")]
    await asandbox.commands.run("cd d; mv f g; rm g")
    await seen.saw("remove", "g")
    assert seen.pairs[3:] == [("rename", "f"), ("create", "g"), ("remove", "g")]
    await watch.stop()


async def test_a_recursive_watch_sees_new_directories_at_once(asandbox: AsyncSandbox) -> None:
    """What is written right after the directory was made; entries come along when asked for."""
    await asandbox.files.make_dir("d")
    seen, flat = Seen(), Seen()
    watch = await asandbox.files.watch_dir("d", seen, recursive=True, include_entry=True)
    other = await asandbox.files.watch_dir("d", flat)
    await asandbox.commands.run("mkdir -p d/a/b/c; echo text > d/a/b/c/f")
    for name in ("a", "a/b", "a/b/c", "a/b/c/f"):
        await seen.saw("create", name)
    await seen.saw("write", "a/b/c/f")
    entry = next(event.entry for event in seen.events if event.name == "a/b" and event.entry)
    assert entry.path == "/home/user/d/a/b"
    assert {event.name for event in flat.events} == {"a"}
    await watch.stop()
    await other.stop()


async def test_ten_thousand_files_are_watched(asandbox: AsyncSandbox) -> None:
    """As many as are made while the stream is read; none is missed, none told twice."""
    await asandbox.files.make_dir("d")
    seen = Seen()
    watch = await asandbox.files.watch_dir("d", seen, recursive=True)
    for part in range(4):
        await asandbox.commands.run(f"mkdir d/{part}; cd d/{part}; seq -f %04g 2500 | xargs touch")
        await seen.saw("create", f"{part}/2500")
    created = [event.name for event in seen.events if event.type == FilesystemEventType.CREATE]
    assert len(set(created)) == 10_004
    assert len(created) == 10_004
    await watch.stop()


async def test_a_watch_outlives_its_directory(asandbox: AsyncSandbox) -> None:
    """It says that the directory went, and then nothing."""
    await asandbox.files.make_dir("d")
    seen = Seen()
    watch = await asandbox.files.watch_dir("d", seen, on_exit=seen.ended.append)
    await asandbox.files.remove("d")
    await seen.saw("remove", ".")
    assert not seen.ended
    await watch.stop()


async def test_a_watch_ends_with_its_sandbox(asandbox: AsyncSandbox) -> None:
    """With an exception that says so."""
    seen = Seen()
    await asandbox.files.watch_dir("/tmp", seen, on_exit=seen.ended.append, timeout=0)
    await asandbox.kill()
    await until(lambda: seen.ended, EVENTS_S)
    assert seen.ended[0] is not None


async def test_only_directories_are_watched(asandbox: AsyncSandbox) -> None:
    """A missing one and a file are errors."""
    with pytest.raises(FileNotFoundException):
        await asandbox.files.watch_dir("none", Seen())
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        await asandbox.files.watch_dir("/etc/passwd", Seen())
