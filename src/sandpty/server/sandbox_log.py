"""A sandbox's log: what became of it, and which processes started and ended in it.

Nothing is collected while it happens: the supervisor's journal has the sandbox's life (also after it), and the agent
knows its processes, those that have ended for an hour. Both outlive this server.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.registry import Registry
from sandpty.terminal import control
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import Exit, ExitReason, ProcessInfo
from sandpty.wire.verbs import HistoryArgs, HistoryEntry

Level = Literal["debug", "info", "warn", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warn", "error")
_BAD_ENDS = ("failed", "out_of_memory", "agent_exited", "host_restart")


@dataclass(frozen=True, slots=True)
class LogLine:
    """`at`: unix seconds. `fields`: the same as the message says, for programs."""

    at: float
    level: Level
    message: str
    logger: Literal["sandbox", "process"]
    fields: dict[str, str] = field(default_factory=dict)


async def sandbox_log(registry: Registry, sandbox_id: str, principal: Principal) -> list[LogLine]:
    """Oldest first. Raises no_such_sandbox when the principal never had it, supervisor_down.

    Of a sandbox that is paused or has ended only its own life is known.
    """
    entries = await registry.history(HistoryArgs(owner=principal.id, sandbox=sandbox_id))
    processes: Sequence[ProcessInfo] = []
    try:
        sandbox = registry.get(sandbox_id, principal)
    except SandptyError:
        if not entries:
            raise
    else:
        if sandbox.state == "running":
            processes = await _processes(sandbox.socket)
    lines = [_of_life(entry) for entry in entries]
    for info in processes:
        lines += _of_process(info)
    return sorted(lines, key=lambda line: line.at)


async def _processes(socket: str) -> Sequence[ProcessInfo]:
    try:
        return await control.list_processes(socket)
    except SandptyError:  # it is ending, or its agent is not well: what else is known is still told
        return []


def _of_life(entry: HistoryEntry) -> LogLine:
    level: Level = "error" if entry.kind == "ended" and entry.reason in _BAD_ENDS else "info"
    detail = f": {entry.reason.replace('_', ' ')}" if entry.kind == "ended" else ""
    if entry.kind == "paused" and entry.reason != "paused":
        detail = f" ({entry.reason.removeprefix('paused ')})"
    fields = {"event": entry.kind, "template": entry.template}
    if entry.reason:
        fields["reason"] = entry.reason
    return LogLine(entry.at, level, f"sandbox {entry.kind}{detail}", "sandbox", fields)


def _of_process(info: ProcessInfo) -> Iterator[LogLine]:
    command = _shown(shlex.join(info.argv))
    fields = {"pid": str(info.pid), "cmd": command, "user": _shown(info.user)}
    if info.tag:
        fields["tag"] = _shown(info.tag)
    yield LogLine(
        info.started_ms / 1000,
        "info",
        f"process {info.pid} started: {command}",
        "process",
        {"event": "start", **fields},
    )
    if info.exit is not None:
        how, level = _how_it_ended(info.exit)
        ended = {"event": "end", "status": how, **fields}
        yield LogLine(info.ended_ms / 1000, level, f"process {info.pid} ended: {how}", "process", ended)


def _how_it_ended(exit_: Exit) -> tuple[str, Level]:
    how = f"signal {exit_.value}" if exit_.signalled else f"exit status {exit_.value}"
    if exit_.reason == ExitReason.OUT_OF_MEMORY:
        return f"{how} (out of memory)", "error"
    if exit_.reason == ExitReason.DEADLINE:
        return f"{how} (deadline)", "warn"
    return how, "info" if not exit_.signalled and exit_.value == 0 else "warn"


def _shown(text: str) -> str:
    """Guests choose these bytes: whatever they are, they become text of a bounded length."""
    clean = text[: config.LOG_TEXT_CHARACTERS].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return clean if len(text) <= config.LOG_TEXT_CHARACTERS else clean + "..."
