"""Shells that are started before anybody asked.

An agent is told of them before it even runs: a shell then starts beside everything that a create still has to do.
docs/topics/warm.md says when a START gets one of them.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from sandpty.supervisor.state import Meta
from sandpty.wire import frames
from sandpty.wire.first_shell import FirstShell, e2b_variables, first_shell
from sandpty.wire.interpreter import interpreter_start
from sandpty.wire.template_commands import START_TAG, command_of


def start_ahead(meta: Meta, argv: tuple[str, ...]) -> None:
    """Have the agent start a program that serves, in a warm sandbox. Raises OSError; nobody waits for it to start."""
    start = frames.encode_start(interpreter_start(argv, e2b_variables(meta.id, meta.template)))
    _leave(meta, start)


def park(meta: Meta, shells: Sequence[FirstShell]) -> None:
    """Leave the wish in the queue of the sandbox's socket, which must be listening. Raises OSError.

    Nobody waits for an answer: a shell that cannot be started in advance fails when it is asked for, and says why.
    """
    if not shells:
        return
    wishes = b"".join(frames.encode_park(first_shell(kind, meta.id, meta.template)) for kind in shells)
    _leave(meta, wishes)


def run_from_boot(meta: Meta) -> None:
    """Leave the template's start command, if it has one, in the queue of the sandbox's socket. Raises OSError.

    Whether it does what it is meant to do is what the template's ready command tells.
    """
    if not meta.defaults.start_cmd:
        return
    env = e2b_variables(meta.id, meta.template) | meta.defaults.env
    _leave(meta, frames.encode_start(command_of(meta.defaults, meta.defaults.start_cmd, env, START_TAG)))


def _leave(meta: Meta, message: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        connection.connect(meta.socket)
        connection.sendall(frames.encode_hello() + message)
