"""The agent protocol, version 1: encode and decode its frames. Pure.

The byte layout is docs/reference/agent-protocol.md.

A frame is `u32 length, u8 type, payload`, little-endian. Over a WebSocket (the native dialect) a message is `u8 type,
payload`: the same bytes without the length, because the WebSocket frames them.

Everything decoded here may come from a hostile agent or client: a decoder raises `FrameError` and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TypeAlias

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 1024 * 1024 + 64
MAX_OUTPUT_BYTES = 64 * 1024
NO_OFFSET = 0xFFFF_FFFF_FFFF_FFFF
NEVER_MS = 0xFFFF_FFFF
MAX_WINDOW_CELLS = 10_000
HEADER = struct.Struct("<IB")


class FrameError(ValueError):
    """The bytes are not a frame of this protocol."""


class FrameType(IntEnum):
    """The type byte. Below 0x80 towards the agent, above it from the agent."""

    HELLO = 0x01
    START = 0x10
    ATTACH = 0x11
    INPUT = 0x20
    RESIZE = 0x21
    SIGNAL = 0x22
    CLOSE_STDIN = 0x23
    ACK = 0x24
    PING = 0x25
    LIST = 0x30
    STAT = 0x31
    WAIT = 0x32
    SIGNAL_PROCESS = 0x33
    RESIZE_PROCESS = 0x34
    INPUT_PROCESS = 0x35
    CLOSE_STDIN_PROCESS = 0x36
    SHUTDOWN = 0x3F
    AGENT_HELLO = 0x81
    STARTED = 0x90
    ATTACHED = 0x91
    OUTPUT = 0xA0
    GAP = 0xA1
    RESIZED = 0xA2
    EXIT = 0xA3
    INPUT_ACK = 0xA4
    PONG = 0xA5
    DONE = 0xB0
    PROCESS = 0xB1
    ERROR = 0xFF


class AgentErrorCode(IntEnum):
    """The codes of an ERROR frame."""

    BAD_FRAME = 1
    UNSUPPORTED_VERSION = 2
    NO_SUCH_PROCESS = 3
    NO_SUCH_USER = 4
    BAD_CWD = 5
    START_FAILED = 6
    NOT_A_PTY = 7
    NOT_A_PIPE = 8
    STDIN_CLOSED = 9
    EXITED = 10
    LIMIT = 11
    TIMEOUT = 12
    READ_ONLY = 13
    BAD_ARGUMENT = 14
    INTERNAL = 15
    PORT_CLOSED = 16


class Stream(IntEnum):
    """Which stream a chunk of output belongs to."""

    PTY = 0
    STDOUT = 1
    STDERR = 2


class From(IntEnum):
    """Where an attachment begins to read."""

    OFFSET = 0
    TAIL = 1
    CONTINUE = 2
    END = 3
    SCREEN = 4


class Target(IntEnum):
    """Whom a signal is for: the leader, the terminal's foreground group, or the whole tree."""

    LEADER = 0
    GROUP = 1
    TREE = 2


class ExitReason(IntEnum):
    """Why a process ended."""

    EXITED = 0
    SIGNALLED = 1
    DEADLINE = 2
    KILLED = 3
    OUT_OF_MEMORY = 4
    SANDBOX_ENDED = 5


class StartFlags(IntFlag):
    PTY = 1
    STDIN = 2
    REPLY_ONLY = 4


class ProcessFlags(IntFlag):
    PTY = 1
    RUNNING = 2
    STDIN_OPEN = 4
    MAY_WRITE = 8


@dataclass(frozen=True, slots=True)
class Selector:
    """Names a process: by our id, by guest pid or by tag. Make one with the class methods."""

    kind: int
    number: int = 0
    tag: str = ""

    @classmethod
    def process(cls, process: int) -> Selector:
        return cls(0, process)

    @classmethod
    def pid(cls, pid: int) -> Selector:
        return cls(1, pid)

    @classmethod
    def tagged(cls, tag: str) -> Selector:
        return cls(2, 0, tag)


@dataclass(frozen=True, slots=True)
class Hello:
    version: int
    capabilities: int
    boot_ms: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process. `env` is a mapping; `cwd` may be empty (home), relative (under home) or begin with `~`."""

    argv: Sequence[str]
    env: dict[str, str]
    user: str
    cwd: str = ""
    tag: str = ""
    flags: StartFlags = StartFlags.STDIN
    cols: int = 80
    rows: int = 24
    log_bytes: int = 0
    deadline_ms: int = 0
    window: int = 0
    stall_ms: int = 0


@dataclass(frozen=True, slots=True)
class Attach:
    selector: Selector
    may_write: bool = True
    origin: From = From.CONTINUE
    value: int = 0
    window: int = 0
    stall_ms: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    process: int
    pid: int


@dataclass(frozen=True, slots=True)
class Attached:
    process: int
    pid: int
    start: int
    end: int
    cols: int
    rows: int
    flags: ProcessFlags
    input: int


@dataclass(frozen=True, slots=True)
class Output:
    stream: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Resized:
    cols: int
    rows: int


@dataclass(frozen=True, slots=True)
class Exit:
    """`signalled`: then `value` is the signal's number, else the exit code."""

    signalled: bool
    value: int
    reason: ExitReason
    core_dumped: bool
    end: int


