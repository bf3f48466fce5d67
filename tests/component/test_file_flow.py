"""Files connections under load and at their ends: bounded memory, flow control, cancellation, crowds, murder."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sandpty.terminal.files import Files, Reading
from sandpty.wire import file_frames, frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.file_frames import FileFrame, LookFlags, Making, PlaceFlags, WatchFlags, Write, WriteFlags
from sandpty.wire.file_types import Account
from tests.component.agent_peer import Peer
from tests.component.fake_host import open_fds, rss_bytes
from tests.component.files_root import FilesRoot, files_root
from tests.component.test_files import content, refused
from tests.waiting import turn, until, until_still, until_sync

MIB = 1 << 20
BIG = 40 * MIB
CHILDREN = 64  # FILES_CHILDREN_MAX
FUZZ_S = 4.0


@pytest.fixture(scope="module")
def guest() -> Iterator[FilesRoot]:
    """One guest for the tests of this file; each uses paths of its own."""
    with files_root() as running:
        yield running


def peak_bytes(pid: int) -> int:
    """The most memory a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def moved_bytes(pid: int) -> int:
    """What a process has read from files or written to them by now."""
    fields = Path(f"/proc/{pid}/io").read_text().split()
    return int(fields[1]) + int(fields[3])


async def alone(guest: FilesRoot) -> int:
    """The only child, once those of earlier connections are gone."""
    await until(lambda: len(guest.children()) == 1, timeout_s=30)
    return guest.children()[0]


