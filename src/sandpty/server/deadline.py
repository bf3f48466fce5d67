"""When a sandbox ends, as clients say it: seconds from now."""

from __future__ import annotations

import time

from sandpty import config
from sandpty.wire.errors import SandptyError


def end_at(timeout_s: float) -> float:
    """Seconds from now as a point in time. Raises bad_timeout unless 0 <= timeout_s <= TIMEOUT_MAX_S."""
    if not 0 <= timeout_s <= config.TIMEOUT_MAX_S:  # false for NaN too
        raise SandptyError("bad_timeout", f"a timeout of {timeout_s} s is not between 0 and {config.TIMEOUT_MAX_S}")
    return time.time() + timeout_s
