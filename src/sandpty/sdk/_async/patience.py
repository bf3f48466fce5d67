"""How long, and how often, a lost connection is tried again."""

from __future__ import annotations

import time

from sandpty.sdk._awaiting import async_sleep
from sandpty.wire.errors import SandptyError

RECONNECT_TIMEOUT_S = 60.0
BACKOFF_FIRST_S = 0.05
BACKOFF_MOST_S = 2.0
LOST = frozenset(("server_unreachable", "agent_unreachable", "supervisor_down"))


class AsyncPatience:
    """For one loss: pauses that double, until `timeout_s` are over."""

    def __init__(self, timeout_s: float) -> None:
        self._give_up_at = time.monotonic() + timeout_s
        self._delay_s = BACKOFF_FIRST_S

    async def pause(self, cause: SandptyError) -> None:
        """Before the next attempt. Raises `cause` when there is no time for one."""
        import random  # which takes a while to load, and few connections are ever lost

        if time.monotonic() + self._delay_s > self._give_up_at:
            raise cause
        await async_sleep(self._delay_s * random.uniform(0.5, 1.0))
        self._delay_s = min(self._delay_s * 2, BACKOFF_MOST_S)
