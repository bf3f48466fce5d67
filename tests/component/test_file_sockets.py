"""Unix sockets that the host lends to a guest: named and connected there, by a user of it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from sandpty.terminal.files import Files
from tests.component.files_root import USER, FilesRoot, files_root
from tests.component.test_files import refused
from tests.waiting import until_sync

TIMEOUT_S = 30.0


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


@contextmanager
def unix() -> Iterator[socket.socket]:
    """As the supervisor makes it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as made:
        yield made


def named(guest: FilesRoot, name: str) -> list[int]:
    """The agent's children of that name."""
    return [pid for pid in guest.children() if Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"]


async def test_what_listens_in_a_guest_is_its_users_and_goes_with_its_connection(guest: FilesRoot) -> None:
    """Who connects comes out here; the path is removed when the connection is closed, even by force."""
    with unix() as listening, unix() as calling:
        async with await guest.open("user") as files:
            await files.listen_at("/tmp/a.sock", listening.fileno())
            about = guest.path("/tmp/a.sock").stat()
            assert (about.st_uid, about.st_mode & 0o777) == (USER, 0o600)
            async with await guest.open("user") as other:
                await other.connect_to("/tmp/a.sock", calling.fileno())
                calling.send(b"hello")
                accepted, _ = listening.accept()
                with accepted:
                    assert accepted.recv(9) == b"hello"
            assert await refused(files.listen_at("/tmp/b.sock", listening.fileno())) == "file_error"
        until_sync(lambda: not guest.path("/tmp/a.sock").exists(), TIMEOUT_S, "the path has gone")
        assert not guest.path("/tmp/b.sock").exists()
    with unix() as listening:
        files = await guest.open("user")
        await files.listen_at("/tmp/c.sock", listening.fileno())
        for child in named(guest, "sandpty-files"):
            os.kill(child, signal.SIGKILL)
        until_sync(lambda: not guest.path("/tmp/c.sock").exists(), TIMEOUT_S, "the path has gone")
        files.close()


async def test_only_the_path_that_was_made_is_removed(guest: FilesRoot) -> None:
    """What somebody has put in its place stays."""
    with unix() as listening, unix() as another:
        async with await guest.open("user") as files:
            await files.listen_at("/tmp/kept", listening.fileno())
            await files.listen_at("/tmp/ends", another.fileno())
            guest.path("/tmp/kept").unlink()
            guest.path("/tmp/kept").write_text("another's")
        until_sync(lambda: not guest.path("/tmp/ends").exists(), TIMEOUT_S, "the other path has gone")
        until_sync(lambda: not guest.children(), TIMEOUT_S, "nothing is left")
        assert guest.path("/tmp/kept").read_text() == "another's"


async def test_what_cannot_be_is_said_and_the_connection_goes_on(guest: FilesRoot, files: Files) -> None:
    """No rights, no room in a name, no socket: as the guest's kernel says it; no name of the network at all."""
    guest.path("/tmp/file").write_text("x")
    for path, reason in (
        ("/etc/x.sock", "permission_denied"),
        ("/nowhere/x.sock", "no_such_file"),
        ("/tmp/file", "conflict"),
        ("/tmp/" + "x" * 200, "bad_path"),
        ("\0abstract", "bad_path"),
        ("relative", "bad_path"),
    ):
        with unix() as made:
            assert await refused(files.listen_at(path, made.fileno())) == reason, path
    for path, reason in (
        ("/tmp/none", "no_such_file"),
        ("/etc/passwd", "permission_denied"),
        ("/tmp/file", "port_closed"),
    ):
        with unix() as made:
            guest.path("/tmp/file").chmod(0o666)
            assert await refused(files.connect_to(path, made.fileno())) == reason, path
    with socket.socket() as tcp:
        assert await refused(files.listen_at("/tmp/x.sock", tcp.fileno())) == "file_error"
    null = os.open("/dev/null", os.O_RDONLY)
    assert await refused(files.connect_to("/tmp/file", null)) == "file_error"
    os.close(null)
    assert files.reusable
    assert not named(guest, "sandpty-keeper"), "none for what was not made"
