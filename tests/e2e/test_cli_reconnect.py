"""A terminal through a bad network and dying servers: nothing is lost, nothing comes or is typed twice."""

from __future__ import annotations

import asyncio
import hashlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandpty.sdk import AsyncClient, AsyncTerminal, SandptyError, WindowSize
from sandpty.wire.frames import Exit, From, Gap, Output
from tests.e2e.cli_fixture import Cli
from tests.e2e.cut import relay
from tests.e2e.tmux import Tmux, tmux
from tests.server_fixture import RunningServer, running_server
from tests.waiting import until

SIZE = WindowSize(cols=80, rows=24)


@pytest.fixture(scope="module")
def own_server() -> Iterator[RunningServer]:
    """A server that these tests may kill."""
    with running_server() as running:
        yield running


@pytest.fixture
def cli(own_server: RunningServer, tmp_path: Path) -> Cli:
    """The command line, against that server."""
    return Cli(own_server, tmp_path)


@pytest.fixture
def person(cli: Cli) -> Iterator[Tmux]:
    """Somebody at a local terminal."""
    with tmux(env=cli.env) as somebody:
        yield somebody


class Reader:
    """Reads a terminal in the background; keeps what it says."""

    def __init__(self, terminal: AsyncTerminal) -> None:
        self._terminal = terminal
        self.output = bytearray()
        self.gaps: list[Gap] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> Exit:
        async for event in self._terminal:
            match event:
                case Output():
                    self.output += event.data
                case Gap():
                    self.gaps.append(event)
                case Exit():
                    return event
        raise AssertionError("a terminal ends with Exit")


async def test_a_long_paste_through_a_network_that_keeps_breaking_arrives_once(own_server: RunningServer) -> None:
    """300 KB typed while the connection is cut again and again: the program reads exactly these bytes."""
    text = b"".join(b"%07d\n" % number for number in range(37_500))
    async with relay(own_server.port) as network, AsyncClient(network.url, own_server.api_key) as client:
        box = await client.create_sandbox()
        program = f"stty raw -echo; echo ready; head -c {len(text)} | sha256sum"
        started = await client.start_process(box.id, ["/bin/sh", "-c", program], pty=SIZE)
        async with AsyncTerminal(client, box.id, started.process, origin=From.OFFSET) as terminal:
            reader = Reader(terminal)
            await until(lambda: b"ready" in reader.output)
            for at in range(0, len(text), 30_000):
                before = network.connections
                await terminal.send_input(text[at : at + 30_000])
                network.cut()
                await until(lambda before=before: network.connections > before)
            exit_ = await asyncio.wait_for(reader.task, 60)
        assert exit_.value == 0
        assert hashlib.sha256(text).hexdigest().encode() in reader.output
        assert network.connections > 10
        await client.kill_sandbox(box.id)


async def test_a_flood_through_a_network_that_keeps_breaking_is_whole(own_server: RunningServer) -> None:
    """Every line once, in order, whatever happened between."""
    async with relay(own_server.port) as network, AsyncClient(network.url, own_server.api_key) as client:
        box = await client.create_sandbox()
        # More than one connection's window, and slower than the reader, so that the cuts come in the middle.
        program = "stty -onlcr; i=0; while [ $i -lt 20 ]; do seq $((i * 1000)) $((i * 1000 + 999)); i=$((i + 1)); done"
        started = await client.start_process(box.id, ["/bin/bash", "-c", program], pty=SIZE)
        async with AsyncTerminal(client, box.id, started.process, origin=From.OFFSET) as terminal:
            reader = Reader(terminal)
            for size in (1, 20_000, 40_000, 60_000):
                await until(lambda size=size: len(reader.output) > size, 20)
                network.cut()
            await asyncio.wait_for(reader.task, 60)
        assert reader.gaps == []
        assert bytes(reader.output) == b"".join(b"%d\n" % number for number in range(20_000))
        await client.kill_sandbox(box.id)


