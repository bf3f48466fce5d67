"""The port proxy passes requests and answers on as they were meant, both ways, as streams."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sandpty import config
from tests.component.fake_host import FakeHost, fake_host, open_fds, rss_bytes
from tests.component.port_peer import DEADLINE_S, Seen, ask, client, get, says, service
from tests.waiting import until, until_still

NOWHERE = Path("/nonexistent")
MB = 1 << 20


@pytest_asyncio.fixture(scope="module")
async def host() -> AsyncIterator[FakeHost]:
    """One server for this file."""
    async with fake_host() as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def sandbox(host: FakeHost) -> str:
    """A sandbox whose ports are this host's."""
    return await host.sandbox_at(NOWHERE)


async def tell(seen: Seen) -> None:
    """Answer with what was asked."""
    body = await seen.body()
    said = json.dumps({"line": seen.line, "headers": seen.headers, "body": body.decode("latin-1")}).encode()
    await seen.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said))


async def test_a_request_arrives_as_it_was_sent(host: FakeHost, sandbox: str) -> None:
    """Method, path byte for byte, query, order and repetition of headers, Host; who asked is added."""
    async with service(tell) as port:
        path = "/a%2Fb//c/../d?x=%20&y=%zz&x=1"
        request = get(sandbox, port, path, "X-B: 1", "X-A: 2", "X-B: 3", "Cookie: a=b; c=d", method="PATCH")
        told = json.loads((await ask(host, request)).body)
    assert told["line"] == f"PATCH {path} HTTP/1.1"
    headers = [tuple(header) for header in told["headers"]]
    assert headers[0] == ("Host", f"{port}-{sandbox}.example.test")
    assert headers[1:5] == [("X-B", "1"), ("X-A", "2"), ("X-B", "3"), ("Cookie", "a=b; c=d")]
    assert dict(headers[5:]) == {
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Host": f"{port}-{sandbox}.example.test",
        "X-Forwarded-Proto": "http",
        "Connection": "close",
    }


async def test_what_is_for_the_neighbour_is_not_passed_on(host: FakeHost, sandbox: str) -> None:
    """Connection and what it names, TE, proxy credentials, our own token; proxies before us are believed."""
    async with service(tell) as port:
        request = get(
            sandbox,
            port,
            "/",
            "Connection: keep-alive, X-Secret, Host, X-Forwarded-For",
            "X-Secret: 1",
            "TE: trailers",
            "Keep-Alive: timeout=5",
            "Proxy-Authorization: Basic eA==",
            "E2b-Traffic-Access-Token: t",
            "X-Forwarded-For: 203.0.113.9",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: front.example",
        )
        headers = dict(json.loads((await ask(host, request)).body)["headers"])
    assert headers == {
        "Host": f"{port}-{sandbox}.example.test",
        "X-Forwarded-For": "203.0.113.9, 127.0.0.1",
        "X-Forwarded-Host": "front.example",
        "X-Forwarded-Proto": "https",
        "Connection": "close",
    }


async def test_bodies_arrive_framed_as_they_were_sent(host: FakeHost, sandbox: str) -> None:
    """By length, in chunks, empty, and compressed ones untouched; `Expect: 100-continue` is met on the way."""
    packed = gzip.compress(b"hello" * 100)
    chunks = b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-Trailer: ignored\r\n\r\n"
    async with service(tell) as port:
        for headers, sent, name, value, body in (
            (["Content-Length: 5"], b"hello", "Content-Length", "5", b"hello"),
            (["Content-Length: 0"], b"", "Content-Length", "0", b""),
            (["Transfer-Encoding: chunked"], chunks, "Transfer-Encoding", "chunked", b"abc0123456789"),
            ([f"Content-Length: {len(packed)}", "Content-Encoding: gzip"], packed, "Content-Encoding", "gzip", packed),
        ):
            told = json.loads((await ask(host, get(sandbox, port, "/", *headers, method="POST") + sent)).body)
            assert dict(told["headers"])[name] == value
            assert told["body"].encode("latin-1") == body
        async with client(host) as connected:
            await connected.send(get(sandbox, port, "/", "Content-Length: 2", "Expect: 100-continue", method="PUT"))
            assert (await connected.head())[0] == 100
            await connected.send(b"ok")
            told = json.loads((await connected.answer()).body)
            assert told["body"] == "ok"
            assert "Expect" not in dict(told["headers"])


