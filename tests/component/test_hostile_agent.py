"""A sandbox's agent lives with its guest. Whatever it says, the server neither crashes, nor hangs, nor grows."""

from __future__ import annotations

import asyncio
import itertools
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from sandpty import config
from sandpty.wire import frames
from sandpty.wire.frames import FrameType, Gap, Output
from tests.component import fake_agent
from tests.component.fake_agent import DONE, HELLO, STARTED, Peer, attached, error, exit_, gap, output, process
from tests.component.fake_host import FakeHost, fake_host, polite, rss_bytes
from tests.waiting import pace, turn, until

Script = Callable[[Peer], Awaitable[None]]


@pytest_asyncio.fixture(scope="module")
async def host() -> AsyncIterator[FakeHost]:
    """One server for all of this file: what one hostile agent does must not show in the next test."""
    async with fake_host() as running:
        yield running


@pytest_asyncio.fixture(autouse=True)
async def nothing_is_left_behind(host: FakeHost) -> AsyncIterator[None]:
    """After every test the server has the tasks and file descriptors it had before, and answers."""
    await host.request("GET", "/healthz")
    tasks, fds = await host.at_rest()
    yield
    assert (await host.request("GET", "/healthz"))[0] == 200

    async def back() -> bool:
        now = await host.at_rest()
        return now[0] <= tasks and now[1] <= fds + 1  # the fake agent of this test keeps its listening socket

    await until(back, 10, f"tasks and fds are back at {tasks}, {fds}")


def saying(*said: bytes, then: Script | None = None) -> Script:
    """An agent that greets, hears the request out, says these bytes, and then waits (or does `then`)."""

    async def behave(peer: Peer) -> None:
        await peer.greeted()
        await peer.say(*said)
        await (then or Peer.until_closed)(peer)

    return behave


async def hang_up(peer: Peer) -> None:
    """Close without a word."""


def broken_length(length: int) -> bytes:
    """The head of an OUTPUT that claims to be so long."""
    return struct.pack("<I", length) + b"\xa0"


BROKEN_STREAMS = {
    "garbage": b"\x07\x00\x00\x00garbage and more garbage",
    "a length of four gigabytes": broken_length(2**32 - 1),
    "a length one over the limit": broken_length(frames.MAX_FRAME_BYTES + 1),
    "a length of zero": broken_length(0),
    "an unknown frame type": frames.frame(0x7E, b"?"),
    "a frame that only clients send": frames.encode_input(b"rm -rf /\n"),
    "a second HELLO": HELLO,
    "a second STARTED": STARTED,
    "a second ATTACHED": attached(),
    "DONE on an attachment": DONE,
    "PROCESS on an attachment": process(),
    "an output at a wrong offset": output(1, b"x"),
    "an output at the last offset there is": output(2**64 - 1, b"x"),
    "an output twice": output(0, b"x") + output(0, b"x"),
    "a hole": output(0, b"x") + output(2, b"x"),
    "an output without bytes": frames.frame(FrameType.OUTPUT, struct.pack("<BQ", 0, 0)),
    "an output over 64 KiB": frames.frame(FrameType.OUTPUT, struct.pack("<BQ", 0, 0) + b"x" * 65537),
    "an unknown stream": output(0, b"x", stream=3),
    "a gap backwards": output(0, b"abc") + gap(3, 1),
    "a gap of nothing": gap(0, 0),
    "a gap elsewhere": gap(5, 9),
    "a gap to the end of numbers": gap(0, 2**64 - 1) + output(2**64 - 1, b"x"),
    "an exit before the end": output(0, b"x") + exit_(2),
    "an exit behind the end": output(0, b"xyz") + exit_(1),
    "an exit for an unknown reason": exit_(0, reason=77),
    "an error that is longer than its frame": frames.frame(FrameType.ERROR, struct.pack("<HI", 1, 2**31)),
    "a frame with bytes to spare": frames.frame(FrameType.RESIZED, b"\x50\0\x18\0\0"),
    "a frame cut short": frames.frame(FrameType.GAP, b"\0" * 9),
}


@pytest.mark.parametrize("said", [pytest.param(value, id=name) for name, value in BROKEN_STREAMS.items()])
async def test_an_agent_that_breaks_the_protocol_is_cut_off(host: FakeHost, said: bytes) -> None:
    """Laws 1 to 3 are checked, not believed: the client is told agent_misbehaved (4502) and no wrong byte passes."""
    sandbox = await host.sandbox(saying(attached(), said))
    async with host.view(sandbox) as view:
        assert await view.closed() == 4502
        assert view.close_text.startswith("agent_misbehaved: ")


