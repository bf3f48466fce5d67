"""The agent protocol, version 1: encode and decode its frames. Pure.

The byte layout is docs/reference/agent-protocol.md.

A frame is `u32 length, u8 type, payload`, little-endian. Over a WebSocket (the native dialect) a message is `u8 type,
payload`: the same bytes without the length, because the WebSocket frames them.

Everything decoded here may come from a hostile agent or client: a decoder raises `FrameError` and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from sandpty.wire.frame_reader import FrameReader
from sandpty.wire.types import (
    MAX_FRAME_BYTES,
    MAX_OUTPUT_BYTES,
    MAX_TEXTS,
    MAX_TIME_MS,
    MAX_WINDOW_CELLS,
    NEVER_MS,
    NO_OFFSET,
    PROTOCOL_VERSION,
    AgentError,
    AgentErrorCode,
    Attach,
    Attached,
    AttachFlags,
    Done,
    Exit,
    ExitReason,
    FrameError,
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
    Stream,
    Target,
)

__all__ = [
    "HEADER",
    "MAX_FRAME_BYTES",
    "MAX_OUTPUT_BYTES",
    "MAX_TEXTS",
    "MAX_TIME_MS",
    "MAX_WINDOW_CELLS",
    "NEVER_MS",
    "NO_OFFSET",
    "PROTOCOL_VERSION",
    "AgentError",
    "AgentErrorCode",
    "Attach",
    "AttachFlags",
    "Attached",
    "Cursor",
    "Done",
    "Exit",
    "ExitReason",
    "FrameError",
    "FrameReader",
    "FrameType",
    "From",
    "FromAgent",
    "Gap",
    "Hello",
    "InputAck",
    "Output",
    "Pong",
    "ProcessFlags",
    "ProcessInfo",
    "Resized",
    "Selector",
    "Start",
    "StartFlags",
    "Started",
    "Stream",
    "Target",
    "decode",
    "encode_ack",
    "encode_attach",
    "encode_close_stdin",
    "encode_close_stdin_process",
    "encode_hello",
    "encode_input",
    "encode_input_process",
    "encode_list",
    "encode_park",
    "encode_ping",
    "encode_resize",
    "encode_resize_process",
    "encode_shutdown",
    "encode_signal",
    "encode_signal_process",
    "encode_start",
    "encode_stat",
    "encode_wait",
    "frame",
    "message",
    "output_span",
]

HEADER = struct.Struct("<IB")

# --- encoding: what a client says ------------------------------------------------------------------------------------


def _text(value: str | bytes) -> bytes:
    # surrogateescape: file names and arguments of a guest need not be UTF-8, and must come back as they were.
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    return struct.pack("<I", len(raw)) + raw


def _texts(values: Iterable[str]) -> bytes:
    items = [_text(value) for value in values]
    if len(items) > MAX_TEXTS:
        raise FrameError(f"a list of {len(items)} strings is over the limit of {MAX_TEXTS}")
    return struct.pack("<I", len(items)) + b"".join(items)


def frame(kind: int, payload: bytes = b"") -> bytes:
    """One frame as it goes over a stream socket. Raises FrameError when it would be too long."""
    length = len(payload) + 1
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    return HEADER.pack(length, kind) + payload


def encode_hello() -> bytes:
    return frame(FrameType.HELLO, struct.pack("<HI", PROTOCOL_VERSION, 0))


def _selector(selector: Selector) -> bytes:
    return struct.pack("<BQ", selector.kind, selector.number) + _text(selector.tag)


def encode_start(start: Start) -> bytes:
    """Raises FrameError when arguments and environment do not fit a frame."""
    return frame(FrameType.START, _start(start))


def encode_park(start: Start) -> bytes:
    """`start` is likely to be asked for, in these very words: the agent may start it in advance."""
    return frame(FrameType.PARK, _start(start))


def _start(start: Start) -> bytes:
    head = struct.pack(
        "<BHHIIII",
        start.flags | StartFlags.MODES * bool(start.modes),
        start.cols,
        start.rows,
        start.log_bytes,
        start.deadline_ms,
        start.window,
        start.stall_ms,
    )
    modes = _text(start.modes) if start.modes else b""
    # Sorted: what was started in advance is found by comparing these bytes, whatever order a client wrote them in.
    env = sorted(f"{key}={value}" for key, value in start.env.items())
    body = _text(start.user) + _text(start.cwd) + _text(start.tag) + _texts(start.argv) + _texts(env)
    return head + modes + body


def encode_attach(attach: Attach) -> bytes:
    flags = AttachFlags.MAY_WRITE * attach.may_write | AttachFlags.KEEPS_PLACE * attach.keeps_place
    tail = struct.pack("<BBQII", flags, attach.origin, attach.value, attach.window, attach.stall_ms)
    return frame(FrameType.ATTACH, _selector(attach.selector) + tail)


def encode_input(data: bytes, offset: int = NO_OFFSET) -> bytes:
    return frame(FrameType.INPUT, struct.pack("<Q", offset) + data)


def encode_resize(cols: int, rows: int) -> bytes:
    return frame(FrameType.RESIZE, struct.pack("<HH", cols, rows))


def encode_signal(signal: int, target: Target) -> bytes:
    return frame(FrameType.SIGNAL, struct.pack("<BB", target, signal))


def encode_close_stdin() -> bytes:
    return frame(FrameType.CLOSE_STDIN)


def encode_ack(offset: int) -> bytes:
    return frame(FrameType.ACK, struct.pack("<Q", offset))


def encode_ping(token: int) -> bytes:
    return frame(FrameType.PING, struct.pack("<Q", token))


def encode_list() -> bytes:
    return frame(FrameType.LIST)


def encode_stat(selector: Selector) -> bytes:
    return frame(FrameType.STAT, _selector(selector))


def encode_wait(selector: Selector, timeout_ms: int = NEVER_MS) -> bytes:
    return frame(FrameType.WAIT, _selector(selector) + struct.pack("<I", timeout_ms))


def encode_signal_process(selector: Selector, signal: int, target: Target) -> bytes:
    return frame(FrameType.SIGNAL_PROCESS, _selector(selector) + struct.pack("<BB", target, signal))


def encode_resize_process(selector: Selector, cols: int, rows: int) -> bytes:
    return frame(FrameType.RESIZE_PROCESS, _selector(selector) + struct.pack("<HH", cols, rows))


def encode_input_process(selector: Selector, stream: int, data: bytes, offset: int = NO_OFFSET) -> bytes:
    """`stream`: 0 the PTY, 1 the stdin pipe, 2 whichever the process has."""
    return frame(FrameType.INPUT_PROCESS, _selector(selector) + struct.pack("<BQ", stream, offset) + data)


def encode_close_stdin_process(selector: Selector) -> bytes:
    return frame(FrameType.CLOSE_STDIN_PROCESS, _selector(selector))


def encode_shutdown() -> bytes:
    return frame(FrameType.SHUTDOWN)


# --- decoding --------------------------------------------------------------------------------------------------------


class Cursor:
    """Reads fields from a payload in order; raises FrameError when they are not there."""

    __slots__ = ("_at", "_payload")

    def __init__(self, payload: bytes | memoryview) -> None:
        self._payload = memoryview(payload)
        self._at = 0

    def take(self, fields: struct.Struct) -> tuple[int, ...]:
        end = self._at + fields.size
        if end > len(self._payload):
            raise FrameError("frame is shorter than its fields")
        values = fields.unpack_from(self._payload, self._at)
        self._at = end
        return values

    def text(self) -> str:
        (length,) = self.take(_U32)
        end = self._at + length
        if end > len(self._payload):
            raise FrameError("string is longer than its frame")
        raw = bytes(self._payload[self._at : end])
        self._at = end
        return raw.decode("utf-8", "surrogateescape")

    def texts(self) -> tuple[str, ...]:
        (count,) = self.take(_U32)
        if count * 4 > len(self._payload) - self._at:  # each item has a length of its own
            raise FrameError("list is longer than its frame")
        if count > MAX_TEXTS:
            raise FrameError(f"a list of {count} strings is over the limit of {MAX_TEXTS}")
        return tuple(self.text() for _ in range(count))

    def rest(self) -> bytes:
        raw = bytes(self._payload[self._at :])
        self._at = len(self._payload)
        return raw

    def finish(self) -> None:
        if self._at != len(self._payload):
            raise FrameError("frame is longer than its fields")


_OUTPUT_MESSAGE = struct.Struct("<BBQ")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_HELLO = struct.Struct("<HIQ")
_STARTED = struct.Struct("<QI")
_ATTACHED = struct.Struct("<QIQQHHBQ")
_OUTPUT = struct.Struct("<BQ")
_LAST_STREAM = int(Stream.STDERR)
_GAP = struct.Struct("<QQ")
_SIZE = struct.Struct("<HH")
_EXIT = struct.Struct("<BBBBQ")
_PROCESS = struct.Struct("<QIBHHQQQQBBBBI")
_CODE = struct.Struct("<H")


def _exit(kind: int, value: int, reason: int, core: int, end: int) -> Exit:
    if kind > 1 or core > 1:
        raise FrameError("neither exited nor signalled")
    try:
        return Exit(bool(kind), value, ExitReason(reason), bool(core), end)
    except ValueError:
        raise FrameError(f"unknown exit reason {reason}") from None


def output_span(payload: bytes | memoryview, before: int = 0) -> tuple[int, int]:
    """The offsets at which an OUTPUT's bytes begin and end, for who passes it on undecoded. Raises FrameError.

    `before`: bytes that come before the payload (1 in a message: its type).
    """
    size = len(payload) - before - _OUTPUT.size
    if size <= 0:
        raise FrameError("output without bytes")
    if size > MAX_OUTPUT_BYTES:
        raise FrameError("output is over 64 KiB")
    stream, offset = _OUTPUT.unpack_from(payload, before)
    if stream > _LAST_STREAM:
        raise FrameError(f"unknown stream {stream}")
    return offset, offset + size


def _decode_output(payload: bytes | memoryview) -> Output:
    offset, _ = output_span(payload)
    return Output(payload[0], offset, bytes(payload[_OUTPUT.size :]))


def _decode_process(cursor: Cursor) -> ProcessInfo:
    head = cursor.take(_PROCESS)
    flags = ProcessFlags(head[2] & 0x0F)
    ended = not flags & ProcessFlags.RUNNING
    if max(head[7], head[8]) > MAX_TIME_MS:
        raise FrameError("a time after the year 9999")
    user, cwd, tag = cursor.text(), cursor.text(), cursor.text()
    argv, env = cursor.texts(), cursor.texts()
    return ProcessInfo(
        process=head[0],
        pid=head[1],
        flags=flags,
        cols=head[3],
        rows=head[4],
        start=head[5],
        end=head[6],
        started_ms=head[7],
        ended_ms=head[8],
        exit=_exit(head[9], head[10], head[11], head[12], head[6]) if ended else None,
        attachments=head[13],
        user=user,
        cwd=cwd,
        tag=tag,
        argv=argv,
        env=dict(item.partition("=")[::2] for item in env),
    )


def _decode_fields(kind: int, cursor: Cursor) -> FromAgent:  # noqa: PLR0911 - one arm per frame type
    match kind:
        case FrameType.AGENT_HELLO:
            return Hello(*cursor.take(_HELLO))
        case FrameType.STARTED:
            return Started(*cursor.take(_STARTED))
        case FrameType.ATTACHED:
            fields = cursor.take(_ATTACHED)
            process, pid, start, end, cols, rows, flags, taken = fields
            return Attached(process, pid, start, end, cols, rows, ProcessFlags(flags & 0x0F), taken)
        case FrameType.GAP:
            return Gap(*cursor.take(_GAP))
        case FrameType.RESIZED:
            return Resized(*cursor.take(_SIZE))
        case FrameType.EXIT:
            kind_, value, reason, core, end = cursor.take(_EXIT)
            return _exit(kind_, value, reason, core, end)
        case FrameType.INPUT_ACK:
            return InputAck(*cursor.take(_U64))
        case FrameType.PONG:
            return Pong(*cursor.take(_U64))
        case FrameType.DONE:
            return Done()
        case FrameType.PROCESS:
            return _decode_process(cursor)
        case FrameType.ERROR:
            (code,) = cursor.take(_CODE)
            return AgentError(code, cursor.text())
    raise FrameError(f"unknown frame type 0x{kind:02x}")


def decode(kind: int, payload: bytes | memoryview) -> FromAgent:
    """What an agent said, as a value. Raises FrameError on anything that is not exactly one such frame."""
    if kind == FrameType.OUTPUT:
        return _decode_output(payload)
    cursor = Cursor(payload)
    value = _decode_fields(kind, cursor)
    cursor.finish()
    return value


def message(value: FromAgent) -> bytes:  # noqa: PLR0911 - one arm per frame type
    """What an agent said, as a WebSocket message of the native dialect: `u8 type, payload`."""
    match value:
        case Output():
            return b"".join((_OUTPUT_MESSAGE.pack(FrameType.OUTPUT, value.stream, value.offset), value.data))
        case Attached():
            fields = (
                value.process,
                value.pid,
                value.start,
                value.end,
                value.cols,
                value.rows,
                value.flags,
                value.input,
            )
            return bytes([FrameType.ATTACHED]) + _ATTACHED.pack(*fields)
        case Gap():
            return bytes([FrameType.GAP]) + _GAP.pack(value.start, value.end)
        case Resized():
            return bytes([FrameType.RESIZED]) + _SIZE.pack(value.cols, value.rows)
        case Exit():
            how = (value.signalled, value.value, value.reason, value.core_dumped, value.end)
            return bytes([FrameType.EXIT]) + _EXIT.pack(*how)
        case InputAck():
            return bytes([FrameType.INPUT_ACK]) + _U64.pack(value.input)
        case Pong():
            return bytes([FrameType.PONG]) + _U64.pack(value.token)
        case AgentError():
            return bytes([FrameType.ERROR]) + _CODE.pack(value.code) + _text(value.message)
    raise TypeError(f"{type(value).__name__} is not sent to clients")
