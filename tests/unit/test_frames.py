"""The agent protocol's frames: what is encoded, what is decoded, and what is refused."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable

import pytest

from sandpty.wire import frames
from sandpty.wire.frames import (
    MAX_FRAME_BYTES,
    MAX_OUTPUT_BYTES,
    NO_OFFSET,
    AgentError,
    Attach,
    Attached,
    Cursor,
    Done,
    Exit,
    ExitReason,
    FrameError,
    FrameReader,
    FrameType,
    From,
    FromAgent,
    Gap,
    Hello,
    InputAck,
    Output,
    Pong,
    ProcessFlags,
    ProcessInfo,
    Resized,
    Selector,
    Start,
    Started,
    StartFlags,
    Target,
)


def _text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def _texts(*values: bytes) -> bytes:
    return struct.pack("<I", len(values)) + b"".join(_text(value) for value in values)


PROCESS_HEAD = struct.pack("<QIBHHQQQQBBBBI", 7, 42, 0b0101, 80, 24, 10, 99, 1_700_000_000_000, 0, 0, 3, 0, 0, 2)
PROCESS = PROCESS_HEAD + _text(b"user") + _text(b"/home/user") + _text(b"t") + _texts(b"ls", b"-l") + _texts(b"A=1=2")
ENDED_HEAD = struct.pack("<QIBHHQQQQBBBBI", 7, 42, 0, 0, 0, 10, 99, 5, 6, 1, 9, 3, 1, 0)

# Written down byte by byte from docs/reference/agent-protocol.md, not with the encoder under test.
FROM_AGENT: list[tuple[FrameType, bytes, FromAgent]] = [
    (FrameType.AGENT_HELLO, b"\x01\x00\x05\x00\x00\x00\x10\0\0\0\0\0\0\0", Hello(1, 5, 16)),
    (FrameType.STARTED, b"\x07\0\0\0\0\0\0\0\x2a\0\0\0", Started(7, 42)),
    (
        FrameType.ATTACHED,
        b"\x07\0\0\0\0\0\0\0\x2a\0\0\0\x01\0\0\0\0\0\0\0\x00\x01\0\0\0\0\0\0\x50\0\x18\0\x0b\x03\0\0\0\0\0\0\0",
        Attached(7, 42, 1, 256, 80, 24, ProcessFlags.PTY | ProcessFlags.RUNNING | ProcessFlags.MAY_WRITE, 3),
    ),
    (FrameType.OUTPUT, b"\x02\x04\0\0\0\0\0\0\0\x00\xff\n", Output(2, 4, b"\x00\xff\n")),
    (FrameType.GAP, b"\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0", Gap(1, 5)),
    (FrameType.RESIZED, b"\x50\x00\x18\x00", Resized(80, 24)),
    (
        FrameType.EXIT,
        b"\x01\x09\x03\x01\x00\x02\0\0\0\0\0\0",
        Exit(True, 9, ExitReason.KILLED, True, 512),
    ),
    (FrameType.INPUT_ACK, b"\xff\xff\xff\xff\xff\xff\xff\x7f", InputAck(2**63 - 1)),
    (FrameType.PONG, b"\xff\xff\xff\xff\xff\xff\xff\xff", Pong(2**64 - 1)),
    (FrameType.DONE, b"", Done()),
    (
        FrameType.PROCESS,
        PROCESS,
        ProcessInfo(
            process=7,
            pid=42,
            flags=ProcessFlags.PTY | ProcessFlags.STDIN_OPEN,
            cols=80,
            rows=24,
            start=10,
            end=99,
            started_ms=1_700_000_000_000,
            ended_ms=0,
            exit=Exit(False, 3, ExitReason.EXITED, False, 99),
            attachments=2,
            user="user",
            cwd="/home/user",
            tag="t",
            argv=("ls", "-l"),
            env={"A": "1=2"},
        ),
    ),
    (
        FrameType.PROCESS,
        ENDED_HEAD + _text(b"") * 3 + _texts() * 2,
        ProcessInfo(
            7,
            42,
            ProcessFlags(0),
            0,
            0,
            10,
            99,
            5,
            6,
            Exit(True, 9, ExitReason.KILLED, True, 99),
            0,
            "",
            "",
            "",
            (),
            {},
        ),
    ),
    (FrameType.ERROR, b"\x06\x00" + _text(b"No such file"), AgentError(6, "No such file")),
]
BY_NAME = [pytest.param(*item, id=f"{item[0].name}-{index}") for index, item in enumerate(FROM_AGENT)]
SHOWN_TO_CLIENTS = (Output, Attached, Gap, Resized, Exit, InputAck, Pong, AgentError)


@pytest.mark.parametrize(("kind", "payload", "value"), BY_NAME)
def test_every_frame_of_an_agent_is_read_as_the_reference_writes_it(
    kind: FrameType, payload: bytes, value: FromAgent
) -> None:
    """The bytes of docs/reference/agent-protocol.md become the value they stand for."""
    assert frames.decode(kind, payload) == value
    assert frames.decode(kind, memoryview(payload)) == value


@pytest.mark.parametrize(("kind", "payload", "value"), BY_NAME)
def test_a_frame_cut_anywhere_is_refused(kind: FrameType, payload: bytes, value: FromAgent) -> None:
    """Every proper prefix is FrameError: no field is ever read beyond the bytes that came."""
    for size in range(len(payload)):
        if kind is FrameType.OUTPUT and size > 9:
            assert frames.decode(kind, payload[:size]) == Output(2, 4, payload[9:size])  # its last field is "the rest"
            continue
        with pytest.raises(FrameError):
            frames.decode(kind, payload[:size])


@pytest.mark.parametrize(("kind", "payload", "value"), [item for item in BY_NAME if item.values[0] != FrameType.OUTPUT])
def test_a_frame_with_bytes_to_spare_is_refused(kind: FrameType, payload: bytes, value: FromAgent) -> None:
    """A frame longer than its fields is FrameError, not a frame with something ignored."""
    for extra in (b"\0", b"\xff" * 9):
        with pytest.raises(FrameError):
            frames.decode(kind, payload + extra)


@pytest.mark.parametrize(("kind", "payload", "value"), BY_NAME)
def test_a_frame_with_any_byte_changed_is_a_value_or_frame_error(
    kind: FrameType, payload: bytes, value: FromAgent
) -> None:
    """No single corrupt byte raises anything but FrameError."""
    for at in range(len(payload)):
        for byte in (0, 1, 0x7F, 0x80, 0xFF):
            corrupt = payload[:at] + bytes([byte]) + payload[at + 1 :]
            with contextlib.suppress(FrameError):
                frames.decode(kind, corrupt)


def test_random_bytes_are_a_value_or_frame_error() -> None:
    """30,000 random payloads under every type byte raise nothing but FrameError."""
    rng = random.Random(20261120)
    for _ in range(30_000):
        kind = rng.choice((rng.randrange(256), rng.choice(list(FrameType))))
        payload = rng.randbytes(rng.randrange(90))
        with contextlib.suppress(FrameError):
            frames.decode(kind, payload)


def test_types_that_agents_do_not_send_are_refused() -> None:
    """A frame type that only clients send, or nobody, is FrameError."""
    known = {kind for kind, _, _ in FROM_AGENT}
    for kind in set(range(256)) - known:
        with pytest.raises(FrameError):
            frames.decode(kind, b"")


def test_a_list_that_promises_more_than_its_frame_holds_costs_nothing() -> None:
    """Four billion strings in a ten-byte frame are refused before anything is allocated."""
    for count in (2, 2**31, 2**32 - 1):
        with pytest.raises(FrameError):
            Cursor(struct.pack("<I", count) + b"\0\0\0\0").texts()
    with pytest.raises(FrameError):
        Cursor(struct.pack("<I", 2**32 - 1)).text()


def test_a_list_of_very_many_strings_is_refused() -> None:
    """A megabyte of two-byte strings would become ten megabytes of objects: a list has a limit of its own."""
    most = frames.MAX_TEXTS
    assert len(Cursor(_texts(*[b""] * most)).texts()) == most
    with pytest.raises(FrameError):
        Cursor(_texts(*[b""] * (most + 1))).texts()
    with pytest.raises(FrameError):
        frames.encode_start(Start(["x"] * (most + 1), {}, "user"))


@pytest.mark.parametrize("field", ["started", "ended"])
def test_a_time_that_no_calendar_has_is_refused(field: str) -> None:
    """A hostile agent's year 584,556,019 is a broken frame, not a crash where the time is shown."""
    times = {"started": (2**64 - 1, 0), "ended": (0, 2**64 - 1)}[field]
    head = struct.pack("<QIBHHQQQQBBBBI", 7, 42, 2, 80, 24, 10, 99, *times, 0, 0, 0, 0, 2)
    with pytest.raises(FrameError):
        frames.decode(FrameType.PROCESS, head + _text(b"") * 3 + _texts() * 2)