@dataclass(frozen=True, slots=True)
class InputAck:
    input: int


@dataclass(frozen=True, slots=True)
class Pong:
    token: int


@dataclass(frozen=True, slots=True)
class Done:
    pass


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    process: int
    pid: int
    flags: ProcessFlags
    cols: int
    rows: int
    start: int
    end: int
    started_ms: int
    ended_ms: int
    exit: Exit | None
    attachments: int
    user: str
    cwd: str
    tag: str
    argv: tuple[str, ...]
    env: dict[str, str]


@dataclass(frozen=True, slots=True)
class AgentError:
    code: int
    message: str


FromAgent: TypeAlias = (
    Hello | Started | Attached | Output | Gap | Resized | Exit | InputAck | Pong | Done | ProcessInfo | AgentError
)

# --- encoding: what a client says ------------------------------------------------------------------------------------


def _text(value: str | bytes) -> bytes:
    # surrogateescape: file names and arguments of a guest need not be UTF-8, and must come back as they were.
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    return struct.pack("<I", len(raw)) + raw


def _texts(values: Iterable[str]) -> bytes:
    items = [_text(value) for value in values]
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
    head = struct.pack(
        "<BHHIIII",
        start.flags,
        start.cols,
        start.rows,
        start.log_bytes,
        start.deadline_ms,
        start.window,
        start.stall_ms,
    )
    env = [f"{key}={value}" for key, value in start.env.items()]
    body = _text(start.user) + _text(start.cwd) + _text(start.tag) + _texts(start.argv) + _texts(env)
    return frame(FrameType.START, head + body)


def encode_attach(attach: Attach) -> bytes:
    tail = struct.pack("<BBQII", int(attach.may_write), attach.origin, attach.value, attach.window, attach.stall_ms)
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
        return tuple(self.text() for _ in range(count))

    def rest(self) -> bytes:
        raw = bytes(self._payload[self._at :])
        self._at = len(self._payload)
        return raw

    def finish(self) -> None:
        if self._at != len(self._payload):
            raise FrameError("frame is longer than its fields")


_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_HELLO = struct.Struct("<HIQ")
_STARTED = struct.Struct("<QI")
_ATTACHED = struct.Struct("<QIQQHHBQ")
_OUTPUT = struct.Struct("<BQ")
_GAP = struct.Struct("<QQ")
_SIZE = struct.Struct("<HH")
_EXIT = struct.Struct("<BBBBQ")
_PROCESS = struct.Struct("<QIBHHQQQQBBBBI")
_CODE = struct.Struct("<H")


def _exit(kind: int, value: int, reason: int, core: int, end: int) -> Exit:
    try:
        return Exit(bool(kind), value, ExitReason(reason), bool(core), end)
    except ValueError:
        raise FrameError(f"unknown exit reason {reason}") from None


def _decode_output(payload: bytes | memoryview) -> Output:
    if len(payload) <= _OUTPUT.size:
        raise FrameError("output without bytes")
    if len(payload) > _OUTPUT.size + MAX_OUTPUT_BYTES:
        raise FrameError("output is over 64 KiB")
    stream, offset = _OUTPUT.unpack_from(payload)
    if stream > Stream.STDERR:
        raise FrameError(f"unknown stream {stream}")
    return Output(stream, offset, bytes(payload[_OUTPUT.size :]))


def _decode_process(cursor: Cursor) -> ProcessInfo:
    head = cursor.take(_PROCESS)
    flags = ProcessFlags(head[2] & 0x0F)
    ended = not flags & ProcessFlags.RUNNING
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


class FrameReader:
    """Cuts a byte stream into `(type, payload)` pairs. Holds at most one unfinished frame.

    Raises FrameError as soon as a length is out of bounds, before waiting for its bytes.
    """

    __slots__ = ("_buffer", "_max_bytes")

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames that are complete after `data`."""
        buffer = self._buffer
        buffer += data
        frames: list[tuple[int, bytes]] = []
        at, size = 0, len(buffer)
        while size - at >= 4:
            (length,) = _U32.unpack_from(buffer, at)
            if not 1 <= length <= self._max_bytes:
                raise FrameError(f"frame length {length} is out of bounds")
            if size - at < 4 + length:
                break
            frames.append((buffer[at + 4], bytes(memoryview(buffer)[at + 5 : at + 4 + length])))
            at += 4 + length
        if at:
            del buffer[:at]
        return frames
