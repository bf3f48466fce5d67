"""What the native dialect's JSON looks like: request bodies and answers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from sandpty.wire.frames import Exit, ProcessFlags, ProcessInfo
from sandpty.wire.network_policy import NetworkPolicy
from sandpty.wire.templates import Template
from sandpty.wire.verbs import Limits, Sandbox, Snapshot, Volume


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A misspelt field is an error, not a default."""


class MountBody(_Body, frozen=True):
    """`volume` by name or id."""

    volume: str
    path: str
    read_only: bool = False


class VolumeBody(_Body, frozen=True):
    """`disk_mb` 0: the server's default."""

    name: str
    disk_mb: int = 0


class CreateBody(_Body, frozen=True):
    """`timeout_s` seconds from now the sandbox is killed or paused (`on_timeout`)."""

    template: str = "base"
    timeout_s: float = 300
    on_timeout: Literal["kill", "pause", "pause_disk"] = "kill"
    metadata: dict[str, str] = {}
    env: dict[str, str] = {}
    internet: bool = True
    auto_resume: bool = False
    network: NetworkPolicy = NetworkPolicy()
    limits: Limits | None = None
    volumes: tuple[MountBody, ...] = ()


class NetworkBody(_Body, frozen=True):
    """Replaces what was there."""

    internet: bool = True
    network: NetworkPolicy = NetworkPolicy()


class PauseBody(_Body, frozen=True):
    memory: bool = True


class ResumeBody(_Body, frozen=True):
    timeout_s: float = 300
    memory: bool = True


class SnapshotBody(_Body, frozen=True):
    name: str = ""


class ForkBody(_Body, frozen=True):
    count: int = 1
    timeout_s: float = 300


class SshBody(_Body, frozen=True):
    """`public_key`: a line as in `id_ed25519.pub`."""

    public_key: str


class TimeoutBody(_Body, frozen=True):
    timeout_s: float = 300


class WindowSize(_Body, frozen=True):
    cols: int
    rows: int


class StartBody(_Body, frozen=True):
    """`pty` null: stdout and stderr are pipes. `deadline_s` 0: none. `cwd` empty: the user's home.

    `user` empty: `user`, or, where nothing isolates, whoever runs the agent.
    """

    argv: list[str]
    env: dict[str, str] = {}
    user: str = ""
    cwd: str = ""
    tag: str = ""
    pty: WindowSize | None = None
    stdin: bool = True
    deadline_s: float = 0
    log_bytes: int = 0


class OpenBody(_Body, frozen=True):
    """A process in a sandbox that is made for it."""

    process: StartBody
    sandbox: CreateBody = CreateBody()


class SignalBody(_Body, frozen=True):
    """`signal` by name, with or without SIG, or by number."""

    signal: str | int = "TERM"
    target: Literal["leader", "group", "tree"] = "group"


def when(unix_s: float) -> str | None:
    """RFC 3339 in UTC; None for 0."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z") if unix_s else None


def sandbox_json(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "id": sandbox.id,
        "template": sandbox.annotations.get("template", sandbox.template),
        "template_id": sandbox.template,
        "state": sandbox.state,
        "tier": sandbox.tier,
        "started_at": when(sandbox.started_at),
        "end_at": when(sandbox.end_at),
        "on_timeout": sandbox.on_timeout,
        "limits": msgspec.to_builtins(sandbox.limits),
        "internet": sandbox.internet,
        "auto_resume": bool(sandbox.annotations.get("auto_resume")),
        "memory": sandbox.state == "running" or sandbox.paused_memory,
        "network": msgspec.to_builtins(sandbox.network),
        "metadata": sandbox.annotations.get("metadata", {}),
        "boot_id": sandbox.boot_id,
        "volumes": [
            {"id": mount.volume, "name": mount.name, "path": mount.path, "read_only": mount.read_only}
            for mount in sandbox.volumes
        ],
    }


def volume_json(volume: Volume) -> dict[str, Any]:
    return {
        "id": volume.id,
        "name": volume.name,
        "created_at": when(volume.created_at),
        "disk_mb": volume.disk_mb,
        "size_bytes": volume.size_bytes,
        "mounted_by": volume.mounted_by,
    }


def template_json(template: Template) -> dict[str, Any]:
    return {
        "id": template.id,
        "name": template.name,
        "aliases": template.aliases,
        "state": template.state,
        "detail": template.detail,
        "public": template.public,
        "created_at": template.created_at,
        "size_bytes": template.size_bytes,
    }


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "id": snapshot.id,
        "name": snapshot.name,
        "sandbox": snapshot.sandbox_id,
        "template": snapshot.template,
        "created_at": when(snapshot.created_at),
        "size_bytes": snapshot.size_bytes,
    }


def exit_json(exit_: Exit) -> dict[str, Any]:
    return {
        "code": None if exit_.signalled else exit_.value,
        "signal": exit_.value if exit_.signalled else None,
        "reason": exit_.reason.name.lower(),
        "core_dumped": exit_.core_dumped,
        "end": exit_.end,
    }


def _shown(text: str) -> str:
    """Guest text for JSON: what is not UTF-8 cannot be shown there as it is."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def process_json(info: ProcessInfo) -> dict[str, Any]:
    return {
        "process": info.process,
        "pid": info.pid,
        "tag": _shown(info.tag),
        "argv": [_shown(item) for item in info.argv],
        "env": {_shown(key): _shown(value) for key, value in info.env.items()},
        "user": _shown(info.user),
        "cwd": _shown(info.cwd),
        "pty": bool(info.flags & ProcessFlags.PTY),
        "running": bool(info.flags & ProcessFlags.RUNNING),
        "stdin_open": bool(info.flags & ProcessFlags.STDIN_OPEN),
        "cols": info.cols,
        "rows": info.rows,
        "log_start": info.start,
        "log_end": info.end,
        "started_at": when(info.started_ms / 1000),
        "ended_at": when(info.ended_ms / 1000),
        "exit": exit_json(info.exit) if info.exit else None,
        "attachments": info.attachments,
    }
