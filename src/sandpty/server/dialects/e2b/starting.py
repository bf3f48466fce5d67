"""From E2B's `StartRequest` to a START of the agent, and back from a failed one to E2B's words. Pure."""

from __future__ import annotations

import shlex

from sandpty import config
from sandpty.server.dialects.e2b import models
from sandpty.server.dialects.e2b.connect import ConnectError, error_from
from sandpty.server.dialects.e2b.selecting import number, window_size
from sandpty.server.guest_defaults import default_cwd, default_env
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import e2b_variables
from sandpty.wire.frames import NEVER_MS, ProcessInfo, Start, StartFlags
from sandpty.wire.verbs import Sandbox

_COMMAND_TEXT_MAX = 200


def sandbox_env(sandbox: Sandbox) -> dict[str, str]:
    """What every process of the sandbox is started with: E2B's own variables, the template's, those given at create."""
    return e2b_variables(sandbox.id, sandbox.template) | default_env(sandbox)


def _check_text(text: str, what: str) -> str:
    if "\0" in text:
        raise ConnectError("invalid_argument", f"{what} holds a NUL byte")
    return text


def _check_env(env: dict[str, str]) -> dict[str, str]:
    for key, value in env.items():
        if not key or "=" in key:
            raise ConnectError("invalid_argument", f"not the name of an environment variable: {key[:40]!r}")
        _check_text(key + value, f"environment variable {key[:40]!r}")
    return env


def start_of(request: models.StartRequest, sandbox: Sandbox, user: str, deadline_ms: int) -> Start:
    """Raises ConnectError invalid_argument."""
    process = request.process
    if process is None or not process.cmd:
        raise ConnectError("invalid_argument", "the request names no command")
    cwd = process.cwd or default_cwd(sandbox)
    if cwd.startswith("~") and cwd != "~" and not cwd.startswith("~/"):
        raise ConnectError("invalid_argument", f"cannot expand the home directory of another user: '{cwd[:200]}'")
    cols, rows, flags = 0, 0, StartFlags(0)
    if request.pty is not None:
        flags = StartFlags.PTY
        size = request.pty.size
        if size is not None and (number(size.cols, "cols") or number(size.rows, "rows")):
            cols, rows = window_size(size)
    elif request.stdin is not False:
        flags = StartFlags.STDIN
    return Start(
        argv=[_check_text(text, "an argument") for text in (process.cmd, *(process.args or ()))],
        env=sandbox_env(sandbox) | _check_env(process.envs or {}),
        user=_check_text(user, "the user name"),
        cwd=_check_text(cwd, "cwd"),
        tag=_check_text(request.tag or "", "the tag"),
        flags=flags,
        cols=cols,
        rows=rows,
        deadline_ms=deadline_ms,
        window=config.ATTACH_WINDOW_BYTES,
        stall_ms=reader_stall_ms(pty=request.pty is not None),
    )


def reader_stall_ms(*, pty: bool) -> int:
    """How long a reader that takes nothing holds the process back.

    A command's reader may come late (Python's handle reads only when iterated) and must find every byte; a terminal
    must not stand still for a viewer that fell asleep (the agent's default).
    """
    return 0 if pty else NEVER_MS


def start_error(error: SandptyError, start: Start) -> ConnectError:
    """What E2B says of a START that failed."""
    match error.reason.name:
        case "no_such_user":
            return ConnectError("unauthenticated", f"invalid username: '{start.user}'")
        case "bad_cwd":
            return ConnectError("invalid_argument", f"cwd '{start.cwd}' does not exist")
        case "start_failed":
            command = shlex.join(start.argv)[:_COMMAND_TEXT_MAX]
            if start.flags & StartFlags.PTY:
                return ConnectError("invalid_argument", f"error starting pty with command '{command}': {error.message}")
            return ConnectError("invalid_argument", f"error starting process '{command}': {error.message}")
    return error_from(error)


def listed(info: ProcessInfo, sandbox: Sandbox) -> models.ListedProcess:
    """An item of List: the configuration as it was asked for, without what the sandbox adds to it."""
    added = sandbox_env(sandbox)
    envs = {key: value for key, value in info.env.items() if added.get(key) != value}
    return models.ListedProcess(
        config=models.ListedConfig(
            cmd=info.argv[0] if info.argv else "", args=info.argv[1:], envs=envs, cwd=info.cwd or None
        ),
        pid=info.pid,
        tag=info.tag or None,
    )
