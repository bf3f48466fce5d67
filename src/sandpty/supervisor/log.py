"""supervisor.log: one line per event, bounded in size."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

LOG_BYTES_MAX = 8 * 1024 * 1024  # then it is copied to supervisor.log.1 and begins anew
_LINE_BYTES_MAX = 8 * 1024


class _OneLine(logging.Formatter):
    """`2026-01-31T12:00:00.123Z info name: message`; tracebacks are folded into the line."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = record.getMessage()
        if record.exc_info:
            text += " | " + self.formatException(record.exc_info)
        text = " ⏎ ".join(text.splitlines())[:_LINE_BYTES_MAX]
        name = record.name.removeprefix("sandpty.")
        return f"{stamp}.{int(record.msecs):03d}Z {record.levelname.lower()} {name}: {text}"


class _BoundedFile(logging.Handler):
    """Appends to what is also stdout and stderr of this program and its watcher: so it is truncated, not moved."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(self._fd, (self.format(record) + "\n").encode("utf-8", "replace"))
            if os.fstat(self._fd).st_size > LOG_BYTES_MAX:
                shutil.copyfile(self._path, self._path.with_suffix(".log.1"))
                os.ftruncate(self._fd, 0)
        except OSError:
            pass  # a full disk must not end the supervisor


def configure(path: Path) -> None:
    """Send every log record of this program to `path`."""
    handler = _BoundedFile(path)
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
