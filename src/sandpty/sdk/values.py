"""What a server answers, as values. Members that this version does not know are left out, so servers may add some."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, TypeVar

from sandpty.wire.frames import Exit, ExitReason

Json = Mapping[str, Any]
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSize:
    """Of a terminal; each 1 .. 10,000."""

    cols: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxInfo:
    """Times are RFC 3339; `state` is "running" or "paused"; `tier` names the isolation that really holds."""

    id: str
    template: str = ""
    state: str = "running"
    tier: str = ""
    started_at: str = ""
    end_at: str = ""
    on_timeout: str = "kill"
    internet: bool = True
    network: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    auto_resume: bool = False
    memory: bool = True  # False: paused, and its processes are gone
    volumes: Sequence[Mapping[str, Any]] = ()  # each `id`, `name`, `path`, `read_only`

    @property
    def left_s(self) -> float:
        """Seconds until its end, by this machine's clock."""
        return datetime.fromisoformat(self.end_at).timestamp() - time.time() if self.end_at else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A sandbox's files at one moment; `sandbox` is whose."""

    id: str
    name: str = ""
    sandbox: str = ""
    template: str = ""
    created_at: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A directory that outlives sandboxes. `disk_mb`: what it can hold; `mounted_by`: ids of sandboxes."""

    id: str
    name: str
    created_at: str = ""
    disk_mb: int = 0
    size_bytes: int = 0
    mounted_by: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedProcess:
    """`process` is our id, unique in its sandbox and never used again; `pid` is the guest's."""

    process: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A process that runs, or ended lately. `log_start` and `log_end` are offsets of what is kept of its output.

    Times are RFC 3339. `exit` is None while it runs, then `{"code", "signal", "reason", "core_dumped", "end"}`.
    """

    process: int
    pid: int
    tag: str = ""
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    cwd: str = ""
    pty: bool = False
    running: bool = False
    cols: int = 0
    rows: int = 0
    log_start: int = 0
    log_end: int = 0
    started_at: str | None = None
    ended_at: str | None = None
    exit: Mapping[str, Any] | None = None
    attachments: int = 0


def from_json(kind: type[_Value], body: Json) -> _Value:
    """A value of dataclass `kind` from the members it knows."""
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    values = {name: value for name, value in body.items() if name in known}
    if isinstance(values.get("argv"), list):
        values["argv"] = tuple(values["argv"])
    return kind(**values)


def start_body(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    user: str = "",
    cwd: str = "",
    tag: str = "",
    pty: WindowSize | None = None,
    stdin: bool = True,
    deadline_s: float = 0,
    log_bytes: int = 0,
) -> dict[str, Any]:
    """What a server is asked to start: the body of `POST …/processes`."""
    return {
        "argv": list(argv),
        "env": dict(env or {}),
        "user": user,
        "cwd": cwd,
        "tag": tag,
        "pty": {"cols": pty.cols, "rows": pty.rows} if pty else None,
        "stdin": stdin,
        "deadline_s": deadline_s,
        "log_bytes": log_bytes,
    }


def exit_status(exit_: Exit) -> int:
    """What a shell would say: the exit code, or 128 + the signal's number; 124 when its deadline ended it."""
    if exit_.reason is ExitReason.DEADLINE:
        return 124
    return 128 + exit_.value if exit_.signalled else exit_.value


@dataclass(frozen=True, slots=True)
class PtySize:
    """Rows first, as E2B's and Novita's SDKs have it."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """How a process ended. `exit_code` is 128 + the signal's number when a signal ended it."""

    exit_code: int
    stdout: str = ""
    stderr: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandInfo:
    """A process that runs."""

    pid: int
    tag: str | None
    cmd: str
    args: list[str]
    envs: Mapping[str, str]
    cwd: str | None
