"""Sandboxes that have ended, for clients that still ask about them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable

from sandpty import config
from sandpty.wire.verbs import EndedSandbox, Sandbox


class EndedSandboxes:
    """The newest ENDED_SANDBOXES_KEPT. The supervisor has them on disk, for the next server."""

    def __init__(self) -> None:
        self._ended: OrderedDict[str, EndedSandbox] = OrderedDict()

    def learn(self, ended: Iterable[EndedSandbox]) -> None:
        """What the supervisor remembers, oldest first. What is known already is known better."""
        before = {item.sandbox.id: item for item in ended}
        self._ended = OrderedDict({**before, **self._ended})
        self._trim()

    def add(self, sandbox: Sandbox) -> None:
        self._ended[sandbox.id] = EndedSandbox(sandbox=sandbox, at=time.time())
        self._trim()

    def _trim(self) -> None:
        while len(self._ended) > config.ENDED_SANDBOXES_KEPT:
            self._ended.popitem(last=False)

    def discard(self, sandbox_id: str) -> None:
        """It lives after all."""
        self._ended.pop(sandbox_id, None)

    def knows(self, sandbox_id: str) -> bool:
        return sandbox_id in self._ended

    def get(self, sandbox_id: str, owner: str) -> EndedSandbox | None:
        found = self._ended.get(sandbox_id)
        return found if found is not None and found.sandbox.owner == owner else None

    def list(self, owner: str) -> list[EndedSandbox]:
        """Of one owner, in the order in which they ended."""
        return [item for item in self._ended.values() if item.sandbox.owner == owner]
