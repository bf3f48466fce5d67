"""At a sandbox's `end_at`: kill it, or pause it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from sandpty.isolation.background import Background
from sandpty.supervisor.entry import Entry
from sandpty.supervisor.lifecycle import Sandboxes

log = logging.getLogger(__name__)
LOOK_AGAIN_S = 30.0  # the wall clock may jump; nothing is later than this for it
RETRY_MIN_S = 5.0  # after an expiry that failed ...
RETRY_MAX_S = 300.0  # ... again and again


class Deadlines:
    """`run` it as a task."""

    def __init__(self, sandboxes: Sandboxes, background: Background) -> None:
        self._sandboxes = sandboxes
        self._background = background
        self._expiring: set[str] = set()
        self._pauses_s: dict[str, float] = {}  # of sandboxes whose expiry failed

    async def run(self) -> None:
        changed = self._sandboxes.deadline_changed
        while True:
            changed.clear()
            now = time.time()
            wait_s = LOOK_AGAIN_S
            for entry in list(self._sandboxes.entries.values()):
                if entry.meta.phase == "running" and entry.ended is None and entry.meta.id not in self._expiring:
                    if entry.meta.end_at <= now:
                        self._expiring.add(entry.meta.id)
                        self._background.spawn(self._expire(entry), f"expire {entry.meta.id}")
                    else:
                        wait_s = min(wait_s, entry.meta.end_at - now)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await changed.wait()

    async def _expire(self, entry: Entry) -> None:
        meta = entry.meta
        try:
            await self._sandboxes.expire(entry)
            self._pauses_s.pop(meta.id, None)
        except Exception as error:  # whatever it was: tried at once again it would only fail again, in a circle
            pause_s = self._pauses_s.get(meta.id, RETRY_MIN_S)
            self._pauses_s[meta.id] = min(pause_s * 2, RETRY_MAX_S)
            log.error("expiry of %s failed: %r; again in %g s", meta.id, error, pause_s)
            await asyncio.sleep(pause_s)
        finally:
            self._expiring.discard(meta.id)
            if entry.ended is not None:
                self._pauses_s.pop(meta.id, None)
            self._sandboxes.deadline_changed.set()
