"""Hostile agents behind the E2B dialect: Start and Connect end with an error of that dialect, and leave nothing."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from sandpty import config
from sandpty.wire.frames import FrameType
from tests.component.fake_agent import STARTED, Peer, attached, exit_, output, process
from tests.component.fake_host import FakeHost, fake_host, polite, rss_bytes
from tests.component.test_hostile_agent import (
    BROKEN_STREAMS,
    FLOODS,
    GREETINGS,
    Script,
    flooder,
    hang_up,
)
from tests.waiting import until

REQUESTS = {
    "Start": {"process": {"cmd": "sh"}, "stdin": False},
    "Connect": {"process": {"pid": 42}},
}


@pytest_asyncio.fixture(scope="module")
async def host() -> AsyncIterator[FakeHost]:
    """One server for all of this file."""
    async with fake_host() as running:
        yield running


def asked_for(said: bytes, then: Script = Peer.until_closed) -> Script:
    """An agent that answers STAT, START and ATTACH properly, and then says these bytes."""

    async def behave(peer: Peer) -> None:
        kind, _ = await peer.greeted()
        if kind == FrameType.STAT:
            await peer.say(process())
        else:
            await peer.say(STARTED if kind == FrameType.START else b"", attached(), said)
            await then(peer)

    return behave


def call(host: FakeHost, sandbox: str, method: str) -> aiohttp.client._RequestContextManager:
    """Start or Connect, as E2B's SDKs ask for them."""
    body = json.dumps(REQUESTS[method]).encode()
    headers = {
        "Content-Type": "application/connect+json",
        "E2b-Sandbox-Id": sandbox,
        "X-Access-Token": f"token-{sandbox}",
    }
    return host.client.post(
        f"{host.url}/process.Process/{method}", data=struct.pack(">BI", 0, len(body)) + body, headers=headers
    )


async def ending(host: FakeHost, sandbox: str, method: str) -> str:
    """The error code of the end envelope, "" when there is none in it."""
    async with asyncio.timeout(10), call(host, sandbox, method) as answer:
        raw = await answer.read()
    at = 0
    while at < len(raw):
        flags, length = struct.unpack_from(">BI", raw, at)
        if flags & 2:
            assert at + 5 + length == len(raw)
            error: dict[str, str] = json.loads(raw[at + 5 :]).get("error", {})
            return error.get("code", "")
        at += 5 + length
    raise AssertionError(f"no end of the stream in {raw[:200]!r}")


@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize("broken", BROKEN_STREAMS)
async def test_an_agent_that_breaks_the_protocol_ends_the_stream_as_internal(
    host: FakeHost, method: str, broken: str
) -> None:
    """Whatever law it breaks, an SDK gets a well-formed end of the stream with an error in it."""
    sandbox = await host.sandbox(asked_for(BROKEN_STREAMS[broken]))
    assert await ending(host, sandbox, method) in ("internal", "data_loss")


@pytest.mark.parametrize("method", REQUESTS)
async def test_an_agent_that_hangs_up_ends_the_stream_as_unavailable(
    host: FakeHost, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost agent is `unavailable`."""
    monkeypatch.setattr(config, "END_NOTICE_S", 0.1)
    sandbox = await host.sandbox(asked_for(output(0, b"some"), then=hang_up))
    assert await ending(host, sandbox, method) == "unavailable"


@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize("manner", GREETINGS)
async def test_every_greeting_gets_an_answer(host: FakeHost, method: str, manner: str) -> None:
    """No manner of greeting makes an SDK wait for ever or see a broken stream."""
    assert await ending(host, await host.sandbox(GREETINGS[manner][0]), method) in ("internal", "unavailable")


@pytest.mark.parametrize("method", REQUESTS)
async def test_silence_ends_the_stream(host: FakeHost, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that accepts and says nothing is `unavailable` after a bounded time."""
    monkeypatch.setattr(config, "AGENT_CONNECT_TIMEOUT_S", 0.05)
    assert await ending(host, await host.sandbox(Peer.until_closed), method) == "unavailable"


async def test_a_well_behaved_agent_ends_well(host: FakeHost) -> None:
    """The same request with an agent that keeps to the laws has no error at its end."""
    sandbox = await host.sandbox(asked_for(output(0, b"done") + exit_(4)))
    assert [await ending(host, sandbox, method) for method in REQUESTS] == ["", ""]


@pytest.mark.parametrize("kind", ["OUTPUT", "RESIZED"])
async def test_a_flood_into_a_stream_nobody_reads_is_bounded(host: FakeHost, kind: str) -> None:
    """An SDK that stopped reading its stream costs others no latency and the server no memory."""
    quiet_sandbox = await host.sandbox(polite)
    async with flooder(host, FLOODS[kind], STARTED) as sandbox, host.view(quiet_sandbox) as quiet:
        await quiet.round_trip_s()
        await host.request("GET", "/healthz")
        before = rss_bytes()
        async with call(host, sandbox, "Start") as answer:
            answer.connection.transport.pause_reading()  # type: ignore[union-attr]
            trips = sorted([await quiet.round_trip_s(token) for token in range(60)])
            assert trips[30] < 0.05
            assert trips[-1] < 1
            assert rss_bytes() - before < 4 * 1024 * 1024
            answer.connection.transport.abort()  # type: ignore[union-attr]

    async def nothing_left() -> bool:
        return (await host.at_rest())[0] <= before_tasks

    before_tasks = len(asyncio.all_tasks())
    await until(nothing_left)
