"""How far the user has read in each terminal, across runs of `sandpty shell`: one small file per terminal."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

KEPT_S = 7 * 24 * 3600.0
KEPT_FILES = 200


def state_dir() -> Path:
    """Where the files are: by the XDG rules."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "sandpty" / "terminals"


def _path(sandbox_id: str, process: int) -> Path:
    return state_dir() / f"{sandbox_id.replace('/', '_')[:64]}-{process}.json"


def recall(sandbox_id: str, process: int) -> int | None:
    """The offset up to which this user saw the terminal's output; None when that is not known."""
    try:
        offset = json.loads(_path(sandbox_id, process).read_text())["offset"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return offset if isinstance(offset, int) and offset >= 0 else None


def remember(sandbox_id: str, process: int, offset: int) -> None:
    """Keep it. A comfort: when it cannot be written, the next attach shows a screenful."""
    with contextlib.suppress(OSError):
        path = _path(sandbox_id, process)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"offset": offset}))
        temporary.replace(path)
        _forget_old(path.parent)


def forget(sandbox_id: str, process: int) -> None:
    """The process has ended and all of it was seen."""
    with contextlib.suppress(OSError):
        _path(sandbox_id, process).unlink(missing_ok=True)


def _forget_old(directory: Path) -> None:
    files = sorted(directory.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
    oldest = time.time() - KEPT_S
    for number, file in enumerate(files):
        if number >= KEPT_FILES or file.stat().st_mtime < oldest:
            file.unlink(missing_ok=True)