@pytest.mark.parametrize(
    ("said", "status", "body", "headers"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: 1\r\n\r\nhi", 200, b"hi", {"content-length": "2", "x-a": "1"}),
        (
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n1\r\n!\r\n0\r\nX-T: 1\r\n\r\n",
            201,
            b"hi!",
            {"transfer-encoding": "chunked"},
        ),
        (b"HTTP/1.0 200\r\n\r\nto the end", 200, b"to the end", {"transfer-encoding": "chunked"}),
        (b"HTTP/1.1 404 Not Found\nContent-Length: 4\n\nlf\n\n", 404, b"lf\n\n", {"content-length": "4"}),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nwrong", 204, b"", {}),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n", 304, b"", {"content-length": "5"}),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1", 200, b"1", {}),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", {"content-length": "2"}),
        (
            b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: x\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Length: 1\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            200,
            b"hi",
            {"transfer-encoding": "chunked"},
        ),
        (b"HTTP/1.1 500 Oh no \xfc\r\nContent-Length: 0\r\nX-B: \xfc\r\n\r\n", 500, b"", {"x-b": "\xfc"}),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n\r\nsplit", 200, b"hi", {}),
    ],
)
async def test_an_answer_arrives_as_it_was_meant(  # noqa: PLR0917 - a row of the table
    host: FakeHost, sandbox: str, said: bytes, status: int, body: bytes, headers: dict[str, str]
) -> None:
    """However the service frames it; and the client's connection is good for another request."""
    async with service(says(said)) as port, client(host) as connected:
        for _ in range(2):
            await connected.send(get(sandbox, port))
            answer = await connected.answer()
            assert (answer.status, answer.body, answer.broken) == (status, body, False)
            assert headers.items() <= answer.headers.items()
            assert not {"connection", "keep-alive", "x-hop", "server", "date"} & answer.headers.keys()