def test_output_is_1_byte_to_64_kib() -> None:
    """An empty OUTPUT and one over 64 KiB are refused; the limits themselves are fine."""
    head = struct.pack("<BQ", 0, 0)
    assert len(frames.decode(FrameType.OUTPUT, head + b"x" * MAX_OUTPUT_BYTES).data) == MAX_OUTPUT_BYTES  # type: ignore[union-attr]
    for data in (b"", b"x" * (MAX_OUTPUT_BYTES + 1)):
        with pytest.raises(FrameError):
            frames.decode(FrameType.OUTPUT, head + data)
    with pytest.raises(FrameError):
        frames.decode(FrameType.OUTPUT, struct.pack("<BQ", 3, 0) + b"x")


def test_names_that_are_not_utf_8_come_back_as_they_were() -> None:
    """Arguments and tags of a guest are bytes: what goes in through surrogate escapes comes out the same."""
    raw = bytes(range(1, 256))
    name = raw.decode("utf-8", "surrogateescape")
    assert Cursor(frames.encode_stat(Selector.tagged(name))[5 + 9 :]).text() == name
    info = frames.decode(FrameType.PROCESS, PROCESS_HEAD + _text(raw) * 3 + _texts(raw) + _texts(b"K=" + raw))
    assert isinstance(info, ProcessInfo)
    assert (info.user, info.cwd, info.tag, info.argv, info.env) == (name, name, name, (name,), {"K": name})


