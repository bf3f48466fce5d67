"""The shell that each dialect's clients are most likely to ask for first, told in one place: the server builds STARTs
with it, and the supervisor has the agent start the same shell in advance (docs/topics/warm.md)."""

from __future__ import annotations

from typing import Literal, TypeAlias

from sandpty.wire.types import Start, StartFlags

FirstShell: TypeAlias = Literal["native", "e2b"]
FIRST_SHELLS: tuple[FirstShell, ...] = ("native", "e2b")
USER = "user"
COLS, ROWS = 80, 24
LOGIN_SHELL = ("/bin/bash", "-i", "-l")  # as E2B's SDKs and `sandpty shell` ask for it
TERMINAL = {"TERM": "xterm-256color", "LANG": "C.UTF-8"}  # what a terminal is given unless it asks for another


def e2b_variables(sandbox_id: str, template: str) -> dict[str, str]:
    """E2B's own environment variables, in every process that its clients start."""
    return {"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": sandbox_id, "E2B_TEMPLATE_ID": template}


def first_shell(kind: FirstShell, sandbox_id: str, template: str) -> Start:
    """What the START of a first terminal asks for when nothing is configured."""
    env = dict(TERMINAL)
    if kind == "e2b":
        env |= {"LC_ALL": "C.UTF-8", **e2b_variables(sandbox_id, template)}
    return Start(argv=LOGIN_SHELL, env=env, user=USER, flags=StartFlags.PTY, cols=COLS, rows=ROWS)
