"""How a template's commands are run, told in one place: the supervisor starts the start command at boot, the server
runs ready commands and the steps of builds."""

from __future__ import annotations

import shlex

from sandpty.wire.first_shell import USER
from sandpty.wire.templates import Defaults
from sandpty.wire.types import Start, StartFlags

SHELL = ("/bin/bash", "-l", "-c")  # as E2B runs them
START_TAG = "start_cmd"


def command_line(line: str, defaults: Defaults) -> tuple[str, ...]:
    """The argv of a command line. A login shell sets PATH anew: one that the template sets is set again after that."""
    path = defaults.env.get("PATH")
    return (*SHELL, line if path is None else f"export PATH={shlex.quote(path)}\n{line}")


def command_of(
    defaults: Defaults, line: str, env: dict[str, str], tag: str = "", flags: StartFlags = StartFlags.REPLY_ONLY
) -> Start:
    """The START of a command line, as the template's user, in its directory, without stdin."""
    return Start(
        argv=command_line(line, defaults),
        env=env,
        user=defaults.user or USER,
        cwd=defaults.workdir,
        tag=tag,
        flags=flags,
    )
