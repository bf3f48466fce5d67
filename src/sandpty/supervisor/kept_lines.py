"""Lines of JSON kept on disk, in two files of bounded size: a full one takes the place of the other."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)


class KeptLines:
    """`<directory>/<name>.jsonl`, and `<name>.old.jsonl` before it, each of `bytes_max` and at most a line more."""

    def __init__(self, directory: Path, name: str, bytes_max: int) -> None:
        self._path = directory / f"{name}.jsonl"
        self._old = directory / f"{name}.old.jsonl"
        self._bytes_max = bytes_max
        self._failing = False
        self._turning = threading.Lock()

    def append(self, line: bytes) -> None:
        """A disk that is full costs history, not sandboxes: it never raises."""
        try:
            self._append(b"\n" + line)  # what was torn before it ends there
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning("%s cannot be written: %s", self._path.name, error)
            self._failing = True

    def _append(self, line: bytes) -> None:
        with contextlib.suppress(FileNotFoundError), self._turning:
            if self._path.stat().st_size > self._bytes_max:
                os.replace(self._path, self._old)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.write(descriptor, line) < len(line):  # what is left of a disk takes a part, and says nothing
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)

    def read(self) -> Sequence[bytes]:
        """Oldest first. One may be torn (a power cut). From another thread than `append`'s, if you like."""
        with contextlib.ExitStack() as opened:
            files: list[BinaryIO] = []
            with self._turning:  # or the newer file might take the older one's place between the two
                for path in (self._old, self._path):
                    with contextlib.suppress(FileNotFoundError):
                        files.append(opened.enter_context(open(path, "rb")))
            return [line for file in files for line in file.read().splitlines()]
