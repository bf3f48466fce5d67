"""The supervisor's messages: bounded, cut right, strict about what a server may ask."""

from __future__ import annotations

import random
import struct

import msgspec
import pytest

from sandpty.wire import verbs
from sandpty.wire.verbs import MAX_MESSAGE_BYTES, CreateArgs, Failure, Limits, Message, MessageReader, Request, Sandbox

SANDBOX = Sandbox(
    id="i" + "0" * 20,
    template="base",
    state="running",
    tier="crun",
    started_at=1.5,
    end_at=2.5,
    on_timeout="kill",
    limits=Limits(),
    internet=True,
    owner="me",
    annotations={"deep": [{"er": None}], "text": "ä\u0000"},
    socket="/run/agent.sock",
    boot_id="b",
    ended="timeout",
)
MESSAGES = [
    Message(id=1, ok=msgspec.Raw(b'{"sandboxes":[]}')),
    Message(id=2, error=Failure("limit", "full")),
    Message(event="ended", sandbox=SANDBOX, reason="timeout"),
]
STREAM = b"".join(verbs.pack(message) for message in MESSAGES)


def _decoded(bodies: list[bytes]) -> list[Message]:
    return [msgspec.json.decode(body, type=Message) for body in bodies]


def test_messages_survive_however_the_stream_is_cut() -> None:
    """Whole, byte by byte and in random pieces: the same messages in the same order."""
    assert _decoded(MessageReader().feed(STREAM)) == MESSAGES
    rng = random.Random(3)
    for most in (1, 2, 3, 7, 50):
        reader, bodies, at = MessageReader(), [], 0
        while at < len(STREAM):
            size = rng.randint(1, most)
            bodies += reader.feed(STREAM[at : at + size])
            at += size
        assert _decoded(bodies) == MESSAGES


@pytest.mark.parametrize("length", [0, MAX_MESSAGE_BYTES + 1, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_its_bytes_come(length: int) -> None:
    """Four bytes are enough to refuse."""
    with pytest.raises(ValueError, match="out of bounds"):
        MessageReader().feed(struct.pack("<I", length))


def test_a_message_over_the_limit_is_not_made() -> None:
    """The largest passes, one byte more is ValueError at the sender."""
    empty = len(msgspec.json.encode(Failure("", "")))
    assert verbs.pack(Failure("", "x" * (MAX_MESSAGE_BYTES - empty)))
    with pytest.raises(ValueError, match="over the limit"):
        verbs.pack(Failure("", "x" * (MAX_MESSAGE_BYTES - empty + 1)))


def test_a_request_keeps_its_arguments_raw() -> None:
    """Arguments are decoded by the verb they are for, after the verb is known."""
    packed = verbs.pack(Request(7, "kill", msgspec.Raw(b'{"id":"i1"}')))
    (body,) = MessageReader().feed(packed)
    request = msgspec.json.decode(body, type=Request)
    assert (request.id, request.verb, bytes(request.args)) == (7, "kill", b'{"id":"i1"}')


@pytest.mark.parametrize(
    "raw",
    [
        b'{"template":"base"}',
        b'{"template":"base","end_at":1,"run":"rm -rf /"}',
        b'{"template":"base","end_at":1,"on_timeout":"explode"}',
        b'{"template":"base","end_at":"soon"}',
        b'{"template":"base","end_at":1,"limits":{"memory_mb":1,"gpus":8}}',
        b"[]",
    ],
)
def test_create_takes_only_what_it_knows(raw: bytes) -> None:
    """A missing, unknown or mistyped argument is refused, never ignored: this is the border to root."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(raw, type=CreateArgs)
