"""What dialects share of files over HTTP: paths, times, ranges, names, codings, multipart."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from sandpty.server.files import ranges
from sandpty.server.files.multipart import MultipartReader, boundary_of
from sandpty.server.files.paths import base_name, expand, printable
from sandpty.server.files.sending import choose_coding, content_disposition
from sandpty.server.files.times import rfc3339
from sandpty.terminal.files import Account
from sandpty.wire.errors import SandptyError

ANN = Account(1000, 1000, "ann", "/home/ann")


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("", "/home/ann"),
        (".", "/home/ann"),
        ("~", "/home/ann"),
        ("~/", "/home/ann"),
        ("~/a/../b", "/home/ann/b"),
        ("a//b/", "/home/ann/a/b"),
        ("../x", "/home/x"),
        ("/etc/../x/", "/etc/../x/"),
        ("a~", "/home/ann/a~"),
        ("\udcff", "/home/ann/\udcff"),
    ],
)
def test_paths_start_from_home(given: str, whole: str) -> None:
    """Absolute ones are the kernel's to resolve."""
    assert expand(given, ANN) == whole


@pytest.mark.parametrize("given", ["~bob", "~bob/x", "a\0b", "x" * 5000, "é" * 2100])
def test_bad_paths_are_refused(given: str) -> None:
    """With a reason of the table."""
    with pytest.raises(SandptyError) as refused:
        expand(given, ANN)
    assert refused.value.reason.name == "bad_path"


def test_a_base_stands_in_for_home() -> None:
    """But not for `~`."""
    assert expand("x", ANN, "/work") == "/work/x"
    assert expand("~/x", ANN, "/work") == "/home/ann/x"


def test_names_fit_into_json() -> None:
    """And the root has one."""
    assert [base_name(path) for path in ("/a/b", "/a/b/", "/")] == ["b", "b", "/"]
    assert printable("a\udcffb") == "a\ufffdb"


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (1_763_678_423_037_413_009, "2025-11-20T22:40:23.037413009Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (-(2**63), "1677-09-21T00:12:43.145224192Z"),
        (-(2**70), "0001-01-01T00:00:00.000000000Z"),
        (2**70, "9999-12-31T23:59:59.000000000Z"),
    ],
)
def test_any_time_is_a_date(nanoseconds: int, text: str) -> None:
    """Nine digits; clamped to what protobuf can say."""
    assert rfc3339(nanoseconds) == text


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-", (0, 10)),
        ("bytes=2-3", (2, 2)),
        ("bytes=-3", (7, 3)),
        ("bytes=9-99", (9, 1)),
        (" bytes = 1 - 1 ", (1, 1)),
        ("bytes=-", None),
        ("bytes=3-2", None),
        ("bytes=1-2,3-4", None),
        ("Bytes", None),
        (None, None),
    ],
)
def test_ranges(header: str | None, span: tuple[int, int] | None) -> None:
    """Of ten bytes."""
    found = ranges.parse_range(header, 10)
    assert (found and (found.offset, found.length)) == span


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)])
def test_ranges_behind_the_end(header: str, size: int) -> None:
    """Nothing to give."""
    with pytest.raises(ranges.UnsatisfiableError):
        ranges.parse_range(header, size)


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, "identity"),
        ("gzip", "gzip"),
        ("GZIP ; q=0.5", "gzip"),
        ("gzip, deflate", "identity"),
        ("identity;q=0", None),
        ("*;q=0", None),
        ("*;q=0, gzip", "gzip"),
        ("gzip;q=x", "gzip"),
        (";;,,=", "identity"),
    ],
)
def test_codings(header: str | None, coding: str | None) -> None:
    """What a client takes."""
    assert choose_coding(header) == coding


def test_a_name_in_a_header_cannot_end_it() -> None:
    """Line ends and quotes are encoded."""
    for name in ("a\r\nSet-Cookie: x", 'a"; b=c', "\udcff", "日本"):
        header = content_disposition(name)
        assert header.isascii()
        assert "\r" not in header
        assert "\n" not in header


async def _read(body: bytes, sizes: list[int]) -> list[tuple[str, str | None, bytes]]:
    async def source() -> AsyncIterator[bytes]:
        rest = body
        for size in sizes:
            yield rest[:size]
            rest = rest[size:]
        yield rest

    reader = MultipartReader(source(), b"b0undary")
    found = []
    async for part in reader:
        found.append((part.name, part.file_name, b"".join([piece async for piece in reader.pieces()])))
    return found


def _form(parts: list[tuple[bytes, bytes]]) -> bytes:
    heads = b"".join(b"--b0undary\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts)
    return b"preamble\r\n" + heads + b"--b0undary--\r\nepilogue"


async def test_a_form_is_read_however_it_is_cut() -> None:
    """Content that almost holds the boundary, and every kind of name."""
    chance = random.Random(4)
    parts = [
        (b'Content-Disposition: form-data; name="file"; filename="/a/b c"', b"--b0undar\r\n--b0undarx\r\n\r\n"),
        (b"content-disposition:form-data;filename=x;name=file", b""),
        (b'X-Other: 1\r\nContent-Disposition: form-data; filename="q\\"\\\\\\n%22"; name="f"', b"\r\n" * 9),
        (b"X-None: 1", b"x" * 3000),
        (b'Content-Disposition: form-data; name="file"; filename="\xff"', b"\r"),
    ]
    want = [
        ("file", "/a/b c", parts[0][1]),
        ("file", "x", b""),
        ("f", 'q"\\\\n%22', parts[2][1]),
        ("", None, parts[3][1]),
        ("file", "\udcff", b"\r"),
    ]
    body = _form(parts)
    for _ in range(200):
        sizes = [chance.choice((0, 1, 2, 3, 10, 100, 1000)) for _ in range(chance.randrange(200))]
        assert await _read(body, sizes) == want


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b0undary",
        b"--b0undary\r\n",
        b"--b0undary\r\nA: b\r\n\r\ncontent",
        b"--b0undary junk\r\n\r\n\r\n--b0undary--",
    ],
)
async def test_half_a_form_is_refused(body: bytes) -> None:
    """Rather than taken for a whole one."""
    with pytest.raises(SandptyError) as refused:
        await _read(body, [])
    assert refused.value.reason.name == "bad_request"


def test_boundaries() -> None:
    """Quoted or not, and bounded."""
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"
    assert boundary_of("multipart/form-data; charset=x; boundary=ab") == b"ab"
    for bad in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 999):
        with pytest.raises(SandptyError):
            boundary_of(bad)
