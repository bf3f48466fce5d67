"""The values of the agent protocol (docs/reference/agent-protocol.md): enumerations, and one class per frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TypeAlias

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 1024 * 1024 + 64
MAX_OUTPUT_BYTES = 64 * 1024
NO_OFFSET = 0xFFFF_FFFF_FFFF_FFFF
NEVER_MS = 0xFFFF_FFFF
MAX_WINDOW_CELLS = 10_000
MAX_TEXTS = 16_384  # strings in one list: 1 MiB of two-byte strings would become 10 MiB of objects
MAX_TIME_MS = 253_402_300_799_999  # the last millisecond of the year 9999, where calendars end


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
    PARK = 0x38
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
    MODES = 8  # the encoder's to set


class AttachFlags(IntFlag):
    """KEEPS_PLACE: when the connection is lost before EXIT, the process goes on only as far as its log still holds what
    this reader may not have seen, for as long as the attachment's stall time."""

    MAY_WRITE = 1
    KEEPS_PLACE = 2


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
    """Start a process. `env` is a mapping; `cwd` may be empty (home), relative (under home) or begin with `~`.

    `modes`: of its terminal, where they are not the kernel's own; as RFC 4254, section 8, encodes them.
    """

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
    modes: bytes = b""


@dataclass(frozen=True, slots=True)
class Attach:
    selector: Selector
    may_write: bool = True
    origin: From = From.CONTINUE
    value: int = 0
    window: int = 0
    stall_ms: int = 0
    keeps_place: bool = False


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
