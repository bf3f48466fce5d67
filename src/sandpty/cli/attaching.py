"""A terminal of a sandbox at the local terminal: what `shell`, `attach` and `exec -t` have in common."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from sandpty.cli.connection import Duration
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from sandpty.cli.conversation import Outcome
    from sandpty.cli.local_terminal import LocalTerminal
    from sandpty.sdk import AsyncClient, ProcessInfo
    from sandpty.wire.frames import From

RECONNECT_TIMEOUT_S = 60.0
# Kept from the sandbox, where it could not mean the same: see `terminal_env`.
_PASSED = ("TERM", "COLORTERM")

reconnect_option = click.option(
    "--reconnect-timeout",
    "reconnect_timeout_s",
    type=Duration(),
    metavar="TIME",
    default=RECONNECT_TIMEOUT_S,
    help="How long to try when the connection is lost. [default: 60s]",
)
read_only_option = click.option("--read-only", is_flag=True, help="Look, do not type. Ctrl-C leaves too.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How to be in a terminal. `fresh`: it was just started, or all it has said is wanted, not the present screen."""

    read_only: bool = False
    fresh: bool = False
    reconnect_timeout_s: float = RECONNECT_TIMEOUT_S


def local_terminal() -> LocalTerminal:
    """The terminal the user sits at. Raises unsupported where systems have none of the kind we know."""
    try:
        from sandpty.cli.local_terminal import LocalTerminal
    except ImportError:
        message = (
            "interactive terminals need a POSIX system (on Windows: WSL); `sandpty exec` without -t works here too"
        )
        raise SandptyError("unsupported", message) from None
    return LocalTerminal()


def terminal_env() -> dict[str, str]:
    """What a program in the sandbox has to know of the terminal that it will be seen on."""
    return {name: os.environ[name] for name in _PASSED if os.environ.get(name)}


async def converse(client: AsyncClient, sandbox_id: str, process: int, local: LocalTerminal, manner: Manner) -> Outcome:
    """Join both terminals until the program ends or the user leaves."""
    from sandpty.cli import remembered
    from sandpty.cli.conversation import Conversation
    from sandpty.sdk import AsyncTerminal
    from sandpty.wire.frames import Exit, From

    conversation = Conversation(local, read_only=manner.read_only)

    def terminal(origin: From, value: int) -> AsyncTerminal:
        return AsyncTerminal(
            client,
            sandbox_id,
            process,
            origin=origin,
            value=value,
            read_only=manner.read_only,
            reconnect_timeout_s=manner.reconnect_timeout_s,
            on_connection=conversation.on_connection,
        )

    # A screenful gives the picture to come back to; from where the user left when that shows more.
    view = terminal(From.OFFSET, 0) if manner.fresh else terminal(From.SCREEN, 0)
    await view.open()
    seen = None if manner.fresh else remembered.recall(sandbox_id, process)
    if seen is not None and seen < view.info.start:
        await view.close()
        view = terminal(From.OFFSET, seen)
        await view.open()
    outcome: Outcome | None = None
    try:
        outcome = await conversation.run(view)
    finally:
        await view.close()
        if isinstance(outcome, Exit):
            remembered.forget(sandbox_id, process)
        else:
            remembered.remember(sandbox_id, process, conversation.offset)
    return outcome


def status_of(outcome: Outcome, how_to_return: str) -> int:
    """The exit status; says how to come back when the user has left."""
    from sandpty.cli.conversation import Detached
    from sandpty.sdk.values import exit_status

    if not isinstance(outcome, Detached):
        return exit_status(outcome)
    click.echo(f"\ndetached; the program goes on: {how_to_return}", err=True)
    return 128 + outcome.signal if outcome.signal else 0


async def running_terminals(client: AsyncClient, sandbox_id: str) -> list[ProcessInfo]:
    """Oldest first."""
    return [each for each in await client.list_processes(sandbox_id) if each.pty and each.running]
