"""Somebody in the guest puts a symlink in the place of what is about to be opened, exactly then: it is not followed.

Root acts in directories that others may write to. The other side is always in time: see `tracing`.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sandpty.terminal.files import Files
from sandpty.wire.errors import SandptyError
from tests.component.files_root import USER, FilesRoot, files_root
from tests.component.tracing import Call, at_calls

_PLACES = itertools.count()


@pytest.fixture(scope="module")
def guest() -> Iterator[FilesRoot]:
    """One guest for the tests of this file; each uses paths of its own."""
    with files_root() as running:
        yield running


class Race:
    """A directory `at` of a test's own, a `precious` one beside it, and a files connection of root's, as `files`."""

    def __init__(self, guest: FilesRoot, files: Files, pid: int) -> None:
        self.files = files
        self.at = f"/tmp/{next(_PLACES)}"
        self.base = guest.path(self.at)
        self._pid = pid
        self._precious = guest.path(f"{self.at}-precious")
        self._precious.mkdir()
        self._precious.chmod(0o700)
        (self._precious / "secret").write_text("secret")
        self.base.mkdir()

    def plant(self, *paths: str) -> None:
        """Files below the directory, with nothing of interest in them."""
        for path in paths:
            (self.base / path).parent.mkdir(parents=True, exist_ok=True)
            (self.base / path).write_text("ordinary")

    async def lost(self, name: str, work: Callable[[], Awaitable[Any]], to: str = "", nth: int = 1) -> Any:
        """What `work` gives (None: it is refused) while the `nth` opening of `name` finds a link to the precious
        directory, or to the file `to` in it."""
        left = nth

        def swap(call: Call) -> bool:
            nonlocal left
            left -= call.opens(name)
            if left:
                return False
            victim = next(path for path in self.base.rglob(name) if not path.is_symlink())
            victim.rename(victim.with_name(f"{name}-aside"))
            victim.symlink_to(Path(f"{self.at}-precious", to))
            return True

        with at_calls(self._pid, swap), suppress(SandptyError):
            return await work()
        return None

    def is_untouched(self) -> bool:
        """Whether the precious directory is as it was, and nothing of it is anywhere else."""
        about = self._precious.stat()
        there = {path.name: path.read_text() for path in self._precious.iterdir()}
        copied = [path for path in self.base.rglob("*") if path.name == "secret" or _says_secret(path)]
        return there == {"secret": "secret"} and (about.st_mode & 0o777, about.st_uid) == (0o700, 0) and not copied


def _says_secret(path: Path) -> bool:
    return not path.is_symlink() and path.is_file() and path.read_text() == "secret"


@pytest_asyncio.fixture
async def race(guest: FilesRoot) -> AsyncIterator[Race]:
    """The connection's own child is traced."""
    others = set(guest.children())
    async with await guest.open("root") as files:
        await files.stat("/")
        (pid,) = set(guest.children()) - others
        yield Race(guest, files, pid)


async def test_a_removal_does_not_leave_its_tree(race: Race) -> None:
    """Nothing is removed through the link."""
    race.plant("tree/victim/file")
    await race.lost("victim", lambda: race.files.remove(f"{race.at}/tree", recursive=True))
    assert race.is_untouched()


async def test_a_listing_shows_nothing_of_elsewhere(race: Race) -> None:
    """Names behind the link stay unknown."""
    race.plant("tree/victim/file")

    async def listed() -> list[str]:
        return [entry.name async for portion in race.files.list(f"{race.at}/tree", depth=9) for entry in portion]

    assert "secret" not in (await race.lost("victim", listed) or [])


@pytest.mark.parametrize("nth", [1, 2], ids=["itself", "below it"])
async def test_a_change_of_a_tree_changes_nothing_elsewhere(race: Race, nth: int) -> None:
    """Neither owner nor mode of what the link leads to, nor of what is in there."""
    race.plant("tree/victim/file")
    change = race.files.change
    await race.lost("victim", lambda: change(f"{race.at}/tree", uid=USER, mode=0o777, recursive=True), nth=nth)
    assert race.is_untouched()
    assert (race.base.with_name(race.base.name + "-precious") / "secret").stat().st_uid == 0


@pytest.mark.parametrize("victim", ["source", "file"])
async def test_a_copy_takes_nothing_from_elsewhere(race: Race, victim: str) -> None:
    """Neither the tree that is copied nor a file in it."""
    race.plant("source/file")
    to = "" if victim == "source" else "secret"
    await race.lost(victim, lambda: race.files.copy(f"{race.at}/source", f"{race.at}/copy", recursive=True), to)
    assert race.is_untouched()


async def test_a_copy_of_a_directory_puts_nothing_elsewhere(race: Race) -> None:
    """Where a directory was that is filled."""
    race.plant("source/file", "copy/other")
    await race.lost("copy", lambda: race.files.copy(f"{race.at}/source", f"{race.at}/copy", recursive=True))
    assert race.is_untouched()


async def test_a_copy_over_a_file_writes_nothing_elsewhere(race: Race) -> None:
    """Where a file was that is written in place."""
    race.plant("source", "copy")
    await race.lost("copy", lambda: race.files.copy(f"{race.at}/source", f"{race.at}/copy"), "secret")
    assert race.is_untouched()


@pytest.mark.parametrize("nth", [2, 3], ids=["given away", "entered"])
async def test_a_directory_that_is_made_is_no_way_to_elsewhere(race: Race, nth: int) -> None:
    """Neither is what the link leads to given away, nor is anything written there."""
    race.plant("beside")
    write = race.files.write
    path = f"{race.at}/victim/new"
    await race.lost("victim", lambda: write(path, b"", parents=True, uid=USER, gid=USER), nth=nth)
    assert race.is_untouched()
