"""The server killed without warning: terminals go on, and who comes back by offset has lost and repeated nothing."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import Iterator

import pyte
import pytest

from sandpty.wire.frames import InputAck
from tests.e2e.native import Box, Terminal, sandbox
from tests.server_fixture import RunningServer, running_server

LOG_BYTES = 32 * 1024 * 1024  # law 7: while nobody listens the program runs on, and what it says must fit


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server of its own for these tests: they kill it."""
    with running_server() as running:
        yield running


def numbers(last: int, end: bytes = b"\n") -> bytes:
    """What `seq 1 last` says."""
    return b"".join(b"%d%s" % (number, end) for number in range(1, last + 1))


class Screen(pyte.Screen):
    """pyte's, which does not know that vim asks the terminal for its key modes with a private CSI m."""

    def select_graphic_rendition(self, *attrs: int, private: bool = False) -> None:
        """Colours, unless it is that question."""
        if not private:
            super().select_graphic_rendition(*attrs)


def shown(data: bytes) -> tuple[list[str], int, int]:
    """The screen that these bytes leave: its lines, and where the cursor is."""
    screen = Screen(80, 24)
    pyte.ByteStream(screen).feed(data)
    return list(screen.display), screen.cursor.x, screen.cursor.y


async def crash(server: RunningServer) -> None:
    """kill -9 of the server, and a new one."""
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


async def read_through_crashes(box: Box, process: int, kill_at: list[int]) -> bytes:
    """Everything a process says, with the server killed each time so many bytes were received."""
    data = b""
    while True:
        async with box.attach(process, f"from=offset&value={len(data)}") as terminal:
            assert terminal.gaps == []
            if not kill_at:
                await terminal.until_exit()
                assert terminal.gaps == []
                return data + bytes(terminal.data)
            await terminal.until_offset(kill_at[0])
            kill_at = kill_at[1:]
            box.server.kill()
            await lost(terminal)
            data += bytes(terminal.data)
        await asyncio.to_thread(box.server.start)


async def lost(terminal: Terminal) -> None:
    """Take what is still on the way from a server that is dead."""
    assert (await terminal.until_closed()).code == 1006


async def test_a_flood_survives_kill_9_of_the_server_byte_for_byte(server: RunningServer) -> None:
    """1.5 million numbered lines, the server killed twice in the middle: every byte once, and the exit status."""
    async with sandbox(server) as box:
        process = await box.start("sh", "-c", "read go; seq 1 1500000", log_bytes=LOG_BYTES)
        async with box.attach(process) as terminal:
            await terminal.type(b"\n")
            await terminal.until_offset(1)
        data = await read_through_crashes(box, process, [1_000_000, 5_000_000])
        assert hashlib.sha256(data).hexdigest() == hashlib.sha256(numbers(1_500_000)).hexdigest()
        assert (await box.wait(process))["code"] == 0


async def test_a_terminal_that_goes_on_talking_survives_too(server: RunningServer) -> None:
    """A program that speaks before, during and after the crash: its lines are all there, in order."""
    script = (
        "import select, sys\n"
        "for number in range(1, 6001):\n"
        "    print(number)\n"
        "    if number % 20 == 0: sys.stdout.flush(); select.select([], [], [], 0.01)\n"
    )
    async with sandbox(server) as box:
        process = await box.terminal("python3", "-c", script)
        data = await read_through_crashes(box, process, [2000])
        assert data == numbers(6000, b"\r\n")


async def test_vim_and_the_shell_are_as_they_were(server: RunningServer) -> None:
    """After kill -9 of the server a screenful shows the very screen of before, and vim and bash take the next key."""
    async with sandbox(server, template="host-usr") as box:
        editor = await box.terminal("vim", "-u", "NONE", "-n", "/tmp/novel")
        shell = await box.terminal("bash", "--norc", "-i")
        async with box.attach(editor) as vim, box.attach(shell) as bash:
            await vim.until(b"\x1b[?1049h")
            await vim.type(b"i" + b"It was a dark and stormy night.\r" * 30 + b"\x1b")
            await vim.type(b":set number | echo 'chapter' 'one'\r")
            await vim.until(b"chapter one")
            await vim.round_trip()
            await bash.type(b"PS1='$ '; cd /usr; LIFE=42; sleep 777 & echo rea''dy\r")
            await bash.until(b"ready\r\n")
            await bash.round_trip()
            before = shown(bytes(vim.data))
            server.kill()
            await lost(vim)
            await lost(bash)
            before = shown(bytes(vim.data))
            said = bytes(bash.data)
        assert "It was a dark and stormy night." in "\n".join(before[0])
        await asyncio.to_thread(server.start)

        async with box.attach(editor, "from=screen") as vim:
            await vim.until_offset(vim.info.end)
            assert shown(bytes(vim.data)) == before
            await vim.type(b":q!\r")
            assert (await vim.until_exit()).value == 0
        async with box.attach(shell, f"from=offset&value={len(said)}") as bash:
            await bash.type(b"echo $LIFE $PWD $(jobs -p | wc -l)\r")
            await bash.until(b"42 /usr 1\r\n")
        async with box.attach(shell) as bash:
            await bash.until(b"42 /usr 1\r\n")
            assert bash.data.startswith(said)


async def test_input_typed_around_a_crash_is_typed_once(server: RunningServer) -> None:
    """Numbered input, sent again after the crash from what ATTACHED says was taken: no key lost, none twice."""
    async with sandbox(server) as box:
        process = await box.start("sha256sum")
        data = numbers(20_000)
        async with box.attach(process) as terminal:
            for at in range(0, 60_000, 1000):
                await terminal.type(data[at : at + 1000], at)
            await terminal.until_frame(InputAck)
            server.kill()
            await lost(terminal)
        await asyncio.to_thread(server.start)
        async with box.attach(process) as terminal:
            taken = terminal.info.input
            assert taken >= 1000
            for at in range(taken, len(data), 10_000):
                await terminal.type(data[at : at + 10_000], at)
            await terminal.send(0x23)
            await terminal.until_exit()
            assert hashlib.sha256(data).hexdigest().encode() in terminal.data


async def test_metadata_deadlines_and_state_outlive_the_server(server: RunningServer) -> None:
    """The server keeps nothing of its own: list, metadata, environment, pause and deadline are as before."""
    async with sandbox(server, metadata={"a": "b"}, env={"E": "1"}) as box, sandbox(server) as paused:
        await paused.api.post(f"{paused.path}/pause")
        before = (await box.api.get("/v1/sandboxes")).json()
        await crash(server)
        assert (await box.api.get("/v1/sandboxes")).json() == before
        process = await box.start("sh", "-c", "printf $E")
        async with box.attach(process) as terminal:
            await terminal.until_exit()
            assert terminal.data == b"1"
        assert (await paused.api.post(f"{paused.path}/resume")).status_code == 200


async def test_a_server_that_is_told_to_stop_leaves_everything_running(server: RunningServer) -> None:
    """SIGTERM: attachments are told at once (1001), sandboxes and processes live on."""
    async with sandbox(server) as box:
        process = await box.start("cat")
        async with box.attach(process) as terminal:
            await terminal.type(b"before")
            await terminal.until(b"before")
            stopping = asyncio.create_task(asyncio.to_thread(server.kill, signal.SIGTERM))
            assert (await terminal.until_closed()).code == 1001
            await stopping
            assert server.process is not None
            assert server.process.returncode == 0
        await asyncio.to_thread(server.start)
        async with box.attach(process) as terminal:
            await terminal.type(b" after")
            await terminal.until(b"before after")
