"""What the egress process reads of a sandbox's connections and of name servers' answers: hostile, all of it."""

from __future__ import annotations

import contextlib
import random
import ssl
from collections.abc import Callable

import dns.edns
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from sandpty import config
from sandpty.egress.client_hello import HelloError, HelloReader
from sandpty.egress.guests import Guest, Guests
from sandpty.egress.http_requests import RequestError, Requests, may_be_http
from sandpty.egress.names import Names
from sandpty.egress.quotas import Quota
from sandpty.egress.resolver import Resolver, found_in
from sandpty.wire.verbs import GuestRules

# --- TLS --------------------------------------------------------------------------------------------------------------


def hello(name: str | None) -> bytes:
    """A real ClientHello."""
    context = ssl.create_default_context()
    context.check_hostname = False
    outward = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outward, server_hostname=name).do_handshake()
    return outward.read()


def server_name(data: bytes) -> str | None:
    """What is read of it at once."""
    return HelloReader().feed(data)


def in_records(message: bytes, size: int) -> bytes:
    """The same handshake message, spread over records of `size` bytes."""
    body = message[5:]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


@pytest.mark.parametrize("size", [1, 7, 100, 16384])
def test_the_server_name_is_read_however_it_is_cut(size: int) -> None:
    """Into records, and byte by byte; before the end nothing is decided."""
    data = in_records(hello("Example.COM"), size)
    assert server_name(data) == "example.com"
    reader = HelloReader()
    said = [reader.feed(data[at : at + 1]) for at in range(len(data))]
    assert said[-1] == "example.com"
    assert not any(said[:-1])


def test_a_hello_without_one_single_name_is_refused() -> None:
    """None, two, or another kind of message."""
    with pytest.raises(HelloError):
        server_name(hello(None))
    data = hello("good.test")
    twice = data.replace(b"good.test", b"good.tesT", 1)
    assert server_name(twice) == "good.test"
    for bad in (b"\x17" + data[1:], b"\x16\x02" + data[2:], data[:5] + b"\x02" + data[6:], b"\x16\x03\x01\x00\x00"):
        with pytest.raises(HelloError):
            server_name(bad)


def test_two_names_in_a_hello_are_refused() -> None:
    """One would be for us and the other for the server."""
    names = b"\x00\x00\x09good.test" + b"\x00\x00\x09evil.test"
    extension = b"\x00\x00" + (len(names) + 2).to_bytes(2, "big") + len(names).to_bytes(2, "big") + names
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += len(extension).to_bytes(2, "big") + extension
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    with pytest.raises(HelloError, match="single"):
        server_name(b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message)


def test_damaged_hellos_raise_nothing_else() -> None:
    """Ten thousand of them."""
    chance = random.Random(7)
    data = hello("good.test")
    for _ in range(10_000):
        damaged = bytearray(data[: chance.randrange(1, len(data) + 1)])
        for _ in range(chance.randrange(4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            name = server_name(bytes(damaged))
        except HelloError:
            continue
        assert name is None or isinstance(name, str)


# --- HTTP -------------------------------------------------------------------------------------------------------------


def fed(data: bytes, size: int | None = None) -> bytes:
    """What passes of a client's bytes when good.test and other.test are allowed."""
    requests = Requests(lambda host: host in ("good.test", "other.test"))
    pieces = [data] if size is None else [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(requests.feed(piece) for piece in pieces)


@pytest.mark.parametrize("size", [None, 1, 5])
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: good.test:80\r\nX-Odd-Case: 1\r\n\r\n",
        b"GET /1 HTTP/1.1\r\nHost: good.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: GOOD.test\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 5\r\n\r\nhello"
        b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n",
    ],
)
def test_plain_requests_pass_as_they_were(data: bytes, size: int | None) -> None:
    """Byte for byte, however they arrive."""
    assert fed(data, size) == data


def test_a_chunked_body_is_framed_anew() -> None:
    """With a length beside it, only one of the two is left."""
    data = b"POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"
    data += b"5;x=y\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: good.test\r\n\r\n"
    passed = fed(data)
    assert b"5\r\nhello\r\n0\r\n\r\nGET /" in passed
    assert b"Content-Length" not in passed


def test_only_a_web_socket_may_leave_http() -> None:
    """Another upgrade is taken out, and what follows is a request again."""
    web_socket = b"GET / HTTP/1.1\r\nHost: good.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    requests = Requests(lambda host: host == "good.test")
    assert requests.feed(web_socket + b"\x81\x00") == web_socket
    assert (requests.upgrading, requests.rest) == (True, b"\x81\x00")
    other = web_socket.replace(b"websocket", b"h2c") + b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"
    with pytest.raises(RequestError, match=r"evil\.test"):
        fed(other)
    assert b"Upgrade" not in fed(web_socket.replace(b"websocket", b"h2c"))
    second = b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n" + web_socket
    assert b"Upgrade" not in fed(second)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\nGET / HTTP/1.1\r\nHost: other.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.test@evil.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.test\r\nHost: other.test\r\n\r\n",
        b"GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"CONNECT good.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"CONNECT /evil.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"GET / HTTP/3.0\r\nHost: good.test\r\n\r\n",
        b"\x00\x01\x02 / HTTP/1.1\r\nHost: good.test\r\n\r\n",
    ],
)
def test_what_could_be_understood_otherwise_does_not_pass(data: bytes) -> None:
    """Refused, at the first doubt."""
    with pytest.raises(RequestError):
        fed(data)


