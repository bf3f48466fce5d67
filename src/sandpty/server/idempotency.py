"""Creating once though asked twice: a client that got no answer repeats its request under the same key.

The key is kept, hashed, with the sandbox, so that a restart of the server forgets none; what is under way is here.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

import msgspec

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox


class Key(msgspec.Struct, frozen=True):
    """Kept in a sandbox's annotations: `id` says whose key it is and which, `request` what was asked for with it."""

    id: str
    request: str

    @classmethod
    def of(cls, principal: Principal, key: str, request: bytes) -> Key:
        """Raises bad_argument."""
        if len(key) > config.IDEMPOTENCY_KEY_CHARACTERS:
            text = f"an idempotency key has {config.IDEMPOTENCY_KEY_CHARACTERS} characters at most"
            raise SandptyError("bad_argument", text)
        return cls(_hash(principal.id.encode() + b"\0" + key.encode("utf-8", "surrogateescape")), _hash(request))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


class Once:
    """`find` looks for a living sandbox that was made under a key's id."""

    def __init__(self, find: Callable[[str], Sandbox | None]) -> None:
        self._find = find
        self._making: dict[str, tuple[str, asyncio.Task[Sandbox]]] = {}

    async def create(self, key: Key, make: Callable[[], Awaitable[Sandbox]]) -> Sandbox:
        """What `make` makes, or made when it was first asked. Raises conflict when something else was asked then."""
        if (made := self._find(key.id)) is not None:
            _check(key, made.annotations["idempotency"]["request"])
            return made
        under_way = self._making.get(key.id)
        if under_way is None:
            # Goes on when the first client goes away: the second one is about to come for it.
            task = asyncio.ensure_future(_awaited(make))
            under_way = self._making[key.id] = key.request, task
            task.add_done_callback(lambda _: self._making.pop(key.id, None))
        _check(key, under_way[0])
        return await asyncio.shield(under_way[1])

    def close(self) -> None:
        for _, task in self._making.values():
            task.cancel()


async def _awaited(make: Callable[[], Awaitable[Sandbox]]) -> Sandbox:
    return await make()


def _check(key: Key, request: str) -> None:
    if key.request != request:
        raise SandptyError("conflict", "this idempotency key was used with another request")
