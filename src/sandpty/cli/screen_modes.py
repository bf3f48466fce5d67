"""Which modes of the local terminal the remote program has switched, so that leaving can switch them back. Pure."""

from __future__ import annotations

import re

_PRIVATE_MODE = re.compile(rb"\x1b\[\?([0-9;]{1,32})([hl])")
_LONGEST_SEQUENCE = 36
_ALTERNATE_SCREEN = frozenset((47, 1047, 1049))
# Modes that make a shell's prompt unusable when they are left on (or, for 7 and 25, off).
_OFF_WHEN_LEAVING = (1, 9, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 2004, 2026, 47, 1047, 1049)
_ON_WHEN_LEAVING = (7, 25)
_KEYPAD_APPLICATION = b"\x1b="
_KEYPAD_NUMERIC = b"\x1b>"


class ScreenModes:
    """Follows output, chunk by chunk; a sequence may be cut anywhere."""

    def __init__(self) -> None:
        self._switched: dict[int, bool] = {}
        self._keypad = False
        self._tail = b""

    @property
    def alternate_screen(self) -> bool:
        """Whether a full-screen program such as vim is on."""
        return any(self._switched.get(mode, False) for mode in _ALTERNATE_SCREEN)

    def feed(self, output: bytes) -> None:
        if b"\x1b" not in output and not self._tail:
            return
        text = self._tail + output
        for matched in _PRIVATE_MODE.finditer(text):
            for mode in matched[1].split(b";"):
                if mode:
                    self._switched[int(mode)] = matched[2] == b"h"
        on, off = text.rfind(_KEYPAD_APPLICATION), text.rfind(_KEYPAD_NUMERIC)
        if on != off:
            self._keypad = on > off
        start = text.rfind(b"\x1b", max(0, len(text) - _LONGEST_SEQUENCE))
        # What may still become a sequence is kept; if it was one already, counting it again changes nothing.
        self._tail = text[start:] if start >= 0 else b""

    def entering(self) -> bytes:
        """What to write so that the terminal is again as the program has it, after `leaving`."""
        parts = [b"\x1b[?%d%c" % (mode, b"h" if on else b"l") for mode, on in sorted(self._switched.items())]
        if self._keypad:
            parts.append(_KEYPAD_APPLICATION)
        return b"".join(parts)

    def leaving(self) -> bytes:
        """What to write so that the terminal is as it was before the program; nothing when it is already."""
        off = [mode for mode in _OFF_WHEN_LEAVING if self._switched.get(mode)]
        on = [mode for mode in _ON_WHEN_LEAVING if self._switched.get(mode) is False]
        parts = [b"\x1b[?%dl" % mode for mode in off] + [b"\x1b[?%dh" % mode for mode in on]
        if self._keypad:
            parts.append(_KEYPAD_NUMERIC)
        # Colours too, whatever they are; asked for only by a program that stopped in the middle, harmless otherwise.
        return b"".join(parts) + b"\x1b[0m"
