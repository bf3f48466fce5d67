"""What a process of a sandbox gets when whoever starts it says nothing: from its template, and from its create."""

from __future__ import annotations

import os

from sandpty.server.egress_trust import VARIABLES
from sandpty.wire.first_shell import USER
from sandpty.wire.verbs import Sandbox


def default_user(sandbox: Sandbox) -> str:
    """Whom a process runs as when nobody is named: the template's user; without isolation, the agent's own account."""
    if sandbox.tier != "process":
        return sandbox.defaults.user or USER
    try:
        return str(os.stat(f"/proc/{sandbox.pid}").st_uid)
    except OSError:
        return USER  # it has just ended: the start will say so


def default_env(sandbox: Sandbox) -> dict[str, str]:
    """What its network policy needs, the template's variables, then those given at create."""
    trust = VARIABLES if sandbox.network.headers else {}
    return {**trust, **sandbox.defaults.env, **(sandbox.annotations.get("env") or {})}


def default_cwd(sandbox: Sandbox) -> str:
    """The template's directory; "" for the home of the user."""
    return sandbox.defaults.workdir