async def test_head_has_headers_and_no_body(host: FakeHost, sandbox: str) -> None:
    """The length is told, nothing follows, and the connection goes on."""
    async with service(says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")) as port, client(host) as connected:
        for _ in range(2):
            await connected.send(get(sandbox, port, method="HEAD"))
            answer = await connected.answer(method="HEAD")
            assert (answer.status, answer.headers["content-length"]) == (200, "1000")


async def test_an_old_client_gets_what_it_understands(host: FakeHost, sandbox: str) -> None:
    """HTTP/1.0: no chunks; an answer of unknown length ends with the connection."""
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    async with service(says(said)) as port, client(host) as connected:
        await connected.send(get(sandbox, port, version="1.0"))
        assert (await connected.head())[1] == {}
        assert await connected.ended() == b"hi"


async def test_routing_headers_do_the_same_as_a_host_name(host: FakeHost, sandbox: str) -> None:
    """On one connection, for several sandboxes and the server itself in turn."""
    other = await host.sandbox_at(NOWHERE)
    async with service(tell) as port, client(host) as connected:
        for sandbox_id in (sandbox, other):
            for names in (("E2b-Sandbox-Id", "E2b-Sandbox-Port"), ("Novita-Sandbox-Id", "Novita-Sandbox-Port")):
                lines = ["GET /x HTTP/1.1", "Host: 127.0.0.1", f"{names[0]}: {sandbox_id}", f"{names[1]}: {port}"]
                await connected.send(("\r\n".join(lines) + "\r\n\r\n").encode())
                assert json.loads((await connected.answer()).body)["line"] == "GET /x HTTP/1.1"
                await connected.send(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert json.loads((await connected.answer()).body)["status"] == "ok"


async def test_events_arrive_one_by_one(host: FakeHost, sandbox: str) -> None:
    """Server-sent events: each is here before the service says the next."""
    go = asyncio.Event()

    async def events(seen: Seen) -> None:
        await seen.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(5):
            await seen.say(b"data: %d\n\n" % number)
            await go.wait()
            go.clear()

    async with service(events) as port, client(host) as connected:
        await connected.send(get(sandbox, port))
        assert (await connected.head())[1]["content-type"] == "text/event-stream"
        for number in range(5):
            line = await asyncio.wait_for(connected.reader.readuntil(b"\n\n\r\n"), DEADLINE_S)
            assert line.endswith(b"data: %d\n\n\r\n" % number)
            go.set()
        assert await asyncio.wait_for(connected.reader.readuntil(b"0\r\n\r\n"), DEADLINE_S)


async def test_a_service_may_answer_before_it_has_read_the_request(host: FakeHost, sandbox: str) -> None:
    """It refuses an upload at once: the client learns why."""
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!"
    async with service(says(refusal)) as port, client(host) as connected:
        connected.writer.write(get(sandbox, port, "/", f"Content-Length: {1 << 40}", method="POST") + b"x" * MB)
        answer = await connected.answer()
        assert (answer.status, answer.body) == (413, b"no!")


async def test_both_may_talk_at_the_same_time(host: FakeHost, sandbox: str) -> None:
    """A conversation in one request: each line of the body is answered before the next is sent."""

    async def echo(seen: Seen) -> None:
        await seen.say(b"HTTP/1.1 200 OK\r\n\r\n")
        while size := int(await seen.reader.readline(), 16):
            await seen.say(await seen.reader.readexactly(size))
            await seen.reader.readline()

    async with service(echo) as port, client(host) as connected:
        await connected.send(get(sandbox, port, "/", "Transfer-Encoding: chunked", method="POST"))
        await connected.head()
        for _ in range(3):
            await connected.send(b"4\r\nping\r\n")
            assert await asyncio.wait_for(connected.reader.readexactly(9), DEADLINE_S) == b"4\r\nping\r\n"
        await connected.send(b"0\r\n\r\n")
        assert await connected.reader.readexactly(5) == b"0\r\n\r\n"


@pytest.mark.parametrize("protocol", ["websocket", "tcp", "anything/2.0"])
async def test_after_an_upgrade_bytes_pass_both_ways(host: FakeHost, sandbox: str, protocol: str) -> None:
    """Whatever the protocol: also what comes with the 101 itself, and the last words of either side."""
    last_words = asyncio.Event()

    async def upgrade(seen: Seen) -> None:
        assert seen.all("Upgrade") == [protocol]
        assert seen.all("Connection") == ["Upgrade"]
        await seen.say(f"HTTP/1.1 101 Switching\r\nUpgrade: {protocol}\r\nConnection: Upgrade\r\n\r\n".encode() + b"hi")
        while (data := await seen.reader.read(65536)) and not data.endswith(b"\0bye"):
            await seen.say(data[::-1])
        assert data.endswith(b"\0bye")
        last_words.set()

    async with service(upgrade) as port:
        async with client(host) as connected:
            request = get(sandbox, port, "/", f"Upgrade: {protocol}", "Connection: keep-alive, Upgrade")
            await connected.send(request)
            status, headers = await connected.head()
            assert (status, headers["upgrade"], headers["connection"]) == (101, protocol, "Upgrade")
            assert await asyncio.wait_for(connected.reader.readexactly(2), DEADLINE_S) == b"hi"
            await connected.send(b"GET / HTTP/1.1\r\n\r\n")
            assert await asyncio.wait_for(connected.reader.readexactly(18), DEADLINE_S) == b"\n\r\n\r1.1/PTTH / TEG"
            await connected.send(b"\0bye")
        await asyncio.wait_for(last_words.wait(), DEADLINE_S)


async def test_a_tunnel_ends_when_the_service_hangs_up(host: FakeHost, sandbox: str) -> None:
    """With all that it said before."""

    async def upgrade(seen: Seen) -> None:
        await seen.say(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n" + b"y" * MB)

    async with service(upgrade) as port, client(host) as connected:
        await connected.send(get(sandbox, port, "/", "Upgrade: x", "Connection: upgrade"))
        await connected.head()
        assert await connected.ended() == b"y" * MB


async def test_an_upgrade_that_is_refused_is_an_ordinary_answer(host: FakeHost, sandbox: str) -> None:
    """The connection goes on with HTTP."""
    async with service(says(b"HTTP/1.1 426 No\r\nContent-Length: 2\r\n\r\nno")) as port, client(host) as connected:
        for _ in range(2):
            await connected.send(get(sandbox, port, "/", "Upgrade: websocket", "Connection: Upgrade"))
            assert (await connected.answer()).body == b"no"


async def test_big_bodies_pass_in_little_memory(host: FakeHost, sandbox: str) -> None:
    """64 MiB there and back at once; the server holds a few hundred KiB of it."""
    size = 64 * MB

    async def echo(seen: Seen) -> None:
        await seen.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while data := await seen.reader.read(65536):
            await seen.say(data)

    async with service(echo) as port, client(host) as connected:

        async def send() -> None:
            await connected.send(get(sandbox, port, "/", f"Content-Length: {size}", method="POST"))
            for _ in range(size // MB):
                await connected.send(b"x" * MB)

        before = rss_bytes()
        sending = asyncio.create_task(send())
        await connected.head()
        got = 0
        async with asyncio.timeout(4 * DEADLINE_S):
            while got < size:
                got += len(await connected.reader.read(MB))
        await sending
        assert rss_bytes() - before < 24 * MB  # client and service are in this process too


@pytest.mark.parametrize("upgraded", [False, True])
async def test_a_client_that_does_not_read_stops_the_service(host: FakeHost, sandbox: str, upgraded: bool) -> None:
    """Backpressure: what is under way is bounded, in an answer and in a tunnel; then it goes on."""
    said = 0

    async def flood(seen: Seen) -> None:
        nonlocal said
        if upgraded:
            await seen.say(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n")
        else:
            await seen.say(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await seen.say(b"z" * 65536)
            said += 65536

    reader_socket = socket.socket()
    reader_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    reader_socket.setblocking(False)
    loop = asyncio.get_running_loop()
    async with service(flood) as port:
        with reader_socket:
            await loop.sock_connect(reader_socket, ("127.0.0.1", int(host.url.rsplit(":", 1)[1])))
            await loop.sock_sendall(reader_socket, get(sandbox, port, "/", "Upgrade: x", "Connection: upgrade"))
            await until(lambda: said > 0, DEADLINE_S)
            stopped_at = await until_still(lambda: said, DEADLINE_S, "the service is stopped")
            assert stopped_at < 24 * MB  # the kernel's own buffers on the way to the service are the most of it
            got = 0
            while got < stopped_at:
                got += len(await loop.sock_recv(reader_socket, MB))
            await until(lambda: said > stopped_at, DEADLINE_S)


async def test_a_service_that_does_not_read_stops_the_client(host: FakeHost, sandbox: str) -> None:
    """Backpressure the other way, in a body and in a tunnel."""
    go_on = asyncio.Event()

    async def deaf(seen: Seen) -> None:
        if seen.all("Upgrade"):
            await seen.say(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n")
        await go_on.wait()

    async with service(deaf) as port:
        for headers in (["Transfer-Encoding: chunked"], ["Upgrade: x", "Connection: upgrade"]):
            async with client(host) as connected:
                await connected.send(get(sandbox, port, "/", *headers, method="POST"))
                if headers[0].startswith("Upgrade"):
                    await connected.head()
                sent = 0
                block = b"10000\r\n" + b"x" * 65536 + b"\r\n"
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        while sent < 256 * MB:
                            await connected.send(block)
                            sent += len(block)
                assert sent < 64 * MB
        go_on.set()


async def test_nothing_is_left_of_a_thousand_requests(host: FakeHost, sandbox: str) -> None:
    """Also of those whose client or service broke off, and of tunnels."""

    async def half(seen: Seen) -> None:
        await seen.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await seen.reader.read()

    async def upgrade(seen: Seen) -> None:
        await seen.say(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n")
        await seen.reader.read()

    hello = says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    async with service(hello) as whole, service(half) as broken, service(upgrade) as switching:
        await ask(host, get(sandbox, whole))
        before = (await host.at_rest(), open_fds())

        async def one(number: int) -> None:
            async with client(host) as connected:
                port = (whole, broken, switching)[number % 3]
                headers = ("Upgrade: x", "Connection: upgrade") if port == switching else ()
                await connected.send(get(sandbox, port, "/", *headers))
                await connected.head()  # and then it goes away

        for start in range(0, 1000, 100):
            await asyncio.gather(*(one(start + number) for number in range(100)))
        descriptors = before[1] + config.SPARE_SOCKETS  # which may not have been there yet
        await until(lambda: open_fds() <= descriptors and len(asyncio.all_tasks()) <= before[0][0], DEADLINE_S)
