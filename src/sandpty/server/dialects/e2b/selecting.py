"""Naming processes as E2B's clients do, and saying what is wrong with a request about one in E2B's words."""

from __future__ import annotations

from sandpty.server.dialects.e2b import models
from sandpty.server.dialects.e2b.connect import ConnectError, decode_bytes, error_from
from sandpty.terminal import control
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import MAX_WINDOW_CELLS, Selector

_UINT32_MAX = 0xFFFF_FFFF
PTY_STREAM, STDIN_STREAM = 0, 1


def number(value: int | str | None, what: str) -> int:
    """A proto3 JSON uint32: a number or the same as text; absent is 0. Raises ConnectError."""
    try:
        parsed = int(value or 0)
    except ValueError as error:
        raise ConnectError("invalid_argument", f"{what} is not a number: {str(value)[:40]!r}") from error
    if not 0 <= parsed <= _UINT32_MAX:
        raise ConnectError("invalid_argument", f"{what} is out of range: {parsed}")
    return parsed


def selector_of(given: models.ProcessSelector | None) -> Selector:
    """Raises ConnectError: unimplemented when neither pid nor tag is given, as E2B does."""
    if given is None or (given.pid is None and given.tag is None):
        raise ConnectError("unimplemented", "invalid process selector: it needs a pid or a tag")
    if given.pid is not None and given.tag is not None:
        raise ConnectError("invalid_argument", "a process selector holds a pid or a tag, not both")
    if given.pid is not None:
        return Selector.pid(number(given.pid, "pid"))
    return Selector.tagged(given.tag or "")


def selector_text(selector: Selector) -> str:
    return f"tag {selector.tag}" if selector.kind == Selector.tagged("").kind else f"pid {selector.number}"


def window_size(size: models.Size | None) -> tuple[int, int]:
    """(cols, rows). Raises ConnectError outside of 1 .. 10,000."""
    cols, rows = (number(size.cols, "cols"), number(size.rows, "rows")) if size is not None else (0, 0)
    if not (1 <= cols <= MAX_WINDOW_CELLS and 1 <= rows <= MAX_WINDOW_CELLS):
        raise ConnectError(
            "invalid_argument", f"{cols} x {rows} is not a window size: cols and rows go from 1 to {MAX_WINDOW_CELLS}"
        )
    return cols, rows


def input_of(given: models.ProcessInput | None) -> tuple[int, bytes]:
    """(stream, bytes). Present but empty is a success. Raises ConnectError when there is neither stdin nor pty."""
    if given is None or (given.stdin is None and given.pty is None):
        raise ConnectError("unimplemented", "invalid input: it needs stdin or pty")
    if given.stdin is not None and given.pty is not None:
        raise ConnectError("invalid_argument", "an input holds stdin or pty, not both")
    if given.pty is not None:
        return PTY_STREAM, decode_bytes(given.pty)
    return STDIN_STREAM, decode_bytes(given.stdin or "")


_SIGNALS: dict[str | int, int] = {"SIGNAL_SIGTERM": 15, "SIGNAL_SIGKILL": 9, 15: 15, 9: 9, "15": 15, "9": 9}


def signal_of(given: str | int | None) -> int:
    """Raises ConnectError: unimplemented for all but TERM and KILL, as E2B does."""
    number_ = _SIGNALS.get(given) if given is not None else None
    if number_ is None:
        name = "SIGNAL_UNSPECIFIED" if given is None else str(given)[:40]
        raise ConnectError("unimplemented", f"invalid signal: {name}")
    return number_


def process_error(error: SandptyError, selector: Selector, doing: str) -> ConnectError:  # noqa: PLR0911 - one arm per reason
    """What E2B says of a failed request about a process. `doing`: stdin, tty, resize, signal or close."""
    match error.reason.name:
        # An ended process is not there for whoever wants to drive it: `kill` of one answers False.
        case "no_such_process" | "exited":
            return ConnectError("not_found", f"process with {selector_text(selector)} not found")
        case "stdin_closed":
            return ConnectError("internal", "error writing to stdin: stdin not enabled or closed")
        case "not_a_pipe" if doing == "close":
            return ConnectError(
                "unknown", "error closing stdin: cannot close stdin for PTY process — send Ctrl+D (0x04) instead"
            )
        # The agent's one word for stdin of a terminal and for terminal input of a command.
        case "not_a_pipe" | "not_a_pty" if doing == "tty":
            return ConnectError("internal", "error writing to tty: tty not assigned to process, send stdin to it")
        case "not_a_pipe":
            return ConnectError("internal", "error writing to stdin: the process has a tty, send pty input to it")
        case "not_a_pty" if doing == "resize":
            return ConnectError("internal", "error resizing tty: tty not assigned to process")
    return error_from(error)


async def type_into(socket: str, selector: Selector, stream: int, data: bytes) -> None:
    """Type `data` into a process (no bytes: only ask whether it would take them). Raises ConnectError."""
    try:
        await control.send_input(socket, selector, stream, data)
    except SandptyError as error:
        raise process_error(error, selector, "tty" if stream == PTY_STREAM else "stdin") from error
