"""Signals by the names and numbers that clients give."""

from __future__ import annotations

import signal as signals

from sandpty import config
from sandpty.wire.errors import SandptyError


def signal_number(name: str | int) -> int:
    """`TERM`, `SIGTERM`, `15` or 15. Raises bad_argument."""
    if isinstance(name, int) or (name.isascii() and name.isdigit()):
        number = int(name)
        if 1 <= number <= config.SIGNAL_MAX:
            return number
        raise SandptyError("bad_argument", f"there is no signal {name}")
    upper = name.upper()
    found = getattr(signals, upper if upper.startswith("SIG") else f"SIG{upper}", None)
    if not isinstance(found, signals.Signals):
        raise SandptyError("bad_argument", f"there is no signal {name[:32]!r}")
    return found
