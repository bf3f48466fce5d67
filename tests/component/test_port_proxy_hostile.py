"""Hostile services, hostile clients, and what the port proxy says itself."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import hmac
import json
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from sandpty import config
from tests.component.fake_host import FakeHost, fake_host, rss_bytes
from tests.component.port_peer import DEADLINE_S, Answer, Seen, ask, client, get, says, service
from tests.waiting import pace, until

NOWHERE = Path("/nonexistent")
MB = 1 << 20
NOT_YET_S = 0.15  # how late a service begins to listen: that is what is tested
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@pytest_asyncio.fixture(scope="module")
async def host() -> AsyncIterator[FakeHost]:
    """One server for this file."""
    async with fake_host() as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def sandbox(host: FakeHost) -> str:
    """A sandbox whose ports are this host's."""
    return await host.sandbox_at(NOWHERE)


def told(answer: Answer) -> dict[str, object]:
    """The JSON body of an answer of the proxy's own."""
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, object] = json.loads(answer.body)
    assert body["code"] == answer.status
    return body


# --- services --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", "closed the connection without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak HTTP"),
        (b"\x15\x03\x01\x00\x02\x02F\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 999 OK\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "in the middle of its headers"),
        (b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nA: b\rSet-Cookie: x\r\n\r\n", "carriage return"),
        (b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nhi", "lengths"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nhi", "lengths"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhi", "lengths"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nhi", "lengths"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nhi" % 10**30, "lengths"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "transfer coding"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer coding"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n", "without being asked"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, "endless interim answers"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n", "more than 256 headers"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * MB, "endless headers"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhi", "malformed chunk"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_a_502(host: FakeHost, sandbox: str, said: bytes, words: str) -> None:
    """With the reason in words; and the client's connection goes on."""
    async with service(says(said)) as port, client(host) as connected:
        for _ in range(2):
            await connected.send(get(sandbox, port))
            answer = await connected.answer()
            assert answer.status == 502
            body = told(answer)
            assert words in str(body["message"])
            assert (body["sandboxId"], body["port"]) == (sandbox, port)


@pytest.mark.parametrize("asked", [("Upgrade: h2c", "Connection: upgrade"), ("Upgrade: websocket",)])
async def test_a_service_cannot_switch_when_it_was_not_asked(
    host: FakeHost, sandbox: str, asked: tuple[str, ...]
) -> None:
    """Its 101 to an upgrade that was not passed on to it is no answer."""
    switching = says(b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n")
    async with service(switching) as port:
        answer = await ask(host, get(sandbox, port, "/", *asked))
    assert (answer.status, "without being asked" in str(told(answer)["message"])) == (502, True)


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nA\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
    ],
)
async def test_half_an_answer_never_looks_whole(host: FakeHost, sandbox: str, said: bytes) -> None:
    """The client's connection breaks too."""
    async with service(says(said)) as port:
        answer = await ask(host, get(sandbox, port))
    assert answer.status == 200
    assert answer.broken
    assert answer.body in (b"half", b"")  # a reset may overtake it


@pytest.mark.parametrize(
    "after",
    [b"zz\r\n", b"-4\r\nhalf\r\n", b"4\r\nhalf!!\r\n", b"8" * 40 + b"\r\n", b"4;" + b"x" * 9000, b"4 4\r\nhalf\r\n"],
)
async def test_chunks_that_lie_break_the_answer(host: FakeHost, sandbox: str, after: bytes) -> None:
    """Where some of it has been passed on already."""
    begun = asyncio.Event()

    async def lie(seen: Seen) -> None:
        await seen.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n")
        await begun.wait()
        await seen.say(after)
        await seen.reader.read()

    async with service(lie) as port, client(host) as connected:
        await connected.send(get(sandbox, port))
        await connected.head()
        assert await asyncio.wait_for(connected.reader.readexactly(9), DEADLINE_S) == b"4\r\ngood\r\n"
        begun.set()
        assert b"0\r\n\r\n" not in await connected.ended()


async def test_endless_headers_are_cut_off_in_little_memory(host: FakeHost, sandbox: str) -> None:
    """A service that pours out headers is hung up on; one that dribbles them is given a minute."""
    hung_up = asyncio.Event()

    async def pour(seen: Seen) -> None:
        try:
            await seen.say(b"HTTP/1.1 200 OK\r\n")
            while True:
                await seen.say(b"X-Endless: " + b"x" * 10_000 + b"\r\n")
        finally:
            hung_up.set()

    before = rss_bytes()
    async with service(pour) as port:
        assert (await ask(host, get(sandbox, port))).status == 502
        await asyncio.wait_for(hung_up.wait(), DEADLINE_S)
    assert rss_bytes() - before < 16 * MB


async def test_a_dribbled_head_is_given_up(host: FakeHost, sandbox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time, with a clear answer; one that only thinks for long is not."""
    monkeypatch.setattr(config, "PORT_HEAD_TIMEOUT_S", 0.2)
    thinking, given_up = asyncio.Event(), asyncio.Event()

    async def dribble(seen: Seen) -> None:
        await seen.say(b"HTTP/1.1 200 OK\r\n")
        await seen.reader.read()

    async def think(seen: Seen) -> None:
        thinking.set()
        await given_up.wait()
        await seen.say(HELLO)

    async with service(dribble) as port, service(think) as slow:
        asked = asyncio.create_task(ask(host, get(sandbox, slow)))
        await asyncio.wait_for(thinking.wait(), DEADLINE_S)
        assert (await ask(host, get(sandbox, port))).status == 502
        given_up.set()
        assert (await asked).body == b"hi"


async def test_a_flood_of_tiny_chunks_holds_nobody_up(host: FakeHost, sandbox: str) -> None:
    """Others' requests are answered meanwhile."""

    async def flood(seen: Seen) -> None:
        await seen.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await seen.say(b"1\r\nx\r\n" * 10_000)

    async with service(flood) as port, service(says(HELLO)) as good, client(host) as connected:
        await connected.send(get(sandbox, port))

        async def swallow() -> None:
            while await connected.reader.read(MB):
                pass

        swallowing = asyncio.create_task(swallow())
        for _ in range(10):
            assert (await ask(host, get(sandbox, good))).body == b"hi"
        swallowing.cancel()
        await asyncio.gather(swallowing, return_exceptions=True)


async def test_a_service_is_left_when_its_client_leaves(host: FakeHost, sandbox: str) -> None:
    """Whether it thinks or talks."""
    left = 0

    async def think(seen: Seen) -> None:
        nonlocal left
        await seen.reader.read()
        left += 1

    async def talk(seen: Seen) -> None:
        nonlocal left
        try:
            await seen.say(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                await seen.say(b"x")
                await pace(0.01, "a service that says one byte after the other")
        finally:
            left += 1

    async with service(think) as silent, service(talk) as talking:
        async with client(host) as one, client(host) as two:
            await one.send(get(sandbox, silent))
            await two.send(get(sandbox, talking))
            await two.head()
        await until(lambda: left == 2, DEADLINE_S)


async def test_a_broken_upload_is_not_taken_for_a_whole_one(host: FakeHost, sandbox: str) -> None:
    """The client breaks off in the middle of its body: the service's connection ends before the body does."""
    got: list[bytes] = []
    begun, ended = asyncio.Event(), asyncio.Event()

    async def read(seen: Seen) -> None:
        begun.set()
        try:
            got.append(await seen.body())
        finally:
            ended.set()

    async with service(read) as port:
        for headers, sent in ((["Content-Length: 100"], b"half"), (["Transfer-Encoding: chunked"], b"4\r\nhalf\r\n")):
            begun.clear()
            ended.clear()
            async with client(host) as connected:
                await connected.send(get(sandbox, port, "/", *headers, method="POST") + sent)
                await asyncio.wait_for(begun.wait(), DEADLINE_S)
            await asyncio.wait_for(ended.wait(), DEADLINE_S)
    assert got == []


async def test_a_sandbox_that_ends_breaks_its_streams(host: FakeHost) -> None:
    """By a reset, as E2B's SDKs expect it; before an answer it is the 502 of a sandbox that is gone."""
    sandbox = await host.sandbox_at(NOWHERE)

    async def begin(seen: Seen) -> None:
        await seen.say(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        await seen.reader.read()

    async def upgrade(seen: Seen) -> None:
        await seen.say(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n")
        await seen.reader.read()

    waiting = asyncio.Event()

    async def think(seen: Seen) -> None:
        waiting.set()
        await seen.reader.read()

    async with (
        service(begin) as port,
        service(upgrade) as switching,
        service(think) as silent,
        client(host) as streaming,
        client(host) as tunnel,
        client(host) as thinking,
    ):
        await streaming.send(get(sandbox, port))
        await streaming.head()
        await tunnel.send(get(sandbox, switching, "/", "Upgrade: x", "Connection: upgrade"))
        await tunnel.head()
        await thinking.send(get(sandbox, silent))
        await asyncio.wait_for(waiting.wait(), DEADLINE_S)
        assert (await host.request("DELETE", f"/v1/sandboxes/{sandbox}"))[0] == 204
        for broken in (streaming, tunnel):
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(broken.reader.read(-1), DEADLINE_S)
        answer = await thinking.answer()
        assert (answer.status, told(answer)["message"]) == (502, "The sandbox was not found")


# --- clients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["POST / HTTP/1.1", "{host}", "Content-Length: 5", "Transfer-Encoding: chunked", "", "0", "", ""],
        ["POST / HTTP/1.1", "{host}", "Transfer-Encoding: chunked", "Content-Length: 5", "", "0", "", ""],
        ["POST / HTTP/1.1", "{host}", "Content-Length: 5", "Content-Length: 6", "", "hello"],
        ["POST / HTTP/1.1", "{host}", "Content-Length: 5, 5", "", "hello"],
        ["POST / HTTP/1.1", "{host}", "Content-Length: +5", "", "hello"],
        ["POST / HTTP/1.1", "{host}", "Content-Length : 5", "", "hello"],
        ["POST / HTTP/1.1", "{host}", "Transfer-Encoding: xchunked", "", "0", "", ""],
        ["POST / HTTP/1.1", "{host}", "Transfer-Encoding: chunked, identity", "", "0", "", ""],
        ["POST / HTTP/1.1", "{host}", "Transfer-Encoding : chunked", "", "0", "", ""],
        ["POST / HTTP/1.1", "{host}", "Transfer-Encoding: chunked", "", "5 x\r\nhello\r\n0", "", ""],
        ["GET / HTTP/1.1", "{host}", "X: a", " Folded: b", "", ""],
        ["GET / HTTP/1.1", "{host}", "X: a\rY: b", "", ""],
        ["GET / HTTP/1.1", "{host}", "X: a\x00b", "", ""],
        ["GET / HTTP/1.1", "{host}", "{host}", "", ""],
        ["GET / HTTP/1.1", "{host}", "Host: other.example", "", ""],
        ["GET /a b HTTP/1.1", "{host}", "", ""],
        ["GET http://elsewhere.example/ HTTP/1.1", "{host}", "", ""],
        ["GET elsewhere HTTP/1.1", "{host}", "", ""],
    ],
)
async def test_a_request_that_can_be_read_in_two_ways_reaches_no_service(
    host: FakeHost, sandbox: str, lines: list[str]
) -> None:
    """Request smuggling: the answer is 400, and the connection ends or is still in step."""
    reached: list[str] = []

    async def note(seen: Seen) -> None:
        reached.append(seen.line)
        await seen.say(HELLO)

    async with service(note) as port, client(host) as connected:
        name = f"Host: {port}-{sandbox}.example.test"
        smuggled = f"GET /smuggled HTTP/1.1\r\n{name}\r\n\r\n"
        await connected.send(("\r\n".join(lines).replace("{host}", name) + smuggled).encode("latin-1"))
        assert (await connected.head())[0] == 400
        await connected.writer.drain()
        connected.writer.write_eof()
        await connected.ended()
    assert [line for line in reached if "smuggled" not in line] == []


async def test_a_target_with_its_host_in_it_is_put_right(host: FakeHost, sandbox: str) -> None:
    """As proxies send it."""
    seen: list[str] = []

    async def note(one: Seen) -> None:
        seen.append(one.line)
        await one.say(HELLO)

    async with service(note) as port:
        name = f"{port}-{sandbox}.example.test"
        for target in (f"http://{name}/x?y", f"https://{name}"):
            assert (await ask(host, get(sandbox, port, target))).status == 200
    assert seen == ["GET /x?y HTTP/1.1", "GET / HTTP/1.1"]


async def test_connections_to_a_sandbox_are_bounded(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than the limit is a 429; other sandboxes do not notice, and room comes back."""
    monkeypatch.setattr(config, "PORT_CONNECTIONS_PER_SANDBOX_MAX", 2)
    sandbox, other = await host.sandbox_at(NOWHERE), await host.sandbox_at(NOWHERE)

    async def upgrade(seen: Seen) -> None:
        await seen.say(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n")
        await seen.reader.read()

    async with service(upgrade) as port, service(says(HELLO)) as good:
        async with client(host) as one, client(host) as two:
            for connected in (one, two):
                await connected.send(get(sandbox, port, "/", "Upgrade: x", "Connection: upgrade"))
                assert (await connected.head())[0] == 101
            answer = await ask(host, get(sandbox, good))
            assert answer.status == 429
            body = told(answer)
            assert body["message"] == "The sandbox has too many concurrent incoming connections (limit: 2)"
            assert body["connectionLimit"] == 2
            assert (await ask(host, get(other, good))).status == 200

        async def room() -> bool:
            return (await ask(host, get(sandbox, good))).status == 200

        await until(room, DEADLINE_S)


@contextlib.contextmanager
def closed_port() -> Iterator[tuple[int, socket.socket]]:
    """A port on which nobody listens, and which nobody else gets; the socket that holds it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1], bound


# --- what the proxy says itself --------------------------------------------------------------------------------------


async def test_a_closed_port_is_said_after_some_attempts(host: FakeHost, sandbox: str) -> None:
    """E2B's body; a page for a person with a browser, in which nothing of the request is markup."""
    with closed_port() as (port, _):
        answer = await ask(host, get(sandbox, port))
        page = await ask(
            host, get(sandbox, port, "/<script>", "Accept: text/html,*/*;q=0.8", "User-Agent: Mozilla/5.0")
        )
    assert answer.status == 502
    assert list(told(answer).items()) == [
        ("sandboxId", sandbox),
        ("message", "The sandbox is running but port is not open"),
        ("port", port),
        ("code", 502),
    ]
    assert page.status == 502
    assert page.headers["content-type"].startswith("text/html")
    assert f"port {port} of {sandbox}".encode() in page.body
    assert b"<script" not in page.body


async def test_a_service_that_starts_meanwhile_is_waited_for(host: FakeHost, sandbox: str) -> None:
    """Nothing listens yet when the request comes."""

    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HELLO)
        writer.close()

    with closed_port() as (port, bound):
        asked = asyncio.create_task(ask(host, get(sandbox, port)))
        await pace(NOT_YET_S, "a service that takes its time to start")
        server = await asyncio.start_server(hello, sock=bound)  # this begins to listen
        try:
            assert (await asked).body == b"hi"
        finally:
            server.close()


async def test_unknown_sandboxes_and_impossible_ports(host: FakeHost, sandbox: str) -> None:
    """The SDKs tell a dead sandbox by this body."""
    answer = await ask(host, get("i" + "z" * 20, 80))
    assert answer.status == 502
    assert told(answer) == {"sandboxId": "i" + "z" * 20, "message": "The sandbox was not found", "code": 502}
    for port in (0, 65536, 99999):
        assert (await ask(host, get(sandbox, port))).status == 400
    # With a client id, as E2B once had it; and in capitals, as host names may be.
    async with service(says(HELLO)) as port:
        for name in (f"{port}-{sandbox}-0a1b2c3d.example.test", f"{port}-{sandbox.upper()}.EXAMPLE.test"):
            assert (await ask(host, f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())).status == 200


async def test_the_control_plane_is_not_served_under_a_sandboxs_name(host: FakeHost, sandbox: str) -> None:
    """49983 is the sandbox's own API, and only that."""
    assert (await ask(host, get(sandbox, 49983, "/health"))).status == 204
    for path in ("/init", "/freeze", "/v2/sandboxes", "/v1/sandboxes", "/healthz"):
        answer = await ask(host, get(sandbox, 49983, path))
        assert answer.status == 404
        assert told(answer)["path"] == path


async def test_private_ports_want_the_token(host: FakeHost) -> None:
    """`allowPublicTraffic=false`: 403 in E2B's words without it; the service does not see it."""
    sandbox = await host.sandbox_at(NOWHERE, ports={"private": True})
    token = hmac.new(f"token-{sandbox}".encode(), b"traffic", hashlib.sha256).hexdigest()
    seen: list[Seen] = []

    async def note(one: Seen) -> None:
        seen.append(one)
        await one.say(HELLO)

    async with service(note) as port:
        for headers, words in (([], "is missing"), (["E2b-Traffic-Access-Token: wrong"], "is invalid")):
            answer = await ask(host, get(sandbox, port, "/", *headers))
            assert answer.status == 403
            assert words in str(told(answer)["message"])
        assert not seen
        assert (await ask(host, get(sandbox, port, "/", f"e2b-traffic-access-token: {token}"))).body == b"hi"
        assert seen[0].all("e2b-traffic-access-token") == []
    assert (await ask(host, get(sandbox, 49983, "/health"))).status == 204


async def test_services_may_be_told_another_host(host: FakeHost) -> None:
    """`maskRequestHost`, with the port in it."""
    sandbox = await host.sandbox_at(NOWHERE, ports={"mask_host": "app.example.com:${PORT}"})
    seen: list[Seen] = []

    async def note(one: Seen) -> None:
        seen.append(one)
        await one.say(HELLO)

    async with service(note) as port:
        assert (await ask(host, get(sandbox, port, "/", "X-Forwarded-Host: front.example"))).status == 200
    assert seen[0].all("Host") == seen[0].all("X-Forwarded-Host") == [f"app.example.com:{port}"]


async def test_services_may_speak_tls(host: FakeHost, tmp_path: Path) -> None:
    """`httpsPorts`: with a certificate that nobody knows; a service that does not is a clear 502."""
    made = await asyncio.create_subprocess_exec(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
        "-subj", "/CN=localhost", "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "crt"),
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await made.wait() == 0
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")

    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HELLO)
        writer.close()

    server = await asyncio.start_server(hello, "127.0.0.1", 0, ssl=context)
    async with service(says(b"plain words\r\n"), read_head=False) as plain:
        port = server.sockets[0].getsockname()[1]
        sandbox = await host.sandbox_at(NOWHERE, ports={"https_ports": [port, plain]})
        for _ in range(3):
            assert (await ask(host, get(sandbox, port))).body == b"hi"
        assert "TLS" in str(told(await ask(host, get(sandbox, plain)))["message"])
    server.close()


async def test_compressed_bodies_are_decoded_for_the_dialects_only(host: FakeHost) -> None:
    """What the port proxy must not touch is unpacked where it is read."""
    body = json.dumps({"templateID": "base", "timeout": 0}).encode()
    for encoding, packed in (
        ("gzip", gzip.compress(body[:9]) + gzip.compress(body[9:])),
        ("deflate", zlib.compress(body)),
    ):
        status, plain = await host.request("POST", "/v2/sandboxes", data=body)
        unpacked = await host.request("POST", "/v2/sandboxes", data=packed, headers={"Content-Encoding": encoding})
        assert unpacked == (status, plain)
    bad = {"gzip": (b"nonsense", 400), "br": (b"x", 415), "deflate": (zlib.compress(b" " * (64 * MB)), 413)}
    for encoding, (data, status) in bad.items():
        answer = await host.request("POST", "/v2/sandboxes", data=data, headers={"Content-Encoding": encoding})
        assert answer[0] == status, answer
