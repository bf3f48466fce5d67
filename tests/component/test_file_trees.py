"""Directories of a guest through a real agent: listed, made, moved, copied, removed, whatever the guest does."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from sandpty.terminal.files import EntryType, Files
from sandpty.wire.errors import SandptyError
from tests.component.files_root import OTHER, USER, FilesRoot, files_root
from tests.component.test_files import content, listed, refused

DEEP = 3000


@pytest.fixture(scope="module")
def guest() -> Iterator[FilesRoot]:
    """One guest for the tests of this file; each uses paths of its own."""
    with files_root() as running:
        yield running


@pytest_asyncio.fixture
async def files(guest: FilesRoot) -> AsyncIterator[Files]:
    """A connection that acts as `user`."""
    async with await guest.open("user") as connection:
        yield connection
        assert connection.reusable


@pytest_asyncio.fixture
async def root(guest: FilesRoot) -> AsyncIterator[Files]:
    """A connection that acts as root."""
    async with await guest.open("root") as connection:
        yield connection
        assert connection.reusable


async def plant(files: Files, base: str, *paths: str) -> None:
    """Files with their own path as content."""
    for path in paths:
        await files.write(f"{base}/{path}", path.encode(), parents=True)


# --- listing ---------------------------------------------------------------------------------------------------------


async def test_a_listing_is_a_walk_in_the_order_of_names(files: Files) -> None:
    """A directory, then what is in it; names by bytes; as deep as asked."""
    await plant(files, "/tmp/walk", "b", "a/y", "a/x/1", "a.txt", "B")
    base = "/tmp/walk"
    assert await listed(files, base) == [f"{base}/{name}" for name in ("B", "a", "a.txt", "b")]
    assert await listed(files, base + "/", depth=9) == [
        f"{base}/{name}" for name in ("B", "a", "a/x", "a/x/1", "a/y", "a.txt", "b")
    ]
    assert await listed(files, base, depth=2) == [f"{base}/{name}" for name in ("B", "a", "a/x", "a/y", "a.txt", "b")]
    await files.make_directory("/tmp/walk/empty")
    assert await listed(files, "/tmp/walk/empty") == []
    assert "/etc" in await listed(files, "/")


async def test_symlinks_are_shown_with_where_they_lead_and_not_entered(files: Files) -> None:
    """A listed symlink to a directory is followed, below it none is."""
    await plant(files, "/tmp/links", "dir/file")
    await files.make_symlink("/tmp/links/to-dir", "dir")
    await files.make_symlink("/tmp/links/to-nothing", "missing")
    await files.make_symlink("/tmp/links/dir/up", "..")
    entries = [entry async for portion in files.list("/tmp/links", depth=9) for entry in portion]
    by_name = {entry.name: entry for entry in entries}
    assert [entry.name for entry in entries] == ["dir", "file", "up", "to-dir", "to-nothing"]
    link = by_name["to-dir"]
    assert (link.type, link.link_text, link.target) == (EntryType.SYMLINK, "dir", "/tmp/links/dir")
    assert (link.target_type, link.permissions) == (EntryType.DIRECTORY, "lrwxrwxrwx")
    dangling = by_name["to-nothing"]
    assert (dangling.link_text, dangling.target, dangling.target_type) == ("missing", None, EntryType.UNKNOWN)
    assert await listed(files, "/tmp/links/to-dir") == ["/tmp/links/to-dir/file", "/tmp/links/to-dir/up"]
    assert await files.real_path("/tmp/links/to-dir/up/to-dir/file") == "/tmp/links/dir/file"


async def test_metadata_owners_and_times_are_in_a_listing(root: Files) -> None:
    """As `stat` says them, relative to their own directories."""
    await root.write("/tmp/about/sub/file", b"12345", parents=True, uid=USER, gid=OTHER, metadata={"k": "v"})
    await root.change("/tmp/about/sub/file", modified_ns=1_234_567_890_123_456_789, mode=0o4750)
    entries = [entry async for portion in root.list("/tmp/about", depth=2) for entry in portion]
    assert entries[-1] == await root.stat("/tmp/about/sub/file")
    assert (entries[-1].owner, entries[-1].group, entries[-1].metadata) == ("user", "other", {"k": "v"})
    assert (entries[-1].modified_ns, entries[-1].permissions) == (1_234_567_890_123_456_789, "-rwsr-x---")


async def test_ten_thousand_entries_are_listed(files: Files, guest: FilesRoot) -> None:
    """All of them, once, in order; a limit is told."""
    directory = guest.path("/tmp/many")
    directory.mkdir()
    for number in range(10_000):
        (directory / f"file-{number:05}").touch()
    found = await listed(files, "/tmp/many")
    assert found == [f"/tmp/many/file-{number:05}" for number in range(10_000)]
    with pytest.raises(SandptyError, match="Too many entries"):
        _ = [portion async for portion in files.list("/tmp/many", limit=9_999)]
    assert await files.size_of("/tmp/many") == 0


# --- making and removing ---------------------------------------------------------------------------------------------


async def test_directories_are_made_with_their_parents(root: Files, guest: FilesRoot) -> None:
    """How many were new is told; one that is there is left as it is."""
    made = await root.make_directory("/tmp/made/a/b", mode=0o750, uid=USER, gid=USER)
    assert (made.made, made.entry.mode, made.entry.owner) == (3, 0o750, "user")
    assert guest.path("/tmp/made/a").stat().st_uid == USER
    again = await root.make_directory("/tmp/made/a/b", mode=0o700)
    assert (again.made, again.entry.mode) == (0, 0o750)
    assert await refused(root.make_directory("/tmp/made/x/y", parents=False)) == "no_such_file"
    assert (await root.make_directory("/")).made == 0


async def test_removing_takes_the_tree_and_not_what_links_lead_to(files: Files, guest: FilesRoot) -> None:
    """A directory only when recursive; a symlink is the link."""
    await plant(files, "/tmp/gone", "a/b/c", "a/d", "e")
    await plant(files, "/tmp/stays", "file")
    await files.make_symlink("/tmp/gone/a/link", "/tmp/stays")
    await files.make_symlink("/tmp/link-to-stays", "/tmp/stays")
    assert await refused(files.remove("/tmp/gone")) == "not_empty"
    await files.remove("/tmp/gone/", recursive=True)
    await files.remove("/tmp/link-to-stays", recursive=True)
    assert not guest.path("/tmp/gone").exists()
    assert guest.path("/tmp/stays/file").exists()
    assert await refused(files.remove("/tmp/gone", recursive=True)) == "no_such_file"
    await files.make_directory("/tmp/empty")
    await files.remove("/tmp/empty")


def nest(base: Path, levels: int) -> None:
    """Directories in each other, deeper than any path can say."""
    base.mkdir()
    here = os.open(base, os.O_RDONLY)
    for level in range(levels):
        os.mkdir("d", dir_fd=here)
        if level % 500 == 0:
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


async def test_a_nest_deeper_than_paths_can_say_is_removed(root: Files, guest: FilesRoot) -> None:
    """With a bounded number of descriptors; listing and copying it end with an error or at their depth."""
    nest(guest.path("/tmp/deep"), DEEP)
    assert len(await listed(root, "/tmp/deep", depth=100)) == 101
    assert await refused(listed(root, "/tmp/deep", depth=1_000_000)) == "limit"
    assert await refused(root.copy("/tmp/deep", "/tmp/deep-copy", recursive=True)) == "limit"
    await root.remove("/tmp/deep-copy", recursive=True)
    await root.remove("/tmp/deep", recursive=True)
    assert not guest.path("/tmp/deep").exists()


async def test_a_tree_that_others_remove_too_is_removed(root: Files, guest: FilesRoot) -> None:
    """Whoever is answered finds nothing left, wherever the other one was just then."""
    tree = guest.path("/tmp/both")

    async def gone(files: Files) -> bool:
        with suppress(SandptyError):  # the other one had done it all
            await files.remove("/tmp/both", recursive=True)
        return not tree.exists()

    async with await guest.open("root") as other:
        for _ in range(3):
            for name in range(100):
                (tree / f"{name}" / "below").mkdir(parents=True)
            assert await asyncio.gather(gone(root), gone(other)) == [True, True]


async def test_a_wide_tree_is_removed(root: Files, guest: FilesRoot) -> None:
    """More names than are taken at a time."""
    base = guest.path("/tmp/wide")
    for name in range(40):
        (base / f"directory-{name}" / "below").mkdir(parents=True)
    for name in range(3_000):
        (base / f"{'long-name-' * 20}{name}").touch()
    await root.remove("/tmp/wide", recursive=True)
    assert not base.exists()


# --- moving, copying, changing ---------------------------------------------------------------------------------------


async def test_moving_renames_and_replaces(files: Files) -> None:
    """Metadata travels; without overwrite what is there stays; parents on request."""
    await files.write("/tmp/move/from", b"from", parents=True, metadata={"k": "v"})
    await files.write("/tmp/move/to", b"to")
    assert await refused(files.move("/tmp/move/from", "/tmp/move/to", overwrite=False)) == "file_exists"
    moved = await files.move("/tmp/move/from", "/tmp/move/to")
    assert (moved.path, moved.metadata) == ("/tmp/move/to", {"k": "v"})
    assert await content(files, "/tmp/move/to") == b"from"
    assert await refused(files.move("/tmp/move/from", "/tmp/x")) == "no_such_file"
    assert await refused(files.move("/tmp/move/to", "/tmp/new/x")) == "no_such_file"
    await files.move("/tmp/move/to", "/tmp/new/x", parents=True)
    await plant(files, "/tmp/full", "file")
    assert await refused(files.move("/tmp/move", "/tmp/full")) == "not_empty"
    assert await refused(files.move("/tmp/full", "/tmp/full/below")) == "bad_path"
    await files.move("/tmp/full/", "/tmp/full-moved/")
    assert await listed(files, "/tmp/full-moved") == ["/tmp/full-moved/file"]


async def test_moving_between_file_systems_copies_and_removes(files: Files, guest: FilesRoot) -> None:
    """As `mv` does; what does not fit stays where it was."""
    await plant(files, "/tmp/far", "a/b", "c")
    await files.make_symlink("/tmp/far/link", "a/b")
    moved = await files.move("/tmp/far", "/small/far")
    assert moved.is_directory
    assert await listed(files, "/small/far", 3) == [f"/small/far/{name}" for name in ("a", "a/b", "c", "link")]
    assert not guest.path("/tmp/far").exists()
    await files.write("/tmp/too-big", bytes(2 << 20))
    assert await refused(files.move("/tmp/too-big", "/small/too-big")) == "no_space"
    assert (await files.stat("/tmp/too-big")).size == 2 << 20
    assert await listed(files, "/small") == ["/small/far"]
    await files.remove("/small/far", recursive=True)


async def test_copying_takes_modes_times_metadata_and_holes(files: Files, guest: FilesRoot) -> None:
    """As `cp -a` does."""
    await files.write("/tmp/copy/a/file", b"data", parents=True, mode=0o640, set_mode=True, metadata={"k": "v"})
    await files.change("/tmp/copy/a/file", modified_ns=10**18)
    await files.make_symlink("/tmp/copy/a/link", "file")
    os.mkfifo(guest.path("/tmp/copy/fifo"))
    sparse = guest.path("/tmp/copy/sparse")
    with sparse.open("wb") as hole:
        hole.seek(1 << 30)
        hole.write(b"end")
        os.truncate(hole.fileno(), 1 << 31)
    sparse.chmod(0o644)
    assert await refused(files.copy("/tmp/copy", "/tmp/copied")) == "is_a_directory"
    await files.copy("/tmp/copy", "/tmp/copied", recursive=True)
    entry = await files.stat("/tmp/copied/a/file")
    assert (entry.mode, entry.modified_ns, entry.metadata) == (0o640, 10**18, {"k": "v"})
    link = await files.stat("/tmp/copied/a/link")
    assert (link.link_text, link.target) == ("file", "/tmp/copied/a/file")
    about = guest.path("/tmp/copied/sparse").stat()
    assert about.st_size == 1 << 31
    assert about.st_blocks * 512 < 1 << 20
    assert await content(files, "/tmp/copied/sparse", 1 << 30, 3) == b"end"
    assert (await files.stat("/tmp/copied/fifo")).type is EntryType.FIFO
    assert await refused(files.copy("/tmp/copy", "/tmp/copied", recursive=True, overwrite=False)) == "file_exists"
    assert await refused(files.copy("/tmp/copy", "/tmp/copy/a/itself", recursive=True)) == "bad_path"
    assert (await files.copy("/proc/self/status", "/tmp/status")).size > 100


async def test_copying_replaces_a_symlink_in_the_way_and_not_what_it_leads_to(files: Files) -> None:
    """Also onto itself nothing is lost."""
    await plant(files, "/tmp/onto", "source", "precious")
    await files.make_symlink("/tmp/onto/link", "precious")
    copied = await files.copy("/tmp/onto/source", "/tmp/onto/link")
    assert copied.type is EntryType.FILE
    assert await content(files, "/tmp/onto/link") == b"source"
    assert await content(files, "/tmp/onto/precious") == b"precious"
    assert await refused(files.copy("/tmp/onto/source", "/tmp/onto/source")) == "bad_path"
    assert await content(files, "/tmp/onto/source") == b"source"
    await files.make_symlink("/tmp/onto/again", "precious")
    assert (await files.copy("/tmp/onto/again", "/tmp/onto/copy")).link_text == "precious"


async def test_modes_owners_and_times_are_changed_together_and_below(root: Files, guest: FilesRoot) -> None:
    """Recursive: links below are not followed; a mode that shuts us out is no obstacle to the rest."""
    await plant(root, "/tmp/change", "a/b/c", "d")
    guest.path("/tmp/change/a/link").symlink_to("/etc/passwd")
    entry = await root.change(
        "/tmp/change", mode=0o700, uid=USER, gid=USER, modified_ns=5, accessed_ns=-7, recursive=True
    )
    assert (entry.mode, entry.owner, entry.modified_ns, entry.accessed_ns) == (0o700, "user", 5, -7)
    for path in ("/tmp/change/a/b/c", "/tmp/change/d", "/tmp/change/a"):
        about = guest.path(path).stat()
        assert (about.st_uid, stat.S_IMODE(about.st_mode)) == (USER, 0o700)
    assert guest.path("/etc/passwd").stat().st_uid == 0
    assert stat.S_IMODE(guest.path("/etc/passwd").stat().st_mode) != 0o700
    assert guest.path("/tmp/change/a/link").lstat().st_uid == USER
    async with await guest.open("user") as user:
        await user.change("/tmp/change", mode=0, recursive=True)
        await user.change("/tmp/change", mode=0o755, recursive=True)
        assert await listed(user, "/tmp/change", 9) == [
            f"/tmp/change/{p}" for p in ("a", "a/b", "a/b/c", "a/link", "d")
        ]
