"""Who acts on a sandbox's files: root, as in E2B; a user says whose home `~` is, and who owns what is made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from sandpty.server.context import Context
from sandpty.server.files.paths import expand
from sandpty.server.guest_defaults import default_user
from sandpty.terminal.files import Account, Files
from sandpty.wire.verbs import Sandbox

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Acting:
    """A connection to the sandbox's files, and the user it is used for."""

    files: Files
    account: Account

    def path(self, given: str) -> str:
        """Raises bad_path."""
        return expand(given, self.account)


def acting_user(sandbox: Sandbox) -> str:
    """Root; without isolation the agent's own account, which may be nobody else."""
    return "root" if sandbox.tier != "process" else default_user(sandbox)


@asynccontextmanager
async def acting_for(context: Context, sandbox: Sandbox, user: str) -> AsyncIterator[Acting]:
    """Raises no_such_user, and as FileConnections.lease."""
    async with context.files.lease(sandbox, acting_user(sandbox)) as files:
        yield Acting(files, await files.look_up(user))


async def act(context: Context, sandbox: Sandbox, user: str, do: Callable[[Acting], Awaitable[T]]) -> T:
    """As `acting_for`, for what begins with a request of one answer: `do` may be called again, see `with_account`."""
    async with context.files.lease(sandbox, acting_user(sandbox)) as files:
        return await files.with_account(user, lambda account: do(Acting(files, account)))
