"""Cuts a stream of bytes so that no UTF-8 character lies in two pieces."""

from __future__ import annotations

from sandpty.wire.characters import incomplete_tail


class WholeCharacters:
    """`feed` gives what is complete; what is no UTF-8 passes as it is, never held back for more than a character."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """All that was fed so far and not given out, up to the last whole character."""
        data = self._held + data
        end = len(data) - incomplete_tail(data)
        self._held = data[end:]
        return data[:end]

    def finish(self) -> bytes:
        """What never became a character."""
        held, self._held = self._held, b""
        return held
