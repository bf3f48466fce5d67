"""Output in chunks that clients decode one by one, so that each ends between characters."""

from __future__ import annotations

import base64

from sandpty.server.dialects.hyperbrowser.tokens import now_ms
from sandpty.wire.characters import incomplete_tail


def chunk(data: bytes, end: int) -> bytes:
    """One chunk as JSON without its braces. `seq` is the offset at which it ends: what a client's `cursor` says."""
    return b'"seq":%d,"data":"%s","timestamp":%d' % (end, base64.b64encode(data), now_ms())


class Cutter:
    """Keeps the first bytes of a character back until its last ones come."""

    def __init__(self, start: int) -> None:
        self.held = b""
        self._end = start  # of what was cut so far, with what is held

    def cut(self, data: bytes, end: int) -> tuple[bytes, int]:
        """What may go now, and the offset at which it ends. `end` is the offset at which `data` ends."""
        data = self.held + data
        tail = incomplete_tail(data)
        self.held, data = data[len(data) - tail :], data[: len(data) - tail]
        self._end = end
        return data, end - tail

    def rest(self) -> tuple[bytes, int]:
        """What is held: half a character is output too."""
        held, self.held = self.held, b""
        return held, self._end
