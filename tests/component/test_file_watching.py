"""Watching directories of a guest through a real agent: what happens is told, in order, and how much was missed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from sandpty.terminal.files import Files, Watch, WatchEventType
from sandpty.wire.errors import SandptyError
from tests.component.files_root import FilesRoot, files_root
from tests.component.test_files import refused
from tests.waiting import until, until_sync

CREATE, WRITE, REMOVE, RENAME, CHMOD, OVERFLOW, GONE = WatchEventType
ENOUGH = 40_000  # events; the kernel's queue holds 16,384


@pytest.fixture(scope="module")
def guest() -> Iterator[FilesRoot]:
    """One guest for the tests of this file; each uses paths of its own."""
    with files_root() as running:
        yield running


@asynccontextmanager
async def watched(guest: FilesRoot, path: str, recursive: bool = True, entries: bool = False) -> AsyncIterator[Watch]:
    """A new directory that is watched."""
    directory = guest.path(path)
    directory.mkdir(exist_ok=True)
    directory.chmod(0o777)
    async with await guest.open("user") as connection:
        yield await connection.watch(path, recursive=recursive, entries=entries)


async def told(watch: Watch) -> list[tuple[WatchEventType, str]]:
    """All until now; the same thing several times in a row once (a file is truncated and written: one event or two)."""
    events = [(event.type, event.name) for event in await watch.pending()]
    return [event for before, event in zip([None, *events], events, strict=False) if event != before]


async def test_an_upload_of_a_new_file_is_three_events(guest: FilesRoot) -> None:
    """Created, given to its owner, written: what E2B's clients count on, and it is there at once when asked for."""
    async with watched(guest, "/tmp/three", recursive=False, entries=True) as watch, await guest.open("root") as files:
        await files.write("/tmp/three/new", b"content", uid=1000, gid=1000)
        events = await watch.pending()
        assert [(event.type, event.name) for event in events] == [(CREATE, "new"), (CHMOD, "new"), (WRITE, "new")]
        assert [event.entry.path for event in events if event.entry] == ["/tmp/three/new"] * 3
        await files.write("/tmp/three/new", b"again")
        assert (WRITE, "new") in await told(watch)


async def test_every_kind_of_event_is_told(guest: FilesRoot) -> None:
    """In the order in which things happened."""
    async with watched(guest, "/tmp/kinds", recursive=False) as watch, await guest.open("user") as files:
        await files.write("/tmp/kinds/a", b"")
        await files.change("/tmp/kinds/a", mode=0o600)
        await files.move("/tmp/kinds/a", "/tmp/kinds/b")
        await files.move("/tmp/kinds/b", "/tmp/b-elsewhere")
        await files.make_directory("/tmp/kinds/sub")
        await files.write("/tmp/kinds/sub/unseen", b"x")
        await files.remove("/tmp/kinds/sub", recursive=True)
        assert await told(watch) == [
            (CREATE, "a"),
            (CHMOD, "a"),
            (RENAME, "a"),
            (CREATE, "b"),
            (RENAME, "b"),
            (CREATE, "sub"),
            (REMOVE, "sub"),
        ]
        assert await told(watch) == []


async def test_new_directories_are_watched_at_once(guest: FilesRoot) -> None:
    """What was put into them before we could look is told too, once."""
    async with watched(guest, "/tmp/tree") as watch, await guest.open("user") as files:
        for number in range(20):
            await files.write(f"/tmp/tree/{number}/below/file", b"x", parents=True)
        events = await told(watch)
        for number in range(20):
            for name in (f"{number}", f"{number}/below", f"{number}/below/file"):
                assert events.count((CREATE, name)) == 1
            assert (WRITE, f"{number}/below/file") in events
        await files.write("/tmp/tree/7/below/file", b"more")
        assert (WRITE, "7/below/file") in await told(watch)


async def test_a_directory_that_is_renamed_is_told_of_under_its_new_name(guest: FilesRoot) -> None:
    """And one that moved away no more."""
    async with watched(guest, "/tmp/renames") as watch, await guest.open("user") as files:
        await files.write("/tmp/renames/old/sub/file", b"x", parents=True)
        await told(watch)
        await files.move("/tmp/renames/old", "/tmp/renames/new")
        await files.write("/tmp/renames/new/sub/file", b"y")
        assert await told(watch) == [
            (RENAME, "old"),
            (CREATE, "new"),
            (WRITE, "new/sub/file"),
        ]
        await files.move("/tmp/renames/new", "/tmp/elsewhere")
        await files.write("/tmp/elsewhere/sub/file", b"z")
        assert await told(watch) == [(RENAME, "new")]
        await files.move("/tmp/elsewhere", "/tmp/renames/back")
        assert await told(watch) == [(CREATE, "back")]
        await files.write("/tmp/renames/back/sub/file", b"z")
        assert (WRITE, "back/sub/file") in await told(watch)


async def test_events_come_without_being_asked_for(guest: FilesRoot) -> None:
    """As an iterator, until the directory is gone."""
    seen = []
    async with watched(guest, "/tmp/iterated") as watch, await guest.open("root") as files:

        async def iterate() -> None:
            async for event in watch:
                seen.append((event.type, event.name))

        task = asyncio.create_task(iterate())
        await files.write("/tmp/iterated/file", b"x")
        await until(lambda: (CREATE, "file") in seen, timeout_s=30)
        await files.remove("/tmp/iterated", recursive=True)
        await asyncio.wait_for(task, 30)
    assert seen[-2:] == [(REMOVE, "file"), (GONE, "")]


async def test_a_watcher_that_does_not_listen_is_told_what_it_missed(guest: FilesRoot) -> None:
    """The kernel's queue is the bound; afterwards the watch goes on, also in directories made meanwhile."""
    async with watched(guest, "/tmp/flood") as watch, await guest.open("user") as files:
        directory = guest.path("/tmp/flood")
        for number in range(ENOUGH):
            (directory / f"{number % 2}").touch()
            os.utime(directory / f"{number % 2}")
        (directory / "late").mkdir(mode=0o777)
        (directory / "late").chmod(0o777)
        events = await told(watch)
        assert (OVERFLOW, "") in events
        assert len(events) < ENOUGH * 2
        await files.write("/tmp/flood/late/file", b"x")
        await until(lambda: has_told(watch, (CREATE, "late/file")), timeout_s=30)


async def has_told(watch: Watch, event: tuple[WatchEventType, str]) -> bool:
    """Whether it is among what is pending now."""
    return event in await told(watch)


async def test_what_cannot_be_watched_is_refused(guest: FilesRoot) -> None:
    """And the connection is good for something else."""
    async with await guest.open("user") as files:
        await files.write("/tmp/no-directory", b"")
        assert await refused(files.watch("/tmp/no-directory")) == "not_a_directory"
        assert await refused(files.watch("/tmp/missing")) == "no_such_file"
        assert await refused(files.watch("/home/other")) == "permission_denied"
        assert files.reusable
        await files.watch("/tmp")
        with pytest.raises(SandptyError, match="one thing at a time"):
            await files.stat("/tmp")


async def test_a_watch_that_is_closed_leaves_nothing(guest: FilesRoot) -> None:
    """Its child goes with it, also while it has much to tell."""
    watches: list[Files] = []
    for number in range(8):
        connection = await guest.open("user")
        await connection.watch("/tmp", recursive=True, entries=True)
        watches.append(connection)
        guest.path(f"/tmp/noise-{number}").touch()
    for connection in watches:
        connection.close()
    until_sync(lambda: guest.children() == [], timeout_s=30)
