"""A client's HTTP/1 requests, read and written anew, so that no server understands them otherwise than we did.

Only requests for one host pass on one connection. What would leave HTTP/1 (CONNECT, `Upgrade: h2c`) does not pass;
a WebSocket does, when it is what the connection begins with. Headers of the policy replace the client's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import h11

from sandpty import config

# A method, then anything that is no control character; other protocols show within a few bytes that they are another.
_REQUEST_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]*(?:[ \t][\t\r\x20-\x7e\x80-\xff]*)?")
_OF_CONNECTION = (b"close", b"keep-alive", b"upgrade")
_Fields = list[tuple[bytes, bytes]]


class RequestError(Exception):
    """Not to be passed on."""


def may_be_http(data: bytes | bytearray) -> bool | None:
    """Whether a connection begins with a request; None: more bytes are needed to tell."""
    line, newline, _ = data.lstrip(b"\r\n \t").partition(b"\n")
    if b"HTTP/" in line.upper():
        return True
    return False if newline or _REQUEST_LINE.fullmatch(line) is None else None


class Requests:
    """`feed` it what the client says; what it returns goes to the server of `host`. `headers_of`: what each request
    to a host is given."""

    def __init__(
        self, allowed: Callable[[str], bool], headers_of: Callable[[str], Mapping[str, str]] = lambda _: {}
    ) -> None:
        self._allowed = allowed
        self._headers_of = headers_of
        self._reader = h11.Connection(h11.SERVER, max_incomplete_event_size=config.EGRESS_OPENING_BYTES)
        self._chunked = False
        self._first = True
        self._asked_web_socket = False
        self.host = ""  # of the first request
        self.upgrading = False  # nothing more is taken: the server decides what the connection speaks from here

    def feed(self, data: bytes) -> bytes:
        """Raises RequestError."""
        out = bytearray()
        try:
            if data:
                self._reader.receive_data(data)
            while not self.upgrading:
                event = self._reader.next_event()
                if event is h11.NEED_DATA:
                    break
                if event is h11.PAUSED:
                    self._next_request()
                    if not self._reader.trailing_data[0]:
                        break
                elif isinstance(event, h11.Request):
                    out += self._request(event)
                elif isinstance(event, h11.Data):
                    out += self._framed(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    out += b"0\r\n\r\n" if self._chunked else b""
                    self.upgrading = self._asked_web_socket
                else:
                    break
        except h11.RemoteProtocolError as error:
            raise RequestError(str(error)) from error
        return bytes(out)

    @property
    def rest(self) -> bytes:
        """What was said after the request that asks for another protocol."""
        return self._reader.trailing_data[0]

    def _next_request(self) -> None:
        rest, _ = self._reader.trailing_data
        self._reader = h11.Connection(h11.SERVER, max_incomplete_event_size=config.EGRESS_OPENING_BYTES)
        if rest:
            self._reader.receive_data(rest)

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data

    def _request(self, request: h11.Request) -> bytes:
        # An absolute address would count more than Host; what follows a CONNECT may be anything.
        if request.method == b"CONNECT" or not request.target.startswith((b"/", b"*")):
            raise RequestError("the request's target is not a path")
        if request.http_version not in (b"1.0", b"1.1"):
            raise RequestError("not HTTP/1")
        headers: _Fields = list(request.headers.raw_items())
        given = {name.lower(): value for name, value in headers}
        host = _host_of(given.get(b"host", b""))
        if not self._allowed(host) or (self.host and host != self.host):
            raise RequestError(f"host {host[:253]!r} is not allowed here")
        self.host = host
        self._chunked = b"transfer-encoding" in given
        if self._chunked and request.http_version == b"1.0":
            raise RequestError("HTTP/1.0 knows no chunks: the server may find another end of the request than we do")
        upgrades = [value.lower() for name, value in headers if name.lower() == b"upgrade"]
        web_socket = self._asked_web_socket = self._first and upgrades == [b"websocket"]
        self._first = False
        dropped = {b"http2-settings"} | ({b"content-length"} if self._chunked else set())
        if upgrades and not web_socket:
            dropped |= {b"upgrade", b"connection"}
            # h11 would hold what follows for the new protocol's.
            headers = [(name, value) for name, value in headers if name.lower() not in dropped]
            self._reader = _without_upgrade(self._reader, request)
        headers = _given([each for each in headers if each[0].lower() not in dropped], self._headers_of(host))
        lines = [b"%b %b HTTP/%b" % (request.method, request.target, request.http_version)]
        lines += [b"%b: %b" % (name, value) for name, value in headers]
        return b"\r\n".join(lines) + b"\r\n\r\n"


def _given(headers: _Fields, added: Mapping[str, str]) -> _Fields:
    """With the policy's headers, and nothing that a server could hold for them or that makes a proxy take them out."""
    if not added:
        return headers
    names = {_plain(name.encode("ascii")) for name in added}
    kept: _Fields = []
    for name, value in headers:
        if name.lower() == b"connection":
            words = [word.strip() for word in value.split(b",")]
            value = b", ".join(word for word in words if word.lower() in _OF_CONNECTION)  # noqa: PLW2901
            if not value:
                continue
        if _plain(name) not in names:
            kept.append((name, value))
    return kept + [(name.encode("ascii"), value.encode()) for name, value in added.items()]


def _plain(name: bytes) -> bytes:
    """As CGI and its heirs see it: to them X_Key is X-Key."""
    return name.lower().replace(b"_", b"-")


def _without_upgrade(reader: h11.Connection, request: h11.Request) -> h11.Connection:
    """A reader that stands after the same head, of a request that asked for no other protocol."""
    headers = [
        (name, value) for name, value in request.headers.raw_items() if name.lower() not in (b"upgrade", b"connection")
    ]
    again = h11.Connection(h11.SERVER, max_incomplete_event_size=config.EGRESS_OPENING_BYTES)
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    again.receive_data(b"%b %b HTTP/1.1\r\n%b\r\n" % (request.method, request.target, head) + reader.trailing_data[0])
    again.next_event()
    return again


def _host_of(value: bytes) -> str:
    return value.decode("latin-1").strip().lower().partition(":")[0].removesuffix(".")