def test_a_head_without_end_is_refused() -> None:
    """Long before it fills our memory."""
    with pytest.raises(RequestError):
        fed(b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000, 4096)


def test_damaged_requests_raise_nothing_else() -> None:
    """And never let another host pass."""
    chance = random.Random(11)
    data = b"POST /x HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" * 2
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(chance.randrange(1, 5)):
            damaged[chance.randrange(len(damaged))] = chance.choice(b"\r\n :;,\x00a0\xff")
        try:
            passed = fed(bytes(damaged), chance.randrange(1, 50))
        except RequestError:
            continue
        for line in passed.split(b"\r\n"):
            assert not line.lower().startswith(b"host:") or line.lower().strip().startswith(b"host: good.test")


def test_requests_are_told_from_other_protocols() -> None:
    """As soon as it can be known, and not by their port."""
    assert may_be_http(b"GET / HTTP/1.1\r\n") is True
    assert may_be_http(b"\r\n get\t/\thttp/1.1\r\n") is True
    assert may_be_http(b"GET / HT") is None
    assert may_be_http(b"GET /" + b"a" * 60_000) is None, "servers take lines that long"
    assert may_be_http(b"GET /\xe9") is None, "and bytes that are no text"
    assert may_be_http(b'{"jsonrpc"') is False
    assert may_be_http(b"SSH-2.0-OpenSSH\r\n") is False
    assert may_be_http(b"\x00\x00\x00\x08\x04\xd2\x16/") is False


# --- names ------------------------------------------------------------------------------------------------------------


def answer(*lines: str) -> dns.message.Message:
    """A name server's answer about good.test with these records."""
    reply = dns.message.make_response(dns.message.make_query("good.test", "A"))
    reply.answer = [dns.rrset.from_text(*line.split(" ")) for line in lines]
    return reply


def test_an_answer_is_the_chain_from_the_name_and_nothing_beside_it() -> None:
    """Records of other names are not taken, however true."""
    found = found_in(
        answer("good.test. 60 IN CNAME b.test.", "b.test. 30 IN A 203.0.113.1", "evil.test. 60 IN A 203.0.113.2"),
        "good.test",
        dns.rdatatype.A,
    )
    assert found.addresses == ("203.0.113.1",)
    assert [str(each.name) for each in found.records] == ["good.test.", "b.test."]
    assert found.ttl_s == 30


def test_addresses_that_are_never_open_are_not_told() -> None:
    """Nor counted among what the sandbox may dial."""
    found = found_in(
        answer(*(f"good.test. 60 IN A {address}" for address in ("127.0.0.1",)), "x.test. 1 IN A 1.1.1.1"),
        "good.test",
        dns.rdatatype.A,
    )
    assert (found.addresses, found.records, found.hidden) == ((), (), True)


def test_circles_and_crowds_have_an_end() -> None:
    """Aliases that lead to themselves; thousands of addresses; a TTL of a century."""
    circle = answer("good.test. 60 IN CNAME b.test.", "b.test. 60 IN CNAME good.test.")
    assert found_in(circle, "good.test", dns.rdatatype.A).addresses == ()
    crowd = answer()
    crowd.answer = [
        dns.rrset.from_text_list("good.test.", 2**31 - 1, "IN", "A", [f"1.1.{n // 250}.{n % 250}" for n in range(1000)])
    ]
    found = found_in(crowd, "good.test", dns.rdatatype.A)
    assert len(found.addresses) == 64
    assert found.ttl_s == 300
    nothing = answer()
    nothing.set_rcode(dns.rcode.NXDOMAIN)
    assert found_in(nothing, "good.test", dns.rdatatype.A).rcode == dns.rcode.NXDOMAIN


