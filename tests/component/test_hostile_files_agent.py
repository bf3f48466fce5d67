"""An agent that lies on a files connection is cut off; it can neither crash, hang nor bloat the server."""

from __future__ import annotations

import asyncio
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandpty import config
from sandpty.terminal.files import Account, Files, open_files
from sandpty.wire.errors import SandptyError
from sandpty.wire.file_frames import FileFrame
from sandpty.wire.frames import frame
from tests.component.fake_agent import HELLO, Behaviour, FakeAgent, Peer
from tests.component.fake_host import rss_bytes
from tests.unit.test_file_frames import COUNT, entry_bytes, text
from tests.waiting import turn

ACCOUNT = frame(FileFrame.ACCOUNT, struct.pack("<II", 1, 1) + text(b"user") + text(b"/home/user"))
ENTRY = frame(FileFrame.ENTRY, entry_bytes())
DONE = frame(FileFrame.DONE)


def content(count: int) -> bytes:
    """A CONTENT frame."""
    return frame(FileFrame.CONTENT, bytes(count))


def end(count: int) -> bytes:
    """CONTENT_END."""
    return frame(FileFrame.CONTENT_END, struct.pack("<Q", count))


@asynccontextmanager
async def talking_to(behaviour: Behaviour) -> AsyncIterator[Files]:
    """A files connection to an agent of that behaviour."""
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as directory:
        async with (
            FakeAgent(Path(directory) / "a", behaviour) as agent,
            await open_files(str(agent.path), "user") as files,
        ):
            yield files


async def stat(files: Files) -> None:
    """One entry."""
    await files.stat("/x")


async def listing(files: Files) -> None:
    """A whole listing."""
    async for _ in files.list("/x", limit=1000):
        pass


async def read(files: Files) -> None:
    """Ten bytes."""
    async with files.open("/x", length=10) as reading:
        async for _ in reading:
            pass


async def write(files: Files) -> None:
    """A mebibyte."""
    await files.write("/x", bytes(1 << 20))


async def watch(files: Files) -> None:
    """Events."""
    await (await files.watch("/x")).pending()


LIES: dict[str, tuple[Callable[[Files], Awaitable[None]], bytes]] = {
    "another frame": (stat, DONE),
    "no frame at all": (stat, b"\0\0\0\0\0"),
    "a length beyond all bounds": (stat, b"\xff\xff\xff\xff\xc1"),
    "an entry with more": (stat, frame(FileFrame.ENTRY, entry_bytes() + b"x")),
    "half an error": (stat, frame(FileFrame.FILE_ERROR, b"\1")),
    "a listing without end": (listing, frame(FileFrame.ENTRIES, struct.pack("<I", 500) + entry_bytes() * 500) * 3),
    "a listing of nothings": (listing, frame(FileFrame.ENTRIES, bytes(4))),
    "a listing that lies about its length": (listing, frame(FileFrame.ENTRIES, b"\xff\xff\xff\xff" + entry_bytes())),
    "more content than was asked for": (read, ENTRY + content(11) + end(11)),
    "an end that lies": (read, ENTRY + content(10) + end(9)),
    "content that is none": (read, ENTRY + frame(FileFrame.CONTENT)),
    "an entry amid content": (read, ENTRY + content(3) + ENTRY),
    "a file written before its end": (write, frame(FileFrame.WRITTEN, b"\1" + entry_bytes())),
    "an event of no type": (watch, DONE + frame(FileFrame.EVENTS, COUNT + b"\x09" + text(b"x") + b"\0")),
    "content instead of events": (watch, DONE + content(5)),
}


@pytest.mark.parametrize(("use", "said"), LIES.values(), ids=list(LIES))
async def test_an_agent_that_lies_is_cut_off(use: Callable[[Files], Awaitable[None]], said: bytes) -> None:
    """agent_misbehaved, and the connection is closed."""

    async def behaviour(peer: Peer) -> None:
        await peer.greeted()
        await peer.say(ACCOUNT + said)
        await peer.until_closed()

    async with talking_to(behaviour) as files:
        with pytest.raises(SandptyError) as caught:
            await asyncio.wait_for(use(files), 30)
        assert caught.value.reason.name == "agent_misbehaved"
        assert not files.reusable


@pytest.mark.parametrize(
    "said",
    [b"", HELLO, HELLO + frame(FileFrame.DONE), ACCOUNT, b"\xff" * 100],
    ids=["silence", "no", "done", "yes", "?"],
)
async def test_a_connection_that_is_not_answered_is_no_connection(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """Within the time that an agent has."""
    monkeypatch.setattr(config, "AGENT_CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(config, "AGENT_REPLY_TIMEOUT_S", 0.3)

    async def behaviour(peer: Peer) -> None:
        await peer.say(said)
        await peer.until_closed()

    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as directory:
        async with FakeAgent(Path(directory) / "a", behaviour) as agent:
            with pytest.raises(SandptyError) as caught:
                await asyncio.wait_for(open_files(str(agent.path), "user"), 30)
            assert caught.value.reason.name in ("agent_misbehaved", "agent_unreachable")


async def test_an_agent_that_never_knows_who_is_meant_is_asked_twice() -> None:
    """A request that counts on an account is made again once, without counting on it; then it is an error."""
    changed = frame(FileFrame.FILE_ERROR, struct.pack("<I", 1004) + text(b"no"))
    calls = 0

    async def behaviour(peer: Peer) -> None:
        await peer.greeted()
        await peer.say(ACCOUNT * 2 + ENTRY + changed + ACCOUNT + changed)
        await peer.until_closed()

    async def look(_: Account) -> None:
        nonlocal calls
        calls += 1
        await files.stat("/x")

    async with talking_to(behaviour) as files:
        await files.with_account("user", look)
        with pytest.raises(SandptyError) as caught:
            await asyncio.wait_for(files.with_account("user", look), 30)
        assert (caught.value.reason.name, calls) == ("conflict", 3)


async def test_a_flood_is_held_by_the_socket_and_not_by_us() -> None:
    """Content that nobody takes stays where it is."""

    async def behaviour(peer: Peer) -> None:
        await peer.greeted()
        await peer.say(ACCOUNT + ENTRY)
        while True:
            await peer.say(content(200_000))

    async with talking_to(behaviour) as files, files.open("/x") as reading:
        await reading.piece()
        before = rss_bytes()
        for _ in range(100):
            await turn()
            await reading.piece()
        assert rss_bytes() - before < 8 << 20
        files.close()
