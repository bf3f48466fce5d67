"""User names: which sandbox, which terminal in it, as whom. Pure.

ID              the person's own newest terminal that nobody looks at, else a new one; commands and files
ID+new          a new terminal
ID+42           process 42, whoever started it
ID+42+ro        look at it, type nothing
ID+user=root    as another user of the sandbox
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sandpty.server.dialects.ssh.roles import Role
from sandpty.wire.errors import SandptyError

_PROCESS = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Login:
    """`process`: to join; `user`: of the guest, "" for its usual one."""

    sandbox: str
    process: int | None = None
    new: bool = False
    read_only: bool = False
    user: str = ""

    @property
    def role(self) -> Role:
        return Role.VIEWER if self.read_only else Role.WRITER

    @property
    def joins(self) -> bool:
        """Whether a process that is there already was asked for."""
        return self.process is not None or self.read_only


def parse(name: str) -> Login:
    """Raises bad_argument for what cannot be a user name here."""
    sandbox, *words = name.split("+")
    if not sandbox:
        raise SandptyError("bad_argument", "the user name is the ID of a sandbox: ssh ID@host")
    process: int | None = None
    user = ""
    flags: set[str] = set()
    for word in words:
        if _PROCESS.fullmatch(word):
            process = int(word)
        elif word.startswith("user="):
            user = word.removeprefix("user=")[:256]
        elif word in ("new", "ro"):
            flags.add(word)
        else:
            raise SandptyError(
                "bad_argument", f"{word[:40]!r} after the ID is none of new, ro, user=NAME and a process's number"
            )
    if "new" in flags and (process is not None or "ro" in flags):
        raise SandptyError("bad_argument", "`new` starts a terminal; a number and `ro` join one that is there")
    return Login(sandbox, process, "new" in flags, "ro" in flags, user)
