"""From Hyperbrowser's requests to a START of the agent: argv, environment, user, directory, ids. Pure but for the ids.

A terminal's or process's id is the agent's tag for it, so that nothing about it is kept here.
"""

from __future__ import annotations

import re
import secrets
import shlex

from sandpty import config
from sandpty.server.dialects.hyperbrowser import models
from sandpty.server.dialects.hyperbrowser.errors import HyperbrowserError, bad_request, not_found
from sandpty.server.guest_defaults import default_cwd, default_env, default_user
from sandpty.wire.frames import NEVER_MS, Exit, ProcessInfo, Selector, Start, StartFlags
from sandpty.wire.verbs import Sandbox

TERMINAL, PROCESS = "pty", "proc"
_ID = re.compile(r"(pty|proc)_[0-9a-f]{16}")
_SHELL = "/bin/bash"


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(8)}"


def selector(kind: str, id_: str) -> Selector:
    """Names a terminal or process by its id. Raises HyperbrowserError 404 for what cannot be one."""
    match = _ID.fullmatch(id_)
    if match is None or match[1] != kind:
        raise missing(id_, kind)
    return Selector.tagged(id_)


def missing(id_: str, kind: str | None = None) -> HyperbrowserError:
    """A 404 in the words of what was asked for."""
    terminal = kind == TERMINAL or (kind is None and id_.startswith(TERMINAL))
    return not_found(f"{'Terminal' if terminal else 'Process'} {id_[:64]!r}")


def exit_code(status: Exit | None) -> int | None:
    """A signal's number counts from 128, as in a shell."""
    if status is None:
        return None
    return 128 + status.value if status.signalled else status.value


def _environment(sandbox: Sandbox, given: dict[str, str] | None, own: dict[str, str]) -> dict[str, str]:
    for key, value in (given or {}).items():
        if not key or "=" in key or "\0" in key + value:
            raise bad_request(f"not an environment variable: {key[:40]!r}")
    return {**own, **default_env(sandbox), **(given or {})}


def _text(text: str, what: str) -> str:
    if "\0" in text:
        raise bad_request(f"{what} holds a NUL byte")
    return text


def terminal_start(body: models.TerminalBody, sandbox: Sandbox) -> Start:
    """Raises HyperbrowserError 400. `command` and `args` are an argv, unless a shell is asked for."""
    argv = [_text(item, "an argument") for item in (body.command, *(body.args or ()))]
    if body.use_shell:
        argv = [_SHELL, "-lc", " ".join([body.command, *map(shlex.quote, body.args or ())])]
    own = {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
    return Start(
        argv=argv,
        env=_environment(sandbox, body.env, own),
        user=default_user(sandbox),
        cwd=_text(body.cwd or default_cwd(sandbox), "cwd"),
        tag=new_id(TERMINAL),
        flags=StartFlags.PTY | StartFlags.REPLY_ONLY,
        cols=body.cols or 80,
        rows=body.rows or 24,
        log_bytes=config.HYPERBROWSER_LOG_BYTES,
        deadline_ms=_milliseconds(body.timeout_ms),
    )


def process_start(body: models.ProcessBody, sandbox: Sandbox, flags: StartFlags) -> Start:
    """Raises HyperbrowserError 400. `command` is a line for a shell."""
    line = " ".join([_text(body.command, "the command"), *map(shlex.quote, body.args or ())])
    return Start(
        argv=[_SHELL, "-c", _text(line, "an argument")],
        env=_environment(sandbox, body.env, {"LANG": "C.UTF-8"}),
        user=_text(body.run_as or default_user(sandbox), "runAs"),
        cwd=_text(body.cwd or default_cwd(sandbox), "cwd"),
        tag=new_id(PROCESS),
        flags=flags,
        log_bytes=config.HYPERBROWSER_PROCESS_LOG_BYTES,
        deadline_ms=_milliseconds(timeout_ms(body)),
        window=config.ATTACH_WINDOW_BYTES,
        stall_ms=NEVER_MS,  # whoever starts a command and reads its output gets all of it
    )


def timeout_ms(body: models.ProcessBody | models.WaitBody) -> int | None:
    """What a body says of its time limit; 0 counts as none."""
    if body.timeout_sec:
        return int(body.timeout_sec * 1000)
    return body.timeout_ms or None


def _milliseconds(given: int | None) -> int:
    limit = config.TIMEOUT_MAX_S * 1000
    if given and given > limit:
        raise bad_request(f"timeoutMs cannot be greater than {limit}")
    return given or 0


def shown(text: str) -> str:
    """Guest text for JSON: what is not UTF-8 cannot be shown there as it is."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def directory(info: ProcessInfo) -> str:
    """Where a process was started, as well as it can be known from what was asked for."""
    home = "/root" if info.user in ("root", "0") else f"/home/{info.user}"
    cwd = shown(info.cwd)
    if cwd in ("", "~"):
        return home
    if cwd.startswith("~/"):
        return home + cwd[1:]
    return cwd if cwd.startswith("/") else f"{home}/{cwd}"