@pytest.mark.parametrize("start", [2**63, 2**64 - 1])
async def test_an_attachment_at_an_absurd_offset_is_cut_off_not_crashed(host: FakeHost, start: int) -> None:
    """Offsets that no log reaches do not overflow what we send back."""
    sandbox = await host.sandbox(saying(attached(start, start), output(start, b"x" * 65536), output(2**64 - 1, b"x")))
    async with host.view(sandbox) as view:
        assert await view.closed() == 4502


async def test_what_came_before_the_breach_is_delivered(host: FakeHost) -> None:
    """Bytes in order are not held back because nonsense follows them."""
    sandbox = await host.sandbox(saying(attached(), output(0, b"good"), gap(4, 9), output(9, b"more"), b"\xff" * 64))
    async with host.view(sandbox) as view:
        assert isinstance(await view.receive(), frames.Attached)
        assert await view.receive() == Output(0, 0, b"good")
        assert await view.receive() == Gap(4, 9)
        assert await view.receive() == Output(0, 9, b"more")
        assert await view.closed() == 4502


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(output(0, b"half a frame")[:-4], id="half a frame"),
        pytest.param(output(0, b"x")[:3], id="half a length"),
    ],
)
async def test_an_agent_that_hangs_up_is_unreachable(host: FakeHost, said: bytes) -> None:
    """A connection that ends early is agent_unreachable (4503): the client may attach again."""
    sandbox = await host.sandbox(saying(attached(), said, then=hang_up))
    async with host.view(sandbox) as view:
        assert await view.closed() == 4503
        assert view.close_text.startswith("agent_unreachable: ")


async def test_frames_in_the_smallest_pieces_are_whole_for_the_client(host: FakeHost) -> None:
    """A stream that trickles in byte by byte is the same stream."""

    async def trickle(peer: Peer) -> None:
        await peer.greeted()
        for byte in attached() + output(0, b"hello") + exit_(5):
            await peer.say(bytes([byte]))
            await turn()

    async with host.view(await host.sandbox(trickle)) as view:
        assert isinstance(await view.receive(), frames.Attached)
        assert await view.receive() == Output(0, 0, b"hello")
        assert await view.closed() == 1000


# --- every route, every broken answer ---------------------------------------------------------------------------------


def hello_version(version: int) -> bytes:
    """An agent's HELLO in another version."""
    return frames.frame(FrameType.AGENT_HELLO, struct.pack("<HIQ", version, 0, 0))


async def greet_with(peer: Peer, greeting: bytes) -> None:
    """Say that instead of HELLO."""
    await peer.say(greeting)
    await peer.until_closed()


GREETINGS: dict[str, tuple[Script, str]] = {
    "hangs up at once": (hang_up, "agent_unreachable"),
    "speaks another version": (lambda peer: greet_with(peer, hello_version(2)), "agent_misbehaved"),
    "greets with garbage": (lambda peer: greet_with(peer, b"\xff" * 100), "agent_misbehaved"),
    "greets with output": (lambda peer: greet_with(peer, output(0, b"x")), "agent_misbehaved"),
    "greets like a client": (lambda peer: greet_with(peer, frames.encode_hello()), "agent_misbehaved"),
    "answers DONE to everything": (saying(DONE, then=hang_up), "agent_misbehaved"),
    "answers with garbage": (saying(b"\xff" * 100), "agent_misbehaved"),
    "answers with half a frame": (saying(process()[:20], then=hang_up), "agent_unreachable"),
    "answers with an unknown error": (saying(error(999, b"\xff\xfe")), "internal"),
    "answers with a process of the year 584556019": (saying(process(started_ms=2**64 - 1)), "agent_misbehaved"),
}
ROUTES: dict[str, tuple[str, str, dict[str, object]]] = {
    "start": ("POST", "", {"json": {"argv": ["sh"]}}),
    "list": ("GET", "", {}),
    "get": ("GET", "/1", {}),
    "signal": ("POST", "/1/signal", {"json": {"signal": "KILL"}}),
    "resize": ("POST", "/1/resize", {"json": {"cols": 80, "rows": 24}}),
    "wait": ("GET", "/1/wait", {}),
}
DONE_IS_FINE = {"signal", "resize", "list"}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("manner", GREETINGS)
async def test_every_route_answers_whatever_the_agent_says(host: FakeHost, route: str, manner: str) -> None:
    """No route hangs or shows a traceback: each names what is wrong with the sandbox's agent."""
    behaviour, reason = GREETINGS[manner]
    method, path, kwargs = ROUTES[route]
    sandbox = await host.sandbox(behaviour)
    status, body = await host.request(method, f"/v1/sandboxes/{sandbox}/processes{path}", **kwargs)
    if manner == "answers DONE to everything" and route in DONE_IS_FINE:
        assert status in (200, 204)
        return
    assert status in (500, 502, 503)
    assert body["error"]["reason"] == reason  # type: ignore[index]


