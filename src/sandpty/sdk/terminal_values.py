"""The values of `sandbox.terminal`, named as in Hyperbrowser's SDK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sandpty.sdk.values import ProcessInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxTerminalCreateParams:
    """`command` with `args` is an argv, not a line of shell (`use_shell` True makes `command` one)."""

    command: str
    args: Sequence[str] | None = None
    cwd: str | None = None
    env: Mapping[str, str] | None = None
    use_shell: bool = False
    rows: int | None = None
    cols: int | None = None
    timeout_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalChunk:
    """Output up to offset `seq`, which is also the cursor to go on from."""

    seq: int
    raw: bytes
    timestamp: int

    @property
    def data(self) -> str:
        """As text; what is no UTF-8 becomes U+FFFD."""
        return self.raw.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxTerminalOutputEvent(TerminalChunk):
    type: str = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxTerminalStatus:
    """Times are in milliseconds since 1970. `exit_code` is 128 + the signal's number when a signal ended it."""

    id: str
    command: str
    args: list[str]
    cwd: str
    pid: int
    running: bool
    exit_code: int | None
    timed_out: bool
    rows: int
    cols: int
    started_at: int
    finished_at: int | None
    output: list[TerminalChunk] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxTerminalExitEvent:
    status: SandboxTerminalStatus
    type: str = "exit"


def exit_code_of(exit_: Mapping[str, Any] | None) -> int | None:
    """Of a process's `exit`, as a shell would say it."""
    if exit_ is None:
        return None
    signal = exit_.get("signal")
    return 128 + int(signal) if signal else int(exit_.get("code") or 0)


def _ms(stamp: str | None) -> int | None:
    return None if stamp is None else int(datetime.fromisoformat(stamp).timestamp() * 1000)


def status_of(terminal_id: str, found: ProcessInfo, output: list[TerminalChunk] | None) -> SandboxTerminalStatus:
    """What the server says of a process, as Hyperbrowser's SDK would show it."""
    return SandboxTerminalStatus(
        id=terminal_id,
        command=found.argv[0] if found.argv else "",
        args=list(found.argv[1:]),
        cwd=found.cwd,
        pid=found.pid,
        running=found.running,
        exit_code=exit_code_of(found.exit),
        timed_out=bool(found.exit and found.exit.get("reason") == "deadline"),
        rows=found.rows,
        cols=found.cols,
        started_at=_ms(found.started_at) or 0,
        finished_at=_ms(found.ended_at),
        output=output,
    )
