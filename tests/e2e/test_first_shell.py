"""The first terminal of a new sandbox may have been started in advance: nobody can tell, but by the clock."""

from __future__ import annotations

import pytest

from tests.e2e.native import Box, sandbox
from tests.server_fixture import RunningServer

LOGIN_SHELL = ("/bin/bash", "-i", "-l")
LOOK = b'echo "[$(whoami) $(pwd) $(stty size) $TERM $LANG ${E2B_SANDBOX-none} ${MINE-none}]"\n'


async def look(box: Box, *, cols: int = 80, rows: int = 24, **wanted: object) -> bytes:
    """What a login shell in a new terminal finds."""
    process = await box.start(*LOGIN_SHELL, pty={"cols": cols, "rows": rows}, **wanted)
    async with box.attach(process) as terminal:
        await terminal.type(LOOK)
        await terminal.until(b"]\r\n")
        return bytes(terminal.data)


@pytest.mark.parametrize(("cols", "rows"), [(80, 24), (123, 45)])
async def test_a_first_shell_is_what_was_asked_for(server: RunningServer, cols: int, rows: int) -> None:
    """User, directory, environment and size are those of the request, whatever was started in advance."""
    async with sandbox(server) as box:
        expected = f"[user /home/user {rows} {cols} xterm-256color C.UTF-8 none none]".encode()
        assert expected in await look(box, cols=cols, rows=rows)
        assert expected in await look(box, cols=cols, rows=rows)  # the second was surely not


async def test_a_first_shell_has_its_environment(server: RunningServer) -> None:
    """From the request and from the sandbox."""
    async with sandbox(server) as box:
        assert b"none 7]\r\n" in await look(box, env={"MINE": "7"})
    async with sandbox(server, env={"MINE": "8"}) as box:
        assert b"none 8]\r\n" in await look(box)


async def test_a_first_shell_reads_the_profiles_that_are_there_when_it_is_asked_for(server: RunningServer) -> None:
    """Whoever changes them first gets a shell that has read them."""
    async with sandbox(server) as box:
        await box.wait(await box.start("sh", "-c", "echo export MINE=9 >> ~/.bashrc"))
        assert b"none 9]\r\n" in await look(box)


async def test_processes_are_listed_from_the_first_that_was_asked_for(server: RunningServer) -> None:
    """What waits for a client is in no list, and the first process has number 1."""
    async with sandbox(server) as box:
        assert (await box.api.get(f"{box.path}/processes")).json() == {"processes": []}
        assert await box.start("sleep", "100") == 1
        assert len((await box.api.get(f"{box.path}/processes")).json()["processes"]) == 1