@pytest.mark.parametrize("manner", GREETINGS)
async def test_attach_answers_whatever_the_agent_says(host: FakeHost, manner: str) -> None:
    """Before the upgrade the answer is plain HTTP with the reason."""
    sandbox = await host.sandbox(GREETINGS[manner][0])
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with host.view(sandbox):
            pass
    assert refused.value.status in (500, 502, 503)


async def test_a_socket_that_is_not_there_is_agent_unreachable(host: FakeHost) -> None:
    """A sandbox whose agent is gone answers 503 at once."""
    sandbox = await host.sandbox_at(Path("/nonexistent/agent.sock"))
    status, body = await host.request("GET", f"/v1/sandboxes/{sandbox}/processes")
    assert (status, body["error"]["reason"]) == (503, "agent_unreachable")  # type: ignore[index]


# --- silence ----------------------------------------------------------------------------------------------------------

SILENT: dict[str, Script] = {
    "accepts and says nothing": Peer.until_closed,
    "greets and says nothing": saying(),
    "stops in the middle of its answer": saying(attached()[:9]),
    "starts and says nothing": saying(STARTED),
}


@pytest.mark.parametrize("manner", SILENT)
async def test_silence_has_an_end_on_every_route(host: FakeHost, manner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen or silent agent costs a client a bounded time, then agent_unreachable."""
    monkeypatch.setattr(config, "AGENT_CONNECT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(config, "AGENT_REPLY_TIMEOUT_S", 0.05)
    sandbox = await host.sandbox(SILENT[manner])
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with host.view(sandbox):
            pass
    answers_start = manner == "starts and says nothing"
    assert refused.value.status == (502 if answers_start else 503)
    for route, (method, path, kwargs) in ROUTES.items():
        query = "?timeout_s=0" if route == "wait" else ""
        status, body = await host.request(method, f"/v1/sandboxes/{sandbox}/processes{path}{query}", **kwargs)
        if answers_start:
            assert status in (201, 502)
        elif manner == "stops in the middle of its answer" or status != 201:
            assert (status, body["error"]["reason"]) == (503, "agent_unreachable")  # type: ignore[index]


async def test_a_list_that_never_ends_has_an_end(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing has a deadline as a whole, however lively the agent is."""
    monkeypatch.setattr(config, "AGENT_REPLY_TIMEOUT_S", 0.2)

    async def forever(peer: Peer) -> None:
        await peer.greeted()
        while True:
            await peer.say(process())
            await pace(0.02, "an agent that says one process after the other")

    sandbox = await host.sandbox(forever)
    status, body = await host.request("GET", f"/v1/sandboxes/{sandbox}/processes")
    assert (status, body["error"]["reason"]) == (503, "agent_unreachable")  # type: ignore[index]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        pytest.param(process(), "agent_misbehaved", id="very many processes"),
        pytest.param(process((b"x" * 1000,) * 1000), "limit", id="very big processes"),
        pytest.param(process((b"",) * 16000), "limit", id="processes of very many arguments"),
    ],
)
async def test_a_list_that_would_fill_our_memory_is_refused(host: FakeHost, entry: bytes, reason: str) -> None:
    """Neither many nor big entries make the server grow by more than a few megabytes."""

    async def flood(peer: Peer) -> None:
        await peer.greeted()
        while True:
            await peer.say(entry * (1 + 65536 // len(entry)))

    before = rss_bytes()
    sandbox = await host.sandbox(flood)
    status, body = await host.request("GET", f"/v1/sandboxes/{sandbox}/processes")
    assert (status, body["error"]["reason"]) == (502 if reason == "agent_misbehaved" else 429, reason)  # type: ignore[index]
    assert rss_bytes() - before < 64 * 1024 * 1024


# --- floods -----------------------------------------------------------------------------------------------------------

# An agent in a process of its own, so that its flood does not share our event loop. Arguments: its socket, what to say
# first, what to say for ever (hexadecimal; "output": contiguous outputs of 64 KiB).
FLOODER = """
import os, socket, struct, sys
listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1] + ".new"); listener.listen(16)
os.rename(sys.argv[1] + ".new", sys.argv[1])  # once it can be seen it can be connected to
while True:
    peer = listener.accept()[0]
    try:
        peer.sendall(bytes.fromhex(sys.argv[2]))
        offset, block = 0, bytes.fromhex(sys.argv[3]) * 8000 if sys.argv[3] != "output" else b""
        while block:
            peer.sendall(block)
        while True:
            peer.sendall(struct.pack("<IBBQ", 65546, 0xA0, 0, offset) + b"x" * 65536)
            offset += 65536
    except OSError:
        peer.close()
"""

_numbers = itertools.count()


@asynccontextmanager
async def flooder(host: FakeHost, flood: str, greeting: bytes = b"") -> AsyncIterator[str]:
    """A sandbox whose agent floods every attachment and never reads anything; `greeting` precedes its ATTACHED."""
    socket = host.directory / f"flood-{next(_numbers)}.sock"
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", FLOODER, str(socket), (HELLO + greeting + attached()).hex(), flood
    )
    try:
        await until(socket.exists)
        yield await host.sandbox_at(socket)
    finally:
        program.kill()
        await program.wait()


FLOODS = {
    "OUTPUT": "output",
    "RESIZED": (frames.frame(FrameType.RESIZED, b"\x50\0\x18\0")).hex(),
    "PONG": (frames.frame(FrameType.PONG, b"12345678")).hex(),
    "INPUT_ACK": (frames.frame(FrameType.INPUT_ACK, b"12345678")).hex(),
    "ERROR": (fake_agent.error(13, b"no")).hex(),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_without_regard_for_windows_costs_others_nothing(host: FakeHost, kind: str) -> None:
    """Endless frames at full speed: who wants them gets them, the others' PINGs stay quick, nothing grows."""
    quiet_sandbox = await host.sandbox(polite)
    async with flooder(host, FLOODS[kind]) as sandbox, host.view(quiet_sandbox) as quiet, host.view(sandbox) as view:

        async def drain() -> None:
            while await view.receive() is not None:
                pass

        await quiet.round_trip_s()
        draining = asyncio.create_task(drain())
        try:
            before = rss_bytes()
            trips = sorted([await quiet.round_trip_s(token) for token in range(60)])
            assert trips[30] < 0.2  # the drain above shares this test's loop, so this bounds far more than the server
            assert trips[-1] < 5
            assert rss_bytes() - before < 8 * 1024 * 1024
        finally:
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_into_a_client_that_never_reads_is_bounded(
    host: FakeHost, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stuck client on a flooding agent holds a few hundred kilobytes, delays nobody, and is let go in the end."""
    monkeypatch.setattr(config, "WS_HEARTBEAT_S", 0.4)
    quiet_sandbox = await host.sandbox(polite)
    async with flooder(host, FLOODS[kind]) as sandbox, host.view(quiet_sandbox) as quiet:
        await quiet.round_trip_s()
        before = rss_bytes()
        reader, writer = await raw_attach(host, sandbox)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        try:
            trips = sorted([await quiet.round_trip_s(token) for token in range(60)])
            assert trips[30] < 0.2
            assert trips[-1] < 5
            assert rss_bytes() - before < 4 * 1024 * 1024

            async def cut() -> bool:
                return len([task for task in asyncio.all_tasks() if task.get_name() == "attachment-output"]) <= 1

            await until(cut, 30, "the stuck client is let go")
        finally:
            writer.transport.abort()


async def raw_attach(host: FakeHost, sandbox: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket by hand, answered 101, nothing read after that."""
    address, port = host.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(address, int(port), limit=1024)
    key = host.client.headers["X-API-Key"]
    writer.write(
        f"GET /v1/sandboxes/{sandbox}/processes/1/attach?from=offset HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: c2FuZHB0eS1zYW5kcHR5IQ==\r\n\r\n".encode()
    )
    assert b"101" in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


# --- an agent that does not read --------------------------------------------------------------------------------------


async def deaf(peer: Peer) -> None:
    """Answer the request, then never read again."""
    await peer.greeted()
    await peer.deaf(attached())


async def test_an_agent_that_never_reads_holds_only_its_own_client(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input for a stuck agent stays with the client that types it; when that leaves, nothing stays."""
    monkeypatch.setattr(config, "WS_HEARTBEAT_S", 0.4)
    monkeypatch.setattr(config, "AGENT_CLOSE_GRACE_S", 0.2)

    before = rss_bytes()
    sandbox, other = await host.sandbox(deaf), await host.sandbox(polite)
    async with host.view(sandbox) as view, host.view(other) as quiet:
        await view.receive()
        typing = asyncio.create_task(paste(view.socket, 64))
        await asyncio.wait([typing], timeout=0.3)
        assert not typing.done()  # 64 MiB do not fit anywhere on the way: the client itself is held
        assert await quiet.round_trip_s() < 1
        assert rss_bytes() - before < 24 * 1024 * 1024  # the client's own buffers are in this process too
        typing.cancel()
        await asyncio.gather(typing, return_exceptions=True)
        view.socket._response.connection.transport.abort()  # type: ignore[union-attr]
    await host.at_rest()


async def paste(socket: aiohttp.ClientWebSocketResponse, megabytes: int) -> None:
    """Type that much in frames of 1 MiB."""
    for _ in range(megabytes):
        await socket.send_bytes(bytes([FrameType.INPUT]) + b"\xff" * 8 + b"x" * (1024 * 1024))


async def test_a_client_held_by_a_busy_program_is_not_taken_for_dead(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the program takes no input nobody reads the client's pongs, and their absence proves nothing."""
    monkeypatch.setattr(config, "WS_HEARTBEAT_S", 0.1)
    release = asyncio.Event()

    async def slow(peer: Peer) -> None:
        await peer.greeted()
        await peer.say(attached())
        await release.wait()
        taken = 0
        while taken < 4 * 1024 * 1024:
            taken += len((await peer.request())[1]) - 8
        await peer.say(output(0, b"thanks"), exit_(6))

    async with host.view(await host.sandbox(slow)) as view:
        await view.receive()
        typing = asyncio.create_task(paste(view.socket, 4))
        await asyncio.wait([typing], timeout=0.5)  # ten heartbeats
        release.set()
        await typing
        assert await view.receive() == Output(0, 0, b"thanks")
        assert await view.closed() == 1000


async def test_acknowledgements_to_an_agent_that_never_reads_do_not_pile_up(host: FakeHost) -> None:
    """Endless one-byte outputs, no ACK ever read: the server keeps one ACK, not a million."""

    async def mute(peer: Peer) -> None:
        await peer.greeted()
        await peer.say(attached())
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for offset in range(50_000):
            peer.writer.write(output(offset, b"x"))
            if offset % 500 == 0:
                await peer.writer.drain()
        await peer.deaf(exit_(50_000))

    before = rss_bytes()
    async with host.view(await host.sandbox(mute)) as view:
        assert await view.closed() == 1000
    assert rss_bytes() - before < 4 * 1024 * 1024


async def test_a_killed_sandbox_lets_go_of_a_client_whose_agent_is_stuck(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill cuts every attachment at once, even one in the middle of typing to an agent that does not read."""
    monkeypatch.setattr(config, "AGENT_CLOSE_GRACE_S", 0.2)

    sandbox = await host.sandbox(deaf)
    async with host.view(sandbox) as view:
        await view.receive()
        typing = asyncio.create_task(paste(view.socket, 8))
        await asyncio.wait([typing], timeout=0.1)
        assert (await host.request("DELETE", f"/v1/sandboxes/{sandbox}"))[0] == 204
        assert await view.closed() == 4503
        typing.cancel()
        await asyncio.gather(typing, return_exceptions=True)
    await host.at_rest()


async def test_a_paused_sandbox_cuts_its_attachments_and_refuses_new_ones(host: FakeHost) -> None:
    """Whoever looks at a sandbox that is paused is told so instead of waiting for ever."""
    sandbox = await host.sandbox(polite)
    async with host.view(sandbox) as view:
        await view.round_trip_s()
        assert (await host.request("POST", f"/v1/sandboxes/{sandbox}/pause"))[0] == 200
        assert await view.closed() == 4503
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with host.view(sandbox):
            pass
    assert refused.value.status == 409
