"""The Connect codec: envelopes, timeouts, base64, error bodies."""

from __future__ import annotations

import base64
import json
import struct

import pytest

from sandpty import config
from sandpty.server.dialects.e2b import models
from sandpty.server.dialects.e2b.connect import (
    HTTP_STATUS,
    ConnectError,
    EnvelopeReader,
    decode_bytes,
    decode_keepalive_s,
    decode_message,
    decode_timeout_ms,
    end_envelope,
    envelope,
    error_from,
)
from sandpty.wire.errors import REASONS, SandptyError


def test_an_envelope_is_a_flag_a_big_endian_length_and_the_message() -> None:
    """The layout that connectrpc and connect-es read."""
    assert envelope(b"{}") == b"\x00\x00\x00\x00\x02{}"
    assert envelope(b"x" * 300, 2)[:5] == struct.pack(">BI", 2, 300)


def test_a_stream_ends_with_an_empty_end_envelope_or_with_its_error() -> None:
    """`{}` for success; the error under "error", with a string code."""
    assert end_envelope() == b"\x02\x00\x00\x00\x02{}"
    body = end_envelope(ConnectError("not_found", 'no "x"'))[5:]
    assert json.loads(body) == {"error": {"code": "not_found", "message": 'no "x"'}}


def test_envelopes_are_read_whatever_the_pieces_they_arrive_in() -> None:
    """TCP cuts anywhere, also inside the head."""
    wire = envelope(b'{"a":1}') + envelope(b"") + envelope(b"x" * 1000)
    for size in (1, 2, 3, 7, 64, len(wire)):
        reader = EnvelopeReader()
        found = [message for at in range(0, len(wire), size) for message in reader.feed(wire[at : at + size])]
        reader.finish()
        assert found == [b'{"a":1}', b"", b"x" * 1000]


def test_a_body_that_ends_inside_an_envelope_is_refused() -> None:
    """A truncated request is not a shorter request."""
    reader = EnvelopeReader()
    assert reader.feed(envelope(b"abc")[:-1]) == []
    with pytest.raises(ConnectError) as caught:
        reader.finish()
    assert caught.value.code == "invalid_argument"


def test_a_huge_envelope_is_refused_from_its_head_alone() -> None:
    """Nobody makes the server wait for, or keep, 4 GiB."""
    with pytest.raises(ConnectError) as caught:
        EnvelopeReader().feed(struct.pack(">BI", 0, config.ENVELOPE_BYTES + 1))
    assert caught.value.code == "resource_exhausted"


@pytest.mark.parametrize(("flags", "code"), [(1, "unimplemented"), (2, "invalid_argument"), (0x80, "invalid_argument")])
def test_flags_a_request_may_not_have_are_refused(flags: int, code: str) -> None:
    """Compressed, end-of-stream and unknown flags each get their own answer."""
    with pytest.raises(ConnectError) as caught:
        EnvelopeReader().feed(struct.pack(">BI", flags, 2) + b"{}")
    assert caught.value.code == code


@pytest.mark.parametrize("raw", [b"", b"a", b"ab", b"abc", bytes(range(256)), b"\xff\xfe\xfb"])
def test_input_is_taken_in_every_base64_that_proto3_json_allows(raw: bytes) -> None:
    """Standard or URL alphabet, padded or not."""
    for text in (base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()):
        assert decode_bytes(text) == raw
        assert decode_bytes(text.rstrip("=")) == raw


@pytest.mark.parametrize("text", ["*", "ab c=", "a", "\u00e9\u00e9\u00e9\u00e9", "YW\nJj"])
def test_input_that_is_not_base64_is_refused(text: str) -> None:
    """Garbage is an error, not other bytes in the terminal."""
    with pytest.raises(ConnectError) as caught:
        decode_bytes(text)
    assert caught.value.code == "invalid_argument"


def test_timeouts_are_milliseconds_and_none_means_none() -> None:
    """No header and 0: unlimited. Larger than the agent's field: as long as it can say."""
    assert decode_timeout_ms(None) == 0
    assert decode_timeout_ms("0") == 0
    assert decode_timeout_ms("60000") == 60000
    assert decode_timeout_ms("9999999999") == 0xFFFF_FFFE


@pytest.mark.parametrize("header", ["", "abc", "-1", "1.5", " 1", "1e3", "9" * 11, "\u0661"])
def test_a_timeout_that_is_no_number_of_milliseconds_is_refused(header: str) -> None:
    """A client that says nonsense is told so, rather than given a process without a deadline."""
    with pytest.raises(ConnectError) as caught:
        decode_timeout_ms(header)
    assert caught.value.code == "invalid_argument"


@pytest.mark.parametrize(
    ("header", "interval_s"),
    [("50", 50), (" 3 ", 3), (None, 90), ("", 90), ("x", 90), ("0", 90), ("-5", 90), ("9" * 400, 90)],
)
def test_keepalives_come_as_asked_and_every_90_s_otherwise(header: str | None, interval_s: float) -> None:
    """Absent, unparsable and senseless intervals fall back to E2B's default."""
    assert decode_keepalive_s(header) == interval_s


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"process":5}', b'{"tag":{}}', b"[" * 100_000])
def test_malformed_messages_are_invalid_arguments(body: bytes) -> None:
    """Whatever arrives, decoding raises ConnectError and nothing else."""
    with pytest.raises(ConnectError) as caught:
        decode_message(body, models.StartRequest)
    assert caught.value.code == "invalid_argument"


def test_unknown_fields_are_ignored() -> None:
    """A newer SDK may say more than this server knows."""
    request = decode_message(b'{"process":{"cmd":"x","new":1},"later":[2]}', models.StartRequest)
    assert request.process is not None
    assert request.process.cmd == "x"


def test_every_reason_has_a_connect_code_that_the_protocol_knows() -> None:
    """The error table never names a code that clients would not parse."""
    for reason in REASONS.values():
        error = error_from(SandptyError(reason.name, "message"))
        assert HTTP_STATUS[error.code] == error.status
        assert json.loads(error.body())["message"].startswith("message")
