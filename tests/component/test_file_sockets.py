"""Unix sockets of a guest, reached from the host: named and connected there, by a user of it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from sandpty.terminal.files import Files
from tests.component.files_root import USER, FilesRoot, files_root
from tests.component.test_files import refused
from tests.waiting import until, until_sync

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


def named(guest: FilesRoot, name: str) -> list[int]:
    """The agent's children of that name."""
    return [pid for pid in guest.children() if Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"]


async def test_what_listens_in_a_guest_is_its_users_and_goes_with_its_connection(guest: FilesRoot) -> None:
    """Who connects comes out here; the path is removed when the connection is closed, even by force."""
    async with await guest.open("user") as files, await guest.open("user") as other:
        await files.listen_at("/tmp/a.sock")
        about = guest.path("/tmp/a.sock").stat()
        assert (about.st_uid, about.st_mode & 0o777) == (USER, 0o600)
        with await other.connect_to("/tmp/a.sock") as calling, await files.accept() as accepted:
            assert other.reusable
            await same_both_ways(calling, accepted)
        assert await refused(files.listen_at("/tmp/b.sock")) == "conflict"
    until_sync(lambda: not guest.path("/tmp/a.sock").exists(), TIMEOUT_S, "the path has gone")
    assert not guest.path("/tmp/b.sock").exists()
    files = await guest.open("user")
    await files.listen_at("/tmp/c.sock")
    for child in named(guest, "sandpty-files"):
        os.kill(child, signal.SIGKILL)
    until_sync(lambda: not guest.path("/tmp/c.sock").exists(), TIMEOUT_S, "the path has gone")
    files.close()


async def same_both_ways(one: socket.socket, other: socket.socket) -> None:
    """Each byte arrives, and each side's end by itself: the other may still say something."""
    loop = asyncio.get_running_loop()
    for sender, receiver, size in ((one, other, 3 * 1024 * 1024), (other, one, 1024 * 1024)):
        sent = os.urandom(size)

        async def send(sender: socket.socket = sender, sent: bytes = sent) -> None:
            await loop.sock_sendall(sender, sent)
            sender.shutdown(socket.SHUT_WR)

        sending, got = asyncio.create_task(send()), bytearray()
        async with asyncio.timeout(TIMEOUT_S):
            while piece := await loop.sock_recv(receiver, 1 << 16):
                got += piece
            await sending
        assert got == sent


async def test_a_connection_ends_with_either_of_its_sides(guest: FilesRoot) -> None:
    """Nothing is left in the guest, also where something is on the way that nobody reads."""
    loop = asyncio.get_running_loop()
    async with await guest.open("user") as files:
        await files.listen_at("/tmp/d.sock")
        for unread in (b"", bytes(8 << 20)):
            for first in (0, 1):
                async with await guest.open("user") as other:
                    ends = [await other.connect_to("/tmp/d.sock"), await files.accept()]
                stuffing = asyncio.create_task(loop.sock_sendall(ends[1 - first], unread))
                await until(lambda: bool(named(guest, "sandpty-relay")), TIMEOUT_S, "it is carried")
                ends[first].close()
                async with asyncio.timeout(TIMEOUT_S):
                    with suppress(ConnectionError):
                        await stuffing
                        assert await loop.sock_recv(ends[1 - first], 1) == b""
                until_sync(lambda: not named(guest, "sandpty-relay"), TIMEOUT_S, "nothing carries on")
                ends[1 - first].close()


async def test_no_socket_of_the_hosts_can_be_made_to_block(guest: FilesRoot, files: Files) -> None:
    """A hostile agent has another one: what it does to that does nothing to ours."""
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(guest.path("/tmp/e.sock")))
        service.listen()
        guest.path("/tmp/e.sock").chmod(0o666)
        with await files.connect_to("/tmp/e.sock") as ours:
            assert not ours.getblocking()
            (relay,) = named(guest, "sandpty-relay")
            theirs = {os.stat(f"/proc/{relay}/fd/{number}").st_ino for number in os.listdir(f"/proc/{relay}/fd")}
            assert os.fstat(ours.fileno()).st_ino not in theirs


async def test_only_the_path_that_was_made_is_removed(guest: FilesRoot) -> None:
    """What somebody has put in its place stays."""
    async with await guest.open("user") as files, await guest.open("user") as another:
        await files.listen_at("/tmp/kept")
        await another.listen_at("/tmp/ends")
        guest.path("/tmp/kept").unlink()
        guest.path("/tmp/kept").write_text("another's")
    until_sync(lambda: not guest.path("/tmp/ends").exists(), TIMEOUT_S, "the other path has gone")
    until_sync(lambda: not guest.children(), TIMEOUT_S, "nothing is left")
    assert guest.path("/tmp/kept").read_text() == "another's"


async def test_what_cannot_be_is_said_and_the_connection_goes_on(guest: FilesRoot, files: Files) -> None:
    """No rights, no room in a name, nobody there: as the guest's kernel says it; no name of the network at all."""
    guest.path("/tmp/file").write_text("x")
    guest.path("/tmp/file").chmod(0o666)
    for path, reason in (
        ("/etc/x.sock", "permission_denied"),
        ("/nowhere/x.sock", "no_such_file"),
        ("/tmp/file", "conflict"),
        ("/tmp/" + "x" * 200, "bad_path"),
        ("\0abstract", "bad_path"),
        ("relative", "bad_path"),
    ):
        assert await refused(files.listen_at(path)) == reason, path
    for path, reason in (
        ("/tmp/none", "no_such_file"),
        ("/etc/passwd", "permission_denied"),
        ("/tmp/file", "port_closed"),
        ("\0abstract", "bad_path"),
    ):
        assert await refused(files.connect_to(path)) == reason, path
    assert await refused(files.accept()) == "file_error", "nothing listens"
    assert files.reusable
    assert not named(guest, "sandpty-keeper"), "none for what was not made"
    assert not named(guest, "sandpty-relay")
