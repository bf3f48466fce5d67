"""A connection to an agent when things go wrong on the way: nothing that arrived is lost, nothing waits for ever."""

from __future__ import annotations

import asyncio
import socket
import struct
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sandpty import config
from sandpty.terminal.connection import AgentConnection
from sandpty.wire import frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import Exit, FrameReader, FrameType, Output, Pong
from tests.component.fake_agent import HELLO, exit_, output
from tests.component.fake_host import open_fds
from tests.waiting import turn, until

Pair = tuple[AgentConnection, socket.socket]


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    """Our end, greeted, and the agent's end as a plain socket."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as directory, socket.socket(socket.AF_UNIX) as listener:
        path = Path(directory) / "agent"
        listener.bind(str(path))
        listener.listen(1)
        listener.setblocking(False)
        opening = asyncio.create_task(AgentConnection.open(str(path)))
        agent, _ = await loop.sock_accept(listener)
        agent.setblocking(False)
        await loop.sock_sendall(agent, HELLO)
        connection = await opening
        with agent:
            yield connection, agent
        connection.close()


async def test_what_the_agent_said_last_is_heard_although_our_words_no_longer_reach_it(pair: Pair) -> None:
    """An ACK that crosses EXIT fails to be written; EXIT is received all the same, then the loss is told."""
    connection, agent = pair
    agent.send(output(0, b"x") + exit_(1))
    agent.close()
    connection.send(frames.encode_ack(1))  # the event loop has had no chance to read yet
    connection.send(frames.encode_ack(1))
    assert await connection.receive() == Output(0, 0, b"x")
    assert isinstance(await connection.receive(), Exit)
    with pytest.raises(SandptyError, match="lost"):
        await connection.receive()


async def test_only_what_fits_is_read_ahead(pair: Pair) -> None:
    """An agent that floods is read to the limit, and no further until somebody takes what is there."""
    connection, agent = pair
    loop = asyncio.get_running_loop()
    sent = 0

    async def flood() -> None:
        nonlocal sent
        for offset in range(0, 8 * 1024 * 1024, 1024):
            await loop.sock_sendall(agent, output(offset, b"x" * 1024))
            sent += 1024

    flooding = asyncio.create_task(flood())
    await until(lambda: sent > config.AGENT_BUFFER_BYTES)
    await asyncio.wait([flooding], timeout=0.2)
    assert sent < 4 * config.AGENT_BUFFER_BYTES
    for offset in range(0, 8 * 1024 * 1024, 1024):
        received = await connection.receive()
        assert isinstance(received, Output)
        assert received.offset == offset
    await flooding


async def test_a_thousand_tiny_frames_let_others_have_their_turn(pair: Pair) -> None:
    """Receiving frames that are all here already does not hold up the event loop."""
    connection, agent = pair
    agent.send(frames.frame(FrameType.PONG, b"12345678") * 3000)
    assert isinstance(await connection.receive(), Pong)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await turn()

    running = asyncio.create_task(other())
    for _ in range(2999):
        await connection.receive()
    running.cancel()
    assert turns >= 2999 // config.AGENT_FRAMES_PER_TURN - 1


async def test_input_waits_while_the_agent_does_not_read_and_arrives_once_it_does(pair: Pair) -> None:
    """Backpressure without loss: drain returns when the agent took enough."""
    connection, agent = pair
    loop = asyncio.get_running_loop()
    total = 3 * 1024 * 1024

    async def type_all() -> None:
        for at in range(0, total, 65536):
            connection.send(frames.encode_input(bytes([at // 65536]) * 65536, at))
            await connection.drain()

    typing = asyncio.create_task(type_all())
    await asyncio.wait([typing], timeout=0.1)
    assert not typing.done()
    reader, received = FrameReader(), []
    while len(received) < total // 65536 + 1:
        received += reader.feed(await loop.sock_recv(agent, 65536))
    await typing
    assert [kind for kind, _ in received] == [FrameType.HELLO] + [FrameType.INPUT] * (total // 65536)
    assert [payload[8:] for _, payload in received[1:]] == [bytes([n]) * 65536 for n in range(total // 65536)]


async def test_of_superseded_frames_only_the_newest_waits(pair: Pair) -> None:
    """A million ACKs to an agent that does not read are one ACK when it does."""
    connection, agent = pair
    loop = asyncio.get_running_loop()
    connection.send(frames.encode_input(b"x" * 1024 * 1024))
    for offset in range(100_000):
        connection.send_latest(frames.encode_ack(offset))
    reader, received = FrameReader(), []
    while not received or received[-1][0] != FrameType.ACK:
        received += reader.feed(await loop.sock_recv(agent, 65536))
    assert [kind for kind, _ in received] == [FrameType.HELLO, FrameType.INPUT, FrameType.ACK]
    assert received[-1][1] == struct.pack("<Q", 99_999)


async def test_closing_sends_what_was_typed_to_an_agent_that_is_slow(pair: Pair) -> None:
    """Typing and leaving at once loses nothing when the agent reads within the grace."""
    connection, agent = pair
    loop = asyncio.get_running_loop()
    connection.send(frames.encode_input(b"x" * 1024 * 1024))
    connection.close()
    received = 0
    while data := await loop.sock_recv(agent, 65536):
        received += len(data)
    assert received == len(frames.encode_hello()) + len(frames.encode_input(b"x" * 1024 * 1024))


async def test_closing_does_not_wait_for_an_agent_that_never_reads(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits is woken at once, and the descriptor is given back after the grace."""
    monkeypatch.setattr(config, "AGENT_CLOSE_GRACE_S", 0.1)
    connection, _ = pair
    before = open_fds()
    connection.send(frames.encode_input(b"x" * 1024 * 1024))
    draining = asyncio.create_task(connection.drain())
    receiving = asyncio.create_task(connection.receive())
    await turn()
    connection.close()
    connection.close()
    for waiting in (draining, receiving):
        with pytest.raises(SandptyError, match="closed"):
            await asyncio.wait_for(waiting, 1)
    await until(lambda: open_fds() == before - 1)
    with pytest.raises(SandptyError):
        connection.send(b"more")


async def test_a_reply_has_a_deadline_and_cancelling_loses_nothing(pair: Pair) -> None:
    """A frame that comes after somebody stopped waiting for it is the next one's."""
    connection, agent = pair
    with pytest.raises(SandptyError, match="no answer"):
        await connection.reply(0.05)
    for _ in range(50):
        waiting = asyncio.create_task(connection.receive())
        await turn()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    agent.send(output(0, b"late"))
    assert await connection.receive() == Output(0, 0, b"late")
