"""The escape keys of `sandpty shell`, as ssh has them: Enter, then ~, then a letter. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

ESCAPE = ord("~")
_LINE_ENDS = frozenset(b"\r\n")


class Action(Enum):
    """What an escape asks for."""

    DETACH = auto()
    SUSPEND = auto()
    HELP = auto()


HELP_TEXT = "after Enter:  ~.  detach, the program goes on   ~^Z  suspend   ~?  this help   ~~  a tilde"
_ACTIONS = {ord("."): Action.DETACH, 0x1A: Action.SUSPEND, ord("?"): Action.HELP}


@dataclass(slots=True)
class EscapeKeys:
    """Takes what was typed apart: what is for the program, and what is for us. A paste is typed text like any other."""

    _at_line_start: bool = True
    _after_escape: bool = False
    _pending: bytearray = field(default_factory=bytearray)

    def feed(self, typed: bytes) -> list[bytes | Action]:
        """In order: bytes to send, and actions. After DETACH nothing that was typed behind it is looked at."""
        parts: list[bytes | Action] = []
        for key in typed:
            action = self._take(key)
            if action is None:
                continue
            if self._pending:
                parts.append(bytes(self._pending))
                self._pending.clear()
            parts.append(action)
            if action is Action.DETACH:
                break
        if self._pending:
            parts.append(bytes(self._pending))
            self._pending.clear()
        return parts

    def _take(self, key: int) -> Action | None:
        if self._after_escape:
            self._after_escape = False
            if key in _ACTIONS:
                self._at_line_start = True
                return _ACTIONS[key]
            self._pending.append(ESCAPE)
            if key == ESCAPE:
                self._at_line_start = False
                return None
        elif key == ESCAPE and self._at_line_start:
            self._after_escape = True
            return None
        self._pending.append(key)
        self._at_line_start = key in _LINE_ENDS
        return None
