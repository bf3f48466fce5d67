"""Waiting for a descriptor again and again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from sandpty.terminal.readable import Readable

DEADLINE_S = 10.0
TURNS = 50


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Ours, which does not block, and theirs."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


async def _turns(count: int = 1) -> None:
    """Let the event loop go round."""
    loop = asyncio.get_running_loop()
    for _ in range(count):
        turned = loop.create_future()
        loop.call_soon(turned.set_result, None)
        await turned


class Counted(Readable):
    """Counts how often the kernel says that there is something."""

    told = 0

    def _tell(self) -> None:
        self.told += 1
        super()._tell()


async def test_who_waits_again_and_again_is_told_each_time(pair: tuple[socket.socket, socket.socket]) -> None:
    """Also of the end."""
    ours, theirs = pair
    readable = Readable(ours.fileno())
    for number in range(3):
        waiting = asyncio.ensure_future(readable.wait())
        await _turns(3)
        assert not waiting.done()
        theirs.send(bytes([number]))
        await asyncio.wait_for(waiting, DEADLINE_S)
        assert ours.recv(10) == bytes([number])
    waiting = asyncio.ensure_future(readable.wait())
    await _turns()
    theirs.shutdown(socket.SHUT_WR)
    await asyncio.wait_for(waiting, DEADLINE_S)
    assert ours.recv(10) == b""
    readable.stop()


async def test_what_nobody_waits_for_does_not_keep_the_server_busy(pair: tuple[socket.socket, socket.socket]) -> None:
    """The kernel says it once; whoever waits later is told all the same."""
    ours, theirs = pair
    readable = Counted(ours.fileno())
    waiting = asyncio.ensure_future(readable.wait())
    await _turns()
    theirs.send(b"1")
    await asyncio.wait_for(waiting, DEADLINE_S)
    await _turns(TURNS)
    assert readable.told == 2
    await asyncio.wait_for(readable.wait(), DEADLINE_S)
    assert ours.recv(10) == b"1"
    readable.stop()


async def test_who_waits_when_it_is_closed_is_woken(pair: tuple[socket.socket, socket.socket]) -> None:
    """And learns from the descriptor what became of it; what comes afterwards is told to nobody."""
    ours, theirs = pair
    readable = Counted(ours.fileno())
    waiting = asyncio.ensure_future(readable.wait())
    await _turns()
    readable.stop()
    await asyncio.wait_for(waiting, DEADLINE_S)
    theirs.send(b"1")
    await _turns(TURNS)
    assert readable.told == 0
