"""Heads of HTTP/1.1 messages: strict in what is believed of a guest, and nothing is passed on that was not parsed.

Pure: bytes in, bytes out. Header values stay bytes; they are never decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

Header = tuple[bytes, bytes]

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")
# RFC 9110 7.6.1: between two neighbours only. Framing is ours on each side.
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)


class BadHeadError(ValueError):
    """What came is no head of an HTTP message; the message says why, in words for a person."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """`length`: of the body by Content-Length; None: chunked, or up to the end of the connection."""

    status: int
    reason: bytes
    headers: list[Header]  # as they came, all of them
    length: int | None
    chunked: bool

    @property
    def upgrades(self) -> bool:
        return self.status == 101


def parse_response(head: bytes, headers_max: int) -> ResponseHead:
    """A head without its empty line. Lines may end in LF alone, as those of small scripts do. Raises BadHeadError."""
    lines = head.replace(b"\r\n", b"\n").split(b"\n")
    if b"\r" in head.replace(b"\r\n", b""):
        raise BadHeadError("sent a stray carriage return")
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise BadHeadError("does not speak HTTP")
    if len(lines) - 1 > headers_max:
        raise BadHeadError(f"sent more than {headers_max} headers")
    headers = [_header(line) for line in lines[1:]]
    chunked = _is_chunked(headers)
    length = None if chunked else _length(headers)
    return ResponseHead(int(match[2]), match[3] or b"", headers, length, chunked)


def _header(line: bytes) -> Header:
    name, colon, value = line.partition(b":")
    value = value.strip(b" \t")
    if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        raise BadHeadError("sent a malformed header")
    return name, value


def _is_chunked(headers: list[Header]) -> bool:
    codings = [part.strip().lower() for name, value in headers if name.lower() == b"transfer-encoding"
               for part in value.split(b",")]  # fmt: skip
    if codings in ([], [b"identity"]):
        return False
    if codings != [b"chunked"]:
        raise BadHeadError("uses a transfer coding other than chunked")
    return True


def _length(headers: list[Header]) -> int | None:
    lengths = {part.strip() for name, value in headers if name.lower() == b"content-length"
               for part in value.split(b",")}  # fmt: skip
    if not lengths:
        return None
    (length, *others) = lengths
    if others or not _LENGTH.fullmatch(length):
        raise BadHeadError("sent contradictory or malformed lengths")
    return int(length)


def end_to_end(headers: Iterable[Header], *, without: frozenset[bytes] = frozenset()) -> list[Header]:
    """What may be passed on: not what is for the neighbour alone (also by its Connection header), nor `without`."""
    headers = list(headers)
    named = {
        part.strip().lower() for name, value in headers if name.lower() == b"connection" for part in value.split(b",")
    }
    dropped = _HOP_BY_HOP | named | without
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def format_request(method: str, target: bytes, headers: Iterable[Header]) -> bytes:
    """Raises BadHeadError for a target or a header that would say something else on the wire."""
    if not _TARGET.fullmatch(target) or not _NAME.fullmatch(method.encode()):
        raise BadHeadError("the request's target is malformed")
    return b"%s %s HTTP/1.1\r\n%s\r\n" % (method.encode(), target, _lines(headers))


def format_response(status: int, reason: bytes, headers: Iterable[Header]) -> bytes:
    return b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, reason, _lines(headers))


def _lines(headers: Iterable[Header]) -> bytes:
    lines = []
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadHeadError("a header is malformed")
        lines.append(b"%s: %s\r\n" % (name, value))
    return b"".join(lines)
