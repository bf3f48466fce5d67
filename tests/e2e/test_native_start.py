"""A process with the view of it in one exchange, in a sandbox that is there or that is made for it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from sandpty.wire.frames import ExitReason
from tests.e2e.native import Box, ClosedError, opened, sandbox
from tests.server_fixture import RunningServer
from tests.waiting import until


@pytest_asyncio.fixture(scope="module")
async def box(server: RunningServer) -> AsyncIterator[Box]:
    """One sandbox for this file."""
    async with sandbox(server) as made:
        yield made


async def test_a_terminal_is_started_and_shown_in_one_exchange(box: Box) -> None:
    """ATTACHED is the answer, everything from the first byte follows, and input goes in."""
    async with box.started("sh", "-c", "printf ask; read x; exit 7", pty={"cols": 91, "rows": 31}) as terminal:
        assert (terminal.info.start, terminal.info.cols, terminal.info.rows) == (0, 91, 31)
        await terminal.until(b"ask")
        await terminal.type(b"\r")
        exit_ = await terminal.until_exit()
    assert (exit_.value, exit_.reason) == (7, ExitReason.EXITED)


async def test_a_process_goes_on_when_its_first_view_is_cut(box: Box) -> None:
    """The connection that started it is a view like any other: another one shows every byte."""
    async with box.started("sh", "-c", "printf one; read x; printf two", tag="cut") as terminal:
        await terminal.until(b"one")
        process = terminal.info.process
        terminal.cut()
    async with box.attach("tag:cut") as again:
        assert again.info.process == process
        await again.type(b"\n")
        await again.until_exit()
    assert again.data == b"onetwo"


async def test_a_flood_from_the_first_moment_comes_whole(box: Box) -> None:
    """8 MiB, acknowledged by the server or by the client, have the hash they were made with."""
    flood = "head -c 8388608 /dev/zero | tr '\\0' x"
    wanted = hashlib.sha256(b"x" * 8388608).hexdigest()
    for query in ("", "window=65536"):
        async with box.started("sh", "-c", flood, query=query) as terminal:
            await terminal.until_exit()
        assert (query, hashlib.sha256(terminal.data).hexdigest()) == (query, wanted)


async def test_a_terminal_comes_from_nothing_in_one_exchange(server: RunningServer) -> None:
    """The sandbox is told first; it is like any other, and lives on when the view is closed."""
    wanted = {"sandbox": {"metadata": {"made": "at once"}}, "process": {"argv": ["echo", "hello"]}}
    async with opened(server, wanted) as (made, terminal):
        await terminal.until_exit()
        assert terminal.data == b"hello\n"
        described = (await made.api.get(made.path)).json()
        assert (described["state"], described["metadata"]) == ("running", {"made": "at once"})
        assert (await made.api.delete(made.path)).status_code == 204


async def test_an_idempotency_key_finds_the_sandbox_of_a_lost_answer(server: RunningServer) -> None:
    """Asked again under the same key, the process starts in the sandbox that was made the first time."""
    wanted = {"process": {"argv": ["true"]}}
    key = {"Idempotency-Key": "a terminal from nothing"}
    async with opened(server, wanted, **key) as (first, _), opened(server, wanted, **key) as (second, _):
        assert first.id == second.id
        assert len((await first.api.get(f"{first.path}/processes")).json()["processes"]) == 2
        await first.api.delete(first.path)


@pytest.mark.parametrize(
    ("wanted", "code", "reason"),
    [
        ({"argv": []}, 4400, "bad_argument"),
        ({"argv": ["/no/such/program"]}, 4400, "start_failed"),
        ({"argv": ["true"], "user": "nobody-of-that-name"}, 4401, "no_such_user"),
        ({"argv": ["true"], "cwd": "/no/such/place"}, 4400, "bad_cwd"),
        ({"argv": ["true"], "pty": {"cols": 0, "rows": 1}}, 4400, "bad_window_size"),
        ({"argv": ["true"], "colour": "red"}, 4400, "bad_request"),
        ([1, 2], 4400, "bad_request"),
    ],
)
async def test_what_cannot_be_started_closes_with_the_reason(box: Box, wanted: Any, code: int, reason: str) -> None:
    """The close code is 4000 + the status, the reason's name stands first in its text; nothing is left running."""
    with pytest.raises(ClosedError) as refused:
        async with opened(box.server, wanted, f"{box.path}/start"):
            pass
    assert refused.value.code == code
    assert refused.value.text.startswith(f"{reason}: ")


async def test_a_sandbox_that_cannot_be_made_closes_with_the_reason(server: RunningServer) -> None:
    """As a POST would answer."""
    with pytest.raises(ClosedError) as refused:
        async with opened(server, {"sandbox": {"template": "no-such"}, "process": {"argv": ["true"]}}):
            pass
    assert (refused.value.code, refused.value.text.partition(":")[0]) == (4404, "no_such_template")


async def test_what_is_no_start_is_refused(box: Box) -> None:
    """Before the upgrade by an HTTP status; a first message that is no text closes."""
    assert (await box.api.get(f"{box.path}/start")).status_code == 400
    assert (await box.api.get("/v1/sandboxes/i00000000000000000000/start")).status_code == 404
    async with (
        aiohttp.ClientSession(headers=box.server.headers) as session,
        session.ws_connect(f"{box.server.url}{box.path}/start") as socket,
    ):
        await socket.send_bytes(b"\x20")
        assert (await socket.receive(20)).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 4400


async def test_a_client_that_leaves_without_a_word_starts_nothing(box: Box) -> None:
    """Nothing was said, nothing runs."""
    before = (await box.api.get(f"{box.path}/processes")).json()["processes"]
    async with aiohttp.ClientSession(headers=box.server.headers) as session:
        for _ in range(20):
            await (await session.ws_connect(f"{box.server.url}{box.path}/start")).close()

    async def unchanged() -> bool:
        return len((await box.api.get(f"{box.path}/processes")).json()["processes"]) == len(before)

    await until(unchanged)