@pytest.mark.parametrize("value", [item[2] for item in FROM_AGENT if isinstance(item[2], SHOWN_TO_CLIENTS)])
def test_what_an_agent_says_reaches_a_client_byte_for_byte(value: FromAgent) -> None:
    """A WebSocket message is the agent's frame without its length, nothing added or dropped."""
    kind, payload = next((kind, payload) for kind, payload, known in FROM_AGENT if known == value)
    assert frames.message(value) == bytes([kind]) + payload
    assert frames.decode(frames.message(value)[0], frames.message(value)[1:]) == value


@pytest.mark.parametrize("value", [Hello(1, 0), Started(1, 2), Done()])
def test_frames_between_server_and_agent_are_not_for_clients(value: FromAgent) -> None:
    """HELLO, STARTED and DONE have no WebSocket message."""
    with pytest.raises(TypeError):
        frames.message(value)


SELECTORS = {
    b"\x00\x07\0\0\0\0\0\0\0\0\0\0\0": Selector.process(7),
    b"\x01\x07\0\0\0\0\0\0\0\0\0\0\0": Selector.pid(7),
    b"\x02\0\0\0\0\0\0\0\0\x02\0\0\0hi": Selector.tagged("hi"),
}
TO_AGENT: list[tuple[str, bytes, bytes]] = [
    ("hello", frames.encode_hello(), b"\x01\x01\0\0\0\0\0"),
    ("input", frames.encode_input(b"ls\n", 3), b"\x20\x03\0\0\0\0\0\0\0ls\n"),
    ("input unnumbered", frames.encode_input(b"x"), b"\x20" + b"\xff" * 8 + b"x"),
    ("resize", frames.encode_resize(132, 43), b"\x21\x84\0\x2b\0"),
    ("signal", frames.encode_signal(2, Target.GROUP), b"\x22\x01\x02"),
    ("close stdin", frames.encode_close_stdin(), b"\x23"),
    ("ack", frames.encode_ack(2**64 - 1), b"\x24" + b"\xff" * 8),
    ("ping", frames.encode_ping(9), b"\x25\x09\0\0\0\0\0\0\0"),
    ("list", frames.encode_list(), b"\x30"),
    ("shutdown", frames.encode_shutdown(), b"\x3f"),
    (
        "start",
        frames.encode_start(
            Start(
                ["sh", "-c"], {"A": "b"}, "user", "~", "tag", StartFlags.PTY | StartFlags.REPLY_ONLY, 80, 24, 1, 2, 3, 4
            )
        ),
        b"\x10\x05\x50\0\x18\0\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0"
        + _text(b"user")
        + _text(b"~")
        + _text(b"tag")
        + _texts(b"sh", b"-c")
        + _texts(b"A=b"),
    ),
    *[
        (
            f"attach {index}",
            frames.encode_attach(Attach(chosen, False, From.SCREEN, 1, 2, 3)),
            b"\x11" + raw + b"\x00\x04\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\0\0\0",
        )
        for index, (raw, chosen) in enumerate(SELECTORS.items())
    ],
    *[
        item
        for index, (raw, chosen) in enumerate(SELECTORS.items())
        for item in (
            (f"stat {index}", frames.encode_stat(chosen), b"\x31" + raw),
            (f"wait {index}", frames.encode_wait(chosen, 5), b"\x32" + raw + b"\x05\0\0\0"),
            (
                f"signal process {index}",
                frames.encode_signal_process(chosen, 9, Target.TREE),
                b"\x33" + raw + b"\x02\x09",
            ),
            (f"resize process {index}", frames.encode_resize_process(chosen, 1, 2), b"\x34" + raw + b"\x01\0\x02\0"),
            (
                f"input process {index}",
                frames.encode_input_process(chosen, 2, b"x", 1),
                b"\x35" + raw + b"\x02\x01\0\0\0\0\0\0\0x",
            ),
            (f"close stdin process {index}", frames.encode_close_stdin_process(chosen), b"\x36" + raw),
        )
    ],
]


