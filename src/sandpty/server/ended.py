"""Sandboxes that have ended, for clients that still ask about them."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from sandpty import config
from sandpty.wire.verbs import Sandbox


@dataclass(frozen=True, slots=True)
class EndedSandbox:
    """As it was last, and when it ended (unix seconds)."""

    sandbox: Sandbox
    ended_at: float


class EndedSandboxes:
    """The newest ENDED_SANDBOXES_KEPT, in memory: a convenience, not a record."""

    def __init__(self) -> None:
        self._ended: OrderedDict[str, EndedSandbox] = OrderedDict()

    def add(self, sandbox: Sandbox) -> None:
        self._ended[sandbox.id] = EndedSandbox(sandbox, time.time())
        while len(self._ended) > config.ENDED_SANDBOXES_KEPT:
            self._ended.popitem(last=False)

    def discard(self, sandbox_id: str) -> None:
        """It lives after all."""
        self._ended.pop(sandbox_id, None)

    def get(self, sandbox_id: str, owner: str) -> EndedSandbox | None:
        found = self._ended.get(sandbox_id)
        return found if found is not None and found.sandbox.owner == owner else None

    def list(self, owner: str) -> list[EndedSandbox]:
        """Of one owner, in the order in which they ended."""
        return [item for item in self._ended.values() if item.sandbox.owner == owner]
