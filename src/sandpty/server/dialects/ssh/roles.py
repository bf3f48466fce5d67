"""Who may do what over SSH: one table for channels, requests and what is done in sessions.

A viewer (`ID+ro`, `ID+42+ro`) only looks: at a terminal, at files. What is not in the table nobody may: what a newer
asyncssh comes to understand is refused until it is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum

from sandpty.wire.errors import SandptyError

ONLY_LOOKS = "+ro may only look"


class Role(IntEnum):
    """Each may do what those before it may."""

    VIEWER = 1
    WRITER = 2
    NOBODY = 3


class Kind(Enum):
    """What is asked for: names of RFC 4254 and of OpenSSH's PROTOCOL, but for DEED."""

    CHANNEL = "channel"
    GLOBAL_REQUEST = "global request"
    SESSION_REQUEST = "request of a session"
    DEED = "what is done in a session"


_TABLE: Mapping[Kind, Mapping[str, Role]] = {
    Kind.CHANNEL: {
        "session": Role.VIEWER,
        "direct-tcpip": Role.WRITER,
        "direct-streamlocal@openssh.com": Role.WRITER,
        "tun@openssh.com": Role.NOBODY,
    },
    Kind.GLOBAL_REQUEST: {
        "tcpip-forward": Role.WRITER,
        "cancel-tcpip-forward": Role.WRITER,
        "streamlocal-forward@openssh.com": Role.WRITER,
        "cancel-streamlocal-forward@openssh.com": Role.WRITER,
        "hostkeys-prove-00@openssh.com": Role.VIEWER,
        "keepalive@openssh.com": Role.VIEWER,
    },
    Kind.SESSION_REQUEST: {
        "pty-req": Role.VIEWER,
        "env": Role.VIEWER,  # for a process of one's own: a viewer has none
        "shell": Role.VIEWER,
        "exec": Role.VIEWER,  # the older scp is one; what it may is a deed
        "subsystem": Role.VIEWER,
        "keepalive@openssh.com": Role.VIEWER,
        "window-change": Role.WRITER,
        "signal": Role.WRITER,
        "break": Role.WRITER,
        "auth-agent-req@openssh.com": Role.WRITER,
        "x11-req": Role.NOBODY,
    },
    Kind.DEED: {
        "type": Role.WRITER,
        "start a process": Role.WRITER,
        "change files": Role.WRITER,
    },
}


def may(role: Role, kind: Kind, name: str) -> bool:
    return role >= _TABLE[kind].get(name, Role.NOBODY)


def check(role: Role, deed: str) -> None:
    """Raises read_only."""
    if not may(role, Kind.DEED, deed):
        raise SandptyError("read_only", ONLY_LOOKS)


def names(kind: Kind) -> frozenset[str]:
    """What the table knows, offered or not."""
    return frozenset(_TABLE[kind])