@pytest.mark.parametrize(("encoded", "expected"), [pytest.param(*item[1:], id=item[0]) for item in TO_AGENT])
def test_every_request_is_written_as_the_reference_says(encoded: bytes, expected: bytes) -> None:
    """Length, type, fields: byte by byte as in docs/reference/agent-protocol.md."""
    assert encoded == struct.pack("<I", len(expected)) + expected


def test_a_frame_that_no_agent_would_take_is_not_made() -> None:
    """A payload over 1 MiB + 64 is refused where it is made, not by the agent."""
    assert len(frames.frame(FrameType.INPUT, b"x" * (MAX_FRAME_BYTES - 1))) == 4 + MAX_FRAME_BYTES
    with pytest.raises(FrameError):
        frames.frame(FrameType.INPUT, b"x" * MAX_FRAME_BYTES)


# --- FrameReader -----------------------------------------------------------------------------------------------------

STREAM = b"".join(frames.frame(kind, payload) for kind, payload, _ in FROM_AGENT)
PAIRS = [(int(kind), payload) for kind, payload, _ in FROM_AGENT]


def _cut(cuts: Callable[[int], int]) -> list[tuple[int, bytes]]:
    reader, found, at = FrameReader(), [], 0
    while at < len(STREAM):
        size = cuts(at)
        found += reader.feed(STREAM[at : at + size])
        at += size
    return found