async def test_two_people_can_type_in_one_terminal(own_server: RunningServer) -> None:
    """What one types does not swallow what the other types."""
    async with AsyncClient(own_server.url, own_server.api_key) as client:
        box = await client.create_sandbox()
        program = "stty raw -echo; echo ready; head -c 2000 | sort | uniq -c"
        started = await client.start_process(box.id, ["/bin/sh", "-c", program], pty=SIZE)
        async with (
            AsyncTerminal(client, box.id, started.process, origin=From.OFFSET) as one,
            AsyncTerminal(client, box.id, started.process, origin=From.OFFSET) as two,
        ):
            seen, other = Reader(one), Reader(two)
            await until(lambda: b"ready" in seen.output)
            for _ in range(250):
                await one.send_input(b"one\n")
                await two.send_input(b"two\n")
            await asyncio.wait_for(asyncio.gather(seen.task, other.task), 30)
        assert re.search(rb"\b250 one\s+250 two\b", bytes(seen.output))
        assert seen.output == other.output
        await client.kill_sandbox(box.id)


async def test_a_network_that_stays_away_is_given_up_in_time(own_server: RunningServer) -> None:
    """Not sooner than asked, not for ever; the error says what."""
    async with relay(own_server.port) as network, AsyncClient(network.url, own_server.api_key) as client:
        box = await client.create_sandbox()
        started = await client.start_process(box.id, ["/bin/cat"], pty=SIZE)
        async with AsyncTerminal(client, box.id, started.process, reconnect_timeout_s=0.5) as terminal:
            network.refuse = True
            network.cut()
            with pytest.raises(SandptyError) as caught:
                await asyncio.wait_for(Reader(terminal).task, 20)
        assert caught.value.reason.name == "server_unreachable"
        network.refuse = False
        await client.kill_sandbox(box.id)


async def test_a_sandbox_that_is_killed_ends_its_terminals_with_a_reason(own_server: RunningServer) -> None:
    """No reconnecting to what is gone."""
    async with AsyncClient(own_server.url, own_server.api_key) as client:
        box = await client.create_sandbox()
        started = await client.start_process(box.id, ["/bin/cat"], pty=SIZE)
        async with AsyncTerminal(client, box.id, started.process) as terminal:
            reader = Reader(terminal)
            await client.kill_sandbox(box.id)
            outcome = (await asyncio.gather(asyncio.wait_for(reader.task, 20), return_exceptions=True))[0]
        if isinstance(outcome, SandptyError):
            assert outcome.reason.name == "sandbox_ended"
        else:
            assert isinstance(outcome, Exit)
            assert outcome.signalled


def test_a_server_that_is_killed_and_started_again_is_a_hiccup(cli: Cli, person: Tmux) -> None:
    """The shell at the terminal goes on where it was, with what was said meanwhile and what was typed meanwhile."""
    with cli.sandbox() as box:
        person.type(cli.line("shell", box) + "; echo status=$?")
        person.wait(lambda screen: re.search(r"[$#] *$", screen.rstrip()))
        person.type("PS1='guest> '; kept=state; clear")
        person.wait(lambda screen: screen.strip() == "guest>")
        cli.server.kill(signal.SIGKILL)
        person.type("echo typed with no server: $kept")
        cli.server.start()
        screen = person.wait_for("\ntyped with no server: state")
        assert screen.count("\ntyped with no server: state") == 1
        person.type("exit 5")
        person.wait_for("status=5")


def test_a_server_that_stays_away_gives_the_terminal_back_with_one_line(cli: Cli, person: Tmux) -> None:
    """A message, a status that is not 0, and the local terminal as it was."""
    with cli.sandbox() as box:
        before = cli.home / "before"
        person.type(f"stty -g > {before}")
        person.type(cli.line("shell", box, "--reconnect-timeout", "1s") + "; echo status=$?")
        person.wait(lambda screen: re.search(r"[$#] *$", screen.rstrip()))
        cli.server.kill(signal.SIGKILL)
        try:
            screen = person.wait_for("status=69")
            assert screen.count("sandpty: no sandpty server answers at") == 1
            person.type(f"stty -g | cmp - {before} && echo the same")
            person.wait_for("\nthe same")
        finally:
            cli.server.start()


def test_one_can_leave_while_the_server_is_away(cli: Cli, person: Tmux) -> None:
    """The escape keys are the client's own."""
    with cli.sandbox() as box:
        person.type(cli.line("shell", box) + "; echo status=$?")
        person.wait(lambda screen: re.search(r"[$#] *$", screen.rstrip()))
        cli.server.kill(signal.SIGKILL)
        try:
            person.wait_for("connection lost")
            person.keys("Enter")
            person.type("~.", enter=False)
            person.wait_for("status=0")
        finally:
            cli.server.start()
