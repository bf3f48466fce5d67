"""A handle on a terminal survives whatever happens to its connections: a thousand times, with every byte counted."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import threading
import time
from dataclasses import dataclass, field

import pytest

from sandpty import AsyncClient, AsyncTerminal, Client, Exit, Gap, Output, Sandbox, Terminal, WindowSize
from sandpty.wire.frames import From
from tests.e2e.cut import Relay, relay
from tests.server_fixture import RunningServer
from tests.waiting import until

SIZE = WindowSize(cols=80, rows=24)
CHUNK_BYTES = 1500


def program(total: int) -> list[str]:
    """Says back what it reads, then a hash of what it read."""
    line = f"stty raw -echo; echo ready; head -c {total} | tee /tmp/read.$$; sha256sum < /tmp/read.$$"
    return ["/bin/bash", "-c", line]


@dataclass
class Talk:
    """One terminal: what was typed and what it said."""

    typed: bytearray = field(default_factory=bytearray)
    said: bytearray = field(default_factory=bytearray)
    gaps: list[Gap] = field(default_factory=list)
    exit: Exit | None = None

    def take(self, event: object) -> None:
        """One event."""
        match event:
            case Output():
                self.said += event.data
            case Gap():
                self.gaps.append(event)
            case Exit():
                self.exit = event

    def check(self) -> None:
        """What was typed arrived once and in order, and so did what was said."""
        digest = hashlib.sha256(self.typed).hexdigest().encode()
        ready, _, rest = bytes(self.said).partition(b"ready\n")
        assert (ready, self.gaps) == (b"", [])
        assert hashlib.sha256(rest[: len(self.typed)]).hexdigest().encode() == digest
        assert rest[len(self.typed) :].split() == [digest, b"-"]
        assert self.exit is not None
        assert self.exit.value == 0


async def hurt(network: Relay, chance: random.Random) -> None:
    """What networks do."""
    match chance.randrange(3):
        case 0:
            network.cut()
        case 1:
            network.half_close()
        case _:
            network.stall()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), chance.random() / 20)  # for a moment
            network.cut()
            network.flow()


@pytest.mark.timeout(180)
async def test_a_thousand_broken_connections_lose_and_repeat_nothing(server: RunningServer) -> None:
    """Ten terminals, a hundred times each cut, stalled or half closed at random points while both sides talk."""
    chance, rounds = random.Random(5), 100
    async with relay(server.port) as network, AsyncClient(network.url, server.api_key) as client:
        box = await client.create_sandbox()
        talks = [Talk() for _ in range(10)]
        terminals, reading = [], []
        for talk in talks:
            started = await client.start_process(box.id, program(rounds * CHUNK_BYTES), pty=SIZE)
            terminal = AsyncTerminal(client, box.id, started.process, origin=From.OFFSET)
            await terminal.open()
            terminals.append(terminal)
            reading.append(asyncio.create_task(_read(terminal, talk)))
        await until(lambda: all(b"ready" in talk.said for talk in talks), 30)
        for number in range(rounds):
            for terminal, talk in zip(terminals, talks, strict=True):
                chunk = b"%08d" % number + chance.randbytes(CHUNK_BYTES // 2 - 4).hex().encode()
                talk.typed += chunk
                await terminal.send_input(chunk)
            before = network.connections
            await hurt(network, chance)
            await until(lambda before=before: network.connections >= before + len(talks), 60, "all are back")
        await asyncio.wait_for(asyncio.gather(*reading), 60)
        assert network.connections >= 1000
        for talk, terminal in zip(talks, terminals, strict=True):
            talk.check()
            await terminal.close()
        await client.kill_sandbox(box.id)


async def _read(terminal: AsyncTerminal, talk: Talk) -> None:
    async for event in terminal:
        talk.take(event)


async def test_the_blocking_flavour_heals_as_well(server: RunningServer) -> None:
    """One thread reads, another types, the network breaks."""
    rounds, chance = 30, random.Random(6)
    async with relay(server.port) as network:
        talk, ready, go_on = Talk(), threading.Event(), threading.Semaphore(0)

        def person() -> None:
            with Client(network.url, server.api_key) as client:
                box = client.create_sandbox()
                started = client.start_process(box.id, program(rounds * CHUNK_BYTES), pty=SIZE)
                with Terminal(client, box.id, started.process, origin=From.OFFSET) as terminal:
                    ready.set()
                    typing = threading.Thread(target=type_all, args=(terminal,))
                    typing.start()
                    for event in terminal:
                        talk.take(event)
                    typing.join()
                client.kill_sandbox(box.id)

        def type_all(terminal: Terminal) -> None:
            for number in range(rounds):
                go_on.acquire()
                chunk = (b"%08d" % number).ljust(CHUNK_BYTES, b"x")
                talk.typed.extend(chunk)
                terminal.send_input(chunk)

        living = asyncio.create_task(asyncio.to_thread(person))
        await until(ready.is_set, 30)
        await until(lambda: b"ready" in talk.said, 30)
        for _ in range(rounds):
            go_on.release()
            before = network.connections
            await hurt(network, chance)
            await until(lambda before=before: network.connections > before or living.done(), 60, "it is back")
        await asyncio.wait_for(living, 60)
        talk.check()


async def test_leaving_a_handle_at_once_does_not_wait(server: RunningServer) -> None:
    """Before its reader has connected, or while it does: the worker ends, and does not read what comes later."""

    def leave_at_once() -> float:
        with Sandbox(url=server.url, api_key=server.api_key) as sandbox:
            started = time.monotonic()
            for _ in range(3):
                sandbox.pty.create(cols=80, rows=24, on_data=lambda data: None).disconnect()
            return time.monotonic() - started

    assert await asyncio.to_thread(leave_at_once) < 10  # one worker that stayed took 10 s
