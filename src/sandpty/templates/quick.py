"""The quick start: `host-usr`, made from the host's own /usr in a moment, without a download."""

from __future__ import annotations

import time
from pathlib import Path

from sandpty.templates.catalog import Ready
from sandpty.templates.names import HOST_USR


def ready(templates: Path, *, isolated: bool) -> Ready:
    """The template that stands in for `base` until that is built."""
    if not isolated:
        return Ready("host", (), time.time())
    from sandpty.templates.host_usr import build

    return Ready(HOST_USR, build(templates), time.time())
