"""Hyperbrowser's terminals under load: floods cut and resumed, many at once, clients that stop reading."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hyperbrowser import AsyncHyperbrowser, Hyperbrowser
from hyperbrowser.models import SandboxTerminalCreateParams

from tests.server_fixture import RunningServer

FLOOD_LINES = 20 * 1024 * 1024 // 64
FLOOD = f"stty raw; seq -f '%063.0f' {FLOOD_LINES}"
DEADLINE_S = 120.0


def flood_digest() -> str:
    """Of the 20 MiB that the flood says."""
    digest = hashlib.sha256()
    for first in range(1, FLOOD_LINES + 1, 8192):
        last = min(first + 8192, FLOOD_LINES + 1)
        digest.update(b"".join(b"%063d\n" % number for number in range(first, last)))
    return digest.hexdigest()


@pytest.fixture(scope="module")
def expected() -> str:
    """The flood's digest, made once."""
    return flood_digest()


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """A program beside us that only burns time: orders of events that a quiet machine never shows."""
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    burner.kill()
    burner.wait()


@pytest.mark.usefixtures("busy_machine")
@pytest.mark.parametrize("how", ["closed", "cut"])
def test_a_flood_of_20_mib_is_cut_and_resumed_by_cursor_byte_for_byte(
    hyperbrowser: Hyperbrowser, hyperbrowser_sandbox_id: str, expected: str, how: str
) -> None:
    """Five times in the middle the client leaves, or its connection is torn; it goes on at the last seq it has seen."""
    sandbox = hyperbrowser.sandboxes.get(hyperbrowser_sandbox_id)
    terminal = sandbox.terminal.create(SandboxTerminalCreateParams(command="bash", args=["-c", FLOOD]))
    digest, cursor, exit_codes, connections = hashlib.sha256(), 0, [], 0
    ends_at = time.monotonic() + DEADLINE_S
    while not exit_codes:
        assert time.monotonic() < ends_at
        connection = terminal.attach(cursor)
        connections += 1
        leave_at = cursor + 3 * 1024 * 1024 if connections <= 5 else 1 << 60
        for event in connection.events():
            if event.type == "exit":
                exit_codes.append(event.status.exit_code)
                continue
            digest.update(event.raw)
            assert event.seq == cursor + len(event.raw)
            cursor = event.seq
            if cursor >= leave_at:
                break
        if how == "cut" and not exit_codes:
            connection._websocket.socket.close()
        connection.close()
    assert exit_codes == [0]
    assert connections == 6
    assert cursor == FLOOD_LINES * 64
    assert digest.hexdigest() == expected


async def test_a_hundred_terminals_at_once(ahyperbrowser: AsyncHyperbrowser, hyperbrowser_sandbox_id: str) -> None:
    """Each client gets its own terminal's output, whole, and its own exit code."""
    sandbox = await ahyperbrowser.sandboxes.get(hyperbrowser_sandbox_id)

    async def one(number: int) -> None:
        line = f"stty raw; seq -f 'terminal-{number}-%g' 2000; exit {number}"
        terminal = await sandbox.terminal.create(SandboxTerminalCreateParams(command="bash", args=["-c", line]))
        connection = await terminal.attach()
        data = b""
        async for event in connection.events():
            if event.type == "exit":
                assert event.status.exit_code == number
                break
            data += event.raw
        else:
            raise AssertionError("the stream ended without its exit frame")
        await connection.close()
        assert data == b"".join(b"terminal-%d-%d\n" % (number, at) for at in range(1, 2001))

    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(one(number) for number in range(100)))


def server_rss_bytes(server: RunningServer) -> int:
    """Resident memory of the server process."""
    assert server.process is not None
    with open(f"/proc/{server.process.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_client_that_stops_reading_costs_the_others_nothing(
    server: RunningServer, hyperbrowser: Hyperbrowser, hyperbrowser_sandbox_id: str, expected: str
) -> None:
    """It never reads; another viewer of the same terminal gets 20 MiB at full speed; the server does not grow."""
    sandbox = hyperbrowser.sandboxes.get(hyperbrowser_sandbox_id)
    line = f"read -r go; {FLOOD}"
    terminal = sandbox.terminal.create(SandboxTerminalCreateParams(command="bash", args=["-c", line]))
    stuck = [terminal.attach() for _ in range(5)]
    reader = terminal.attach()
    before = server_rss_bytes(server)
    digest, count = hashlib.sha256(), 0
    reader.write("go\n")
    for event in reader.events():
        if event.type == "exit":
            assert event.status.exit_code == 0
            break
        at = event.raw.find(b"0" * 62 + b"1") if count == 0 else 0
        if at >= 0:  # before it comes the echo of what was typed
            count += len(event.raw) - at
            digest.update(event.raw[at:])
    assert count == FLOOD_LINES * 64
    assert digest.hexdigest() == expected
    assert server_rss_bytes(server) - before < 16 * 1024 * 1024
    assert sandbox.exec("echo others are fine").stdout == "others are fine\n"
    for connection in stuck:
        connection._websocket.socket.close()
    reader.close()