def test_a_stream_is_cut_into_the_same_frames_however_it_arrives() -> None:
    """All at once, byte by byte, in every fixed size and in random pieces: the same frames, in order."""
    assert FrameReader().feed(STREAM) == PAIRS
    for size in range(1, 40):
        assert _cut(lambda _, size=size: size) == PAIRS
    rng = random.Random(7)
    for _ in range(200):
        assert _cut(lambda _: rng.randrange(1, 30)) == PAIRS


def test_a_frame_is_given_out_as_soon_as_its_last_byte_is_there() -> None:
    """Nothing waits for the next frame to begin."""
    reader = FrameReader()
    whole = frames.frame(FrameType.PONG, b"12345678")
    assert reader.feed(whole[:-1]) == []
    assert reader.feed(whole[-1:]) == [(FrameType.PONG, b"12345678")]


@pytest.mark.parametrize("length", [0, MAX_FRAME_BYTES + 1, 2**31, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_its_bytes_come(length: int) -> None:
    """Four bytes are enough to know: nobody can make us wait for, or hold, four gigabytes."""
    with pytest.raises(FrameError):
        FrameReader().feed(struct.pack("<I", length))


def test_the_largest_frame_passes() -> None:
    """The limit itself is allowed."""
    whole = frames.frame(FrameType.ERROR, b"x" * (MAX_FRAME_BYTES - 1))
    assert FrameReader().feed(whole) == [(FrameType.ERROR, b"x" * (MAX_FRAME_BYTES - 1))]


def test_numbers_at_their_limits_survive() -> None:
    """Offsets are 64 bits, all of them."""
    assert frames.decode(FrameType.GAP, struct.pack("<QQ", 0, NO_OFFSET)) == Gap(0, NO_OFFSET)


def test_big_frames_in_big_pieces_are_cut_the_same() -> None:
    """The way of a flood, where frames lie across pieces smaller and bigger than they are."""
    rng = random.Random(11)
    payloads = [rng.randbytes(rng.choice((1, 9, 4000, 5000, 65000))) for _ in range(60)]
    stream = b"".join(frames.frame(FrameType.OUTPUT, payload) for payload in payloads)
    for size in (1000, 4096, 70_000, 262_144, len(stream)):
        reader, found = FrameReader(), []
        for at in range(0, len(stream), size):
            reader.push(stream[at : at + size])
            while (message := reader.pop_message()) is not None:
                found.append(bytes(message))
        assert found == [bytes([FrameType.OUTPUT]) + payload for payload in payloads]
        assert reader.held_bytes == 0
        assert not reader.ready


def test_a_message_of_another_kind_is_left_where_it_is() -> None:
    """Who asks for outputs only does not lose the exit behind them."""
    reader = FrameReader()
    reader.push(frames.frame(FrameType.OUTPUT, b"one") + frames.frame(FrameType.EXIT, b"two"))
    assert reader.pop_message(FrameType.OUTPUT) == bytes([FrameType.OUTPUT]) + b"one"
    assert reader.pop_message(FrameType.OUTPUT) is None
    assert reader.pop() == (FrameType.EXIT, b"two")
    assert reader.pop_message(FrameType.OUTPUT) is None


def test_one_small_frame_that_comes_alone_is_cut_without_being_kept() -> None:
    """Anything else is left to `push`: half a frame, two of them, one behind what waits, a big one."""
    one = frames.frame(FrameType.OUTPUT, b"one")
    reader = FrameReader()
    assert reader.alone(one) == bytes([FrameType.OUTPUT]) + b"one"
    assert not reader.held_bytes
    for other in (b"", one[:3], one[:-1], one + one, struct.pack("<I", 0), frames.frame(FrameType.OUTPUT, bytes(8192))):
        assert reader.alone(other) is None
    reader.push(one[:5])
    assert reader.alone(one) is None


def test_a_broken_stream_says_so_at_every_asking() -> None:
    """`broken` warns who must not raise."""
    reader = FrameReader()
    reader.push(struct.pack("<IB", 0, 0))
    assert reader.broken
    for pop in (reader.pop, reader.pop_message):
        with pytest.raises(FrameError):
            pop()