async def test_a_big_file_passes_both_ways_in_little_memory(guest: FilesRoot) -> None:
    """40 MiB up and down: neither this process nor the child grows with it."""
    piece = os.urandom(MIB)
    async with await guest.open() as files:
        child = await alone(guest)
        before, most = rss_bytes(), 0
        async with files.create("/tmp/big") as writing:
            for _ in range(BIG // MIB):
                await writing.write(piece)
            most = max(most, rss_bytes())
            entry = await writing.finish()
        assert entry.size == BIG
        count = 0
        async with files.open("/tmp/big") as reading:
            async for part in reading:
                if count % MIB == 0:
                    most = max(most, rss_bytes())
                    assert part == piece[: len(part)]
                count += len(part)
        assert count == BIG
        assert most - before < 16 * MIB
        if not os.environ.get("SANDPTY_TEST_SANITIZED"):
            assert peak_bytes(child) < 8 * MIB
        await files.remove("/tmp/big")


async def test_a_client_that_does_not_read_stops_the_child(guest: FilesRoot) -> None:
    """The socket's flow control: what is read ahead is bounded, whatever the file's size."""
    async with await guest.open() as files, files.open("/dev/zero", length=1 << 40) as reading:
        child = await alone(guest)
        assert await reading.piece()
        assert await until_still(lambda: moved_bytes(child)) < 8 * MIB


async def test_a_transfer_that_is_given_up_leaves_no_child_and_no_descriptor(guest: FilesRoot) -> None:
    """Cancelled while reading, while writing, while waiting for the guest; the connection is good for nothing then."""
    await until(lambda: guest.children() == [], timeout_s=30)
    before = open_fds()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MIB)
            await turn()

    async def read(files: Files) -> None:
        async with files.open("/dev/zero") as reading:
            async for _ in reading:
                pass

    async def starve(files: Files) -> None:
        async with files.open("/dev/zero") as reading:
            await reading.piece()
            await asyncio.Event().wait()

    for give_up in (read, starve, lambda files: files.write("/dev/null", endless())):
        files = await guest.open()
        child = guest.children()[0]
        task = asyncio.ensure_future(give_up(files))
        await until(lambda pid=child: moved_bytes(pid) > MIB, timeout_s=30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not files.reusable
        files.close()
        await until(lambda: guest.children() == [], timeout_s=30)
    await until(lambda: open_fds() <= before, timeout_s=30)  # fewer: what earlier tests left behind went meanwhile


async def test_closing_wakes_who_waits(guest: FilesRoot) -> None:
    """A sandbox that is paused or killed under a transfer: the call ends with an error, at once."""
    files = await guest.open()
    watch = await files.watch("/tmp")
    waiting = asyncio.create_task(watch.event())
    await turn()
    files.close()
    with pytest.raises(SandptyError, match="lost"):
        await asyncio.wait_for(waiting, 30)
    assert await refused(files.stat("/tmp")) in ("agent_unreachable", "conflict")


async def test_connections_are_bounded_and_their_places_come_back(guest: FilesRoot) -> None:
    """64 at once; one more is refused by name, and the agent's terminals do not suffer."""
    await until(lambda: guest.children() == [], timeout_s=30)
    crowd = [await guest.open() for _ in range(CHILDREN)]
    with pytest.raises(SandptyError, match="files_connections"):
        await guest.open()
    with guest.agent.peer() as peer:
        assert peer.list() == []
    crowd.pop().close()
    await until(lambda: len(guest.children()) == CHILDREN - 1, timeout_s=30)
    crowd.append(await guest.open())
    for files in crowd:
        files.close()
    await until(lambda: guest.children() == [], timeout_s=30)


async def test_a_child_that_the_guest_kills_is_a_lost_connection(guest: FilesRoot) -> None:
    """And no more than that."""
    async with await guest.open() as files:
        os.kill(await alone(guest), signal.SIGKILL)
        with pytest.raises(SandptyError) as caught:
            await files.stat("/tmp")
        assert caught.value.reason.name == "agent_unreachable"
    async with await guest.open() as again:
        await again.stat("/tmp")


async def test_requests_may_follow_each_other_without_waiting(guest: FilesRoot) -> None:
    """All in one write, with HELLO: answered one by one, in order."""
    requests = [frames.encode_hello(), file_frames.encode_files("user", 0o022)]
    requests += [file_frames.encode_stat(path, LookFlags(0)) for path in ("/tmp", "/missing", "/etc")]
    with Peer(guest.agent.path, hello=False) as peer:
        peer.send(b"".join(requests))
        reader, kinds = frames.FrameReader(), []
        while len(kinds) < 5:
            kinds += [kind for kind, _ in reader.feed(peer.socket.recv(65536))]
    greeting = frames.FrameType.AGENT_HELLO
    entry, error = FileFrame.ENTRY, FileFrame.FILE_ERROR
    assert kinds == [greeting, FileFrame.ACCOUNT, entry, error, entry]


async def test_a_thousand_connections_leave_nothing(guest: FilesRoot) -> None:
    """No child, no descriptor, no memory of the agent."""

    def memory() -> int:
        lines = Path(f"/proc/{guest.agent.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))

    async def use() -> None:
        async with await guest.open() as files:
            await files.stat("/tmp")

    def descriptors() -> int:
        return len(list(Path(f"/proc/{guest.agent.pid}/fd").iterdir()))

    await use()
    await until(lambda: guest.children() == [], timeout_s=30)
    before, open_before = memory(), descriptors()
    for _ in range(50):
        await asyncio.gather(*[use() for _ in range(20)])
    await until(lambda: guest.children() == [], timeout_s=30)
    await until(lambda: descriptors() == open_before, timeout_s=30)
    if not os.environ.get("SANDPTY_TEST_SANITIZED"):
        assert memory() - before < 128


async def test_a_file_that_changes_while_it_is_read_ends_where_it_ends(guest: FilesRoot) -> None:
    """Truncated: fewer bytes than its size said, and no error; grown: what is there when its end is reached."""
    path = guest.path("/tmp/changing")
    path.write_bytes(bytes(8 * MIB))
    async with await guest.open() as files:
        async with files.open("/tmp/changing") as reading:
            assert reading.entry.size == 8 * MIB
            await reading.piece()
            os.truncate(path, 0)
            assert await rest_of(reading) < 8 * MIB
        path.write_bytes(b"x" * 10)
        async with files.open("/tmp/changing", length=0) as reading:
            with path.open("ab") as more:
                more.write(b"y" * 10)
            await reading.read()
            assert await reading.all(100) == b"x" * 10 + b"y" * 10


async def rest_of(reading: Reading) -> int:
    """How many bytes came in all."""
    async for _ in reading:
        pass
    return reading.count


# --- the fuzzer ------------------------------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """One of each request, about files of the fuzzer's own user in a root of its own."""
    here, there, making = "/tmp/fuzz/a", "/tmp/fuzz/b/c", Making()
    both = PlaceFlags.RECURSIVE | PlaceFlags.PARENTS
    every = WriteFlags.TRUNCATE | WriteFlags.PARENTS | WriteFlags.MODE | WriteFlags.METADATA
    write = file_frames.encode_write(Write(here, every, 0o640, making, metadata={"key": "value"}))
    return [
        file_frames.encode_name(FileFrame.ACCOUNT_OF, "user"),
        file_frames.encode_name(FileFrame.REAL_PATH_OF, there),
        file_frames.encode_name(FileFrame.SIZE_OF, "/tmp"),
        file_frames.encode_stat(here, LookFlags.METADATA),
        file_frames.encode_list("/tmp/fuzz", LookFlags.METADATA, 5, 1000),
        file_frames.encode_list("/proc/self", LookFlags(0), 1, 1000),
        file_frames.encode_open(here, 0, None),
        file_frames.encode_open("/proc/self/status", 3, 100),
        file_frames.encode_read(2, 5),
        write + file_frames.encode_content(b"hello"),
        file_frames.encode_write(Write(there, WriteFlags.PARENTS, 0o644, making, 7)) + file_frames.END,
        file_frames.data_head(300) + bytes(300),
        file_frames.END,
        file_frames.encode_mkdir("/tmp/fuzz/d/e/f", PlaceFlags.PARENTS, making),
        file_frames.encode_transfer(FileFrame.MOVE, here, there, PlaceFlags.PARENTS, making),
        file_frames.encode_transfer(FileFrame.MOVE, there, "/small/x", PlaceFlags.KEEP, making),
        file_frames.encode_transfer(FileFrame.COPY, "/tmp/fuzz", "/tmp/fuzz-copy", both, making),
        file_frames.encode_remove("/tmp/fuzz-copy", PlaceFlags.RECURSIVE),
        file_frames.encode_change("/tmp/fuzz", file_frames.ChangeFlags.RECURSIVE, Making(0o755), 5, -5),
        file_frames.encode_metadata(here, {"a": "b"}),
        file_frames.encode_symlink("/tmp/fuzz/link", "a"),
        file_frames.encode_watch("/tmp/fuzz", WatchFlags.RECURSIVE | WatchFlags.ENTRIES),
        file_frames.encode_sync(1),
        file_frames.encode_if_account("user", Account(0, 0, "user", "/")) + file_frames.encode_stat(here, LookFlags(0)),
        file_frames.encode_if_account("nobody", Account(0, 0, "", "")) + write + file_frames.encode_content(b"hello"),
    ]


def mutated(random_: random.Random, data: bytes) -> bytes:
    """As it is, or with some bytes changed, cut off or put in."""
    raw = bytearray(data)
    choice = random_.random()
    if choice < 0.5:
        return data
    if choice < 0.8:
        for _ in range(random_.randint(1, 4)):
            raw[random_.randrange(4, len(raw))] = random_.choice((0, 1, 0x7F, 0x80, 0xFF, random_.randrange(256)))
    elif choice < 0.9:
        del raw[random_.randrange(len(raw)) :]
    else:
        raw[5:5] = random_.randbytes(random_.randint(1, 20))
        raw[:4] = (len(raw) - 4).to_bytes(4, "little")
    return bytes(raw)


def test_random_requests_do_not_break_the_sanitizer_build() -> None:
    """A seeded fuzzer for a few seconds: no bad memory access, no undefined behaviour, no child that stays."""
    random_ = random.Random(int(os.environ.get("SANDPTY_FUZZ_SEED", "20261121")))
    material = seeds()
    conversations = 0
    with files_root(sanitized=True) as guest:
        deadline = time.monotonic() + FUZZ_S
        while time.monotonic() < deadline and guest.agent.process.poll() is None:
            conversations += 1
            peer = Peer(guest.agent.path, hello=False, timeout_s=30)
            requests = [mutated(random_, random_.choice(material)) for _ in range(random_.randint(1, 30))]
            peer.socket.setblocking(True)
            head = frames.encode_hello() + file_frames.encode_files("user", 0o022)
            try:
                peer.socket.sendall(head + b"".join(requests))
                peer.socket.shutdown(1)
                peer.socket.settimeout(30 if random_.random() < 0.7 else 0.001)
                while peer.socket.recv(1 << 16):
                    pass
            except OSError:  # it was cut off, or we lose patience
                pass
            peer.close()
        assert guest.agent.process.poll() is None, guest.agent.said()
        until_sync(lambda: guest.children() == [], timeout_s=30)
        assert guest.agent.stop() == 0, guest.agent.report
        assert guest.agent.report == ""
    assert conversations > 10


async def test_the_content_is_the_same_on_the_last_connection(guest: FilesRoot) -> None:
    """After all that: the guest's agent is as good as new."""
    async with await guest.open() as files:
        await files.write("/tmp/last", b"last")
        assert await content(files, "/tmp/last") == b"last"


# --- content that we never see ---------------------------------------------------------------------------------------


async def received(end: socket.socket) -> bytes:
    """All until the end."""
    loop, data = asyncio.get_running_loop(), bytearray()
    while piece := await loop.sock_recv(end, 1 << 20):
        data += piece
    return bytes(data)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected pair that does not block."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("size", [1, 16_384, 65_536, 262_144, 262_145, 5_000_003])
async def test_what_is_poured_is_what_is_in_the_file(
    guest: FilesRoot, ends: tuple[socket.socket, socket.socket], size: int
) -> None:
    """Moved by the kernel from socket to socket, whole or in part, after some of it was read as usual."""
    data = os.urandom(size)
    guest.path("/tmp/poured").write_bytes(data)
    ours, theirs = ends
    async with await guest.open() as files:
        async with files.open("/tmp/poured") as reading:
            first = await reading.piece()
            receiving = asyncio.create_task(received(theirs))
            assert await reading.pour(ours, size, 30) == size - len(first)
            ours.shutdown(socket.SHUT_WR)
            assert first + await receiving == data
        assert files.reusable


async def test_no_more_is_poured_than_was_said(guest: FilesRoot, ends: tuple[socket.socket, socket.socket]) -> None:
    """A file that has grown: the rest stays, and the connection with it is given up."""
    guest.path("/tmp/grown").write_bytes(b"x" * 3_000_000)
    ours, theirs = ends
    async with await guest.open() as files:
        async with files.open("/tmp/grown") as reading:
            receiving = asyncio.create_task(received(theirs))
            assert await reading.pour(ours, 1_000_000, 30) == 1_000_000
            ours.shutdown(socket.SHUT_WR)
            assert len(await receiving) == 1_000_000
        assert not files.reusable


async def test_pouring_ends_with_whom_it_is_for(guest: FilesRoot, ends: tuple[socket.socket, socket.socket]) -> None:
    """Gone: ConnectionError. Not taking anything: TimeoutError. Given up: nothing stays open."""
    guest.path("/tmp/endless").touch()
    os.truncate(guest.path("/tmp/endless"), BIG)
    ours, theirs = ends
    before = open_fds()
    async with await guest.open() as files, files.open("/tmp/endless") as reading:
        with pytest.raises(TimeoutError):
            await reading.pour(ours, BIG, 0.2)
    async with await guest.open() as files, files.open("/tmp/endless") as reading:
        pouring = asyncio.create_task(reading.pour(ours, BIG, 30))
        await turn()
        pouring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pouring
    async with await guest.open() as files, files.open("/tmp/endless") as reading:
        theirs.close()
        with pytest.raises(ConnectionError):
            await reading.pour(ours, BIG, 30)
    assert open_fds() == before - 1  # theirs
    await until(lambda: guest.children() == [], timeout_s=30)