async def test_damaged_questions_get_an_answer_or_none() -> None:
    """And break nothing: a thousand of them, with nobody to ask."""
    guests = Guests()
    guests.set(GuestRules(address="10.0.0.1", names=("good.test",)))
    guest = guests.get("10.0.0.1")
    assert guest is not None
    names = Names(guests, Resolver())
    chance = random.Random(3)
    option = dns.edns.GenericOption(10, b"cookie12")
    data = dns.message.make_query("good.test", "A", use_edns=0, options=[option]).to_wire()
    for _ in range(1000):
        damaged = bytearray(data[: chance.randrange(len(data) + 1)] if chance.random() < 0.3 else data)
        for _ in range(chance.randrange(6)):
            if damaged:
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        said = await names.answer(bytes(damaged), guest, udp=True)
        assert said is None or len(said) <= 1232
    whole = await names.answer(data, guest, udp=True)
    assert whole is not None
    assert dns.message.from_wire(whole).rcode() == dns.rcode.SERVFAIL


def test_a_change_of_rules_closes_what_they_do_not_allow() -> None:
    """Addresses that stood for a name, and connections; what is allowed still stays."""
    guests = Guests()
    guests.set(GuestRules(address="10.0.0.1", names=("good.test", "*.wild.test")))
    guest = guests.get("10.0.0.1")
    assert guest is not None
    guest.reach("good.test", ["1.1.1.1"], 60)
    guest.reach("a.wild.test", ["2.2.2.2"], 60)
    cut: list[str] = []
    with guest.opening(lambda: cut.append("good")) as one, guest.opening(lambda: cut.append("wild")) as two:
        one.name, two.name = "good.test", "a.wild.test"
        guests.set(GuestRules(address="10.0.0.1", names=("*.wild.test",)))
        assert cut == ["good"]
        assert (guest.name_of("1.1.1.1"), guest.name_of("2.2.2.2")) == (None, "a.wild.test")
        guests.forget("10.0.0.1")
        assert sorted(cut) == ["good", "good", "wild"]
        assert guest.name_of("2.2.2.2") is None
    assert guests.get("10.0.0.1") is None


@pytest.mark.parametrize(
    "name", ["", "wild.test", "a..wild.test", "evil.test/.wild.test", "\xe9.wild.test", "a b.wild.test"]
)
def test_a_wildcard_allows_names_and_nothing_else(name: str) -> None:
    """Whatever stands in a Host or a ClientHello, and however much of it."""
    guests = Guests()
    guests.set(GuestRules(address="10.0.0.1", names=("*.wild.test",)))
    guest = guests.get("10.0.0.1")
    assert guest is not None
    assert guest.allows("a.wild.test")
    assert not guest.allows(name)
    assert not guest.allows("a." * 150 + "wild.test")


@pytest.mark.parametrize(
    ("of", "own", "most", "all_of_them"),
    [
        (
            lambda guest: guest.connections,
            config.EGRESS_OWN_PER_GUEST,
            config.EGRESS_CONNECTIONS_PER_GUEST,
            config.EGRESS_CONNECTIONS_MAX,
        ),
        (
            lambda guest: guest.inspected,
            config.EGRESS_INSPECTED_OWN_PER_GUEST,
            config.EGRESS_INSPECTED_PER_GUEST,
            config.EGRESS_INSPECTED_MAX,
        ),
    ],
    ids=["connections", "those looked into"],
)
def test_nobody_takes_what_is_left_for_the_others(
    of: Callable[[Guest], Quota], own: int, most: int, all_of_them: int
) -> None:
    """However many sandboxes take all they can, the next one still gets some; what is closed is given back."""
    guests = Guests()
    taken: list[int] = []
    with contextlib.ExitStack() as stack:
        for number in range(64):
            address = f"10.0.0.{number}"
            guests.set(GuestRules(address=address))
            guest = guests.get(address)
            assert guest is not None
            quota = of(guest)
            while not quota.full:
                stack.enter_context(quota.taking())
            taken.append(quota.taken)
    assert taken[0] == most
    assert min(taken) == own
    assert sum(taken) <= all_of_them + 64 * own
    assert not quota.full


def test_certificates_without_end_are_not_made() -> None:
    """For one sandbox that names host after host below its wildcard."""
    guests = Guests()
    guests.set(GuestRules(address="10.0.0.1", headers={"*.wild.test": {"X": "y"}}))
    guest = guests.get("10.0.0.1")
    assert guest is not None
    granted = sum(guest.may_have_leaf() for _ in range(10_000))
    assert config.EGRESS_LEAVES_PER_S <= granted < 10_000
