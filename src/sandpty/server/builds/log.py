"""A build's log: lines with a time, a level and the step they are about; bounded, and on the disk as they come."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from sandpty import config

log = logging.getLogger(__name__)
Level = Literal["debug", "info", "warn", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warn", "error")


class Line(msgspec.Struct, frozen=True):
    """`at`: unix seconds. step: its number from 1 as text, `base` or `finalize`; "" for none."""

    at: float
    level: Level
    message: str
    step: str = ""


class BuildLog:
    """Of one build that goes on. `close` it; then `read_log` finds it in the file."""

    def __init__(self, path: Path) -> None:
        self.lines: list[Line] = []
        self._path = path
        self._bytes = 0
        self._left_out = 0
        self._file: BinaryIO | None = None
        with contextlib.suppress(OSError):  # without the file the log is not there after a restart
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by `close`

    def add(self, message: str, level: Level = "info", step: str = "") -> None:
        """One line; when there is no more room only the number of what is left out is told, in the end."""
        if self._bytes >= config.BUILD_LOG_BYTES or len(self.lines) >= config.BUILD_LOG_LINES:
            self._left_out += 1
            return
        self.always(message, level, step)

    def always(self, message: str, level: Level = "info", step: str = "") -> None:
        """One line that must not be missing: why a build failed, how it ended."""
        line = Line(time.time(), level, message[: config.BUILD_LINE_CHARACTERS], step)
        self.lines.append(line)
        self._bytes += len(line.message)
        if self._file is not None:
            try:
                self._file.write(msgspec.json.encode(line) + b"\n")
            except OSError as error:
                log.warning("the log of a build cannot be written: %s", error.strerror)
                self._close_file()

    def tell_left_out(self, step: str) -> None:
        """After a step: how much of its output is not here."""
        if self._left_out:
            self.always(f"{self._left_out} more lines of output are left out", "warn", step)
            self._left_out = 0

    def close(self) -> None:
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_log(path: Path) -> Sequence[Line]:
    """Of a build that is over. What cannot be read is not there."""
    lines: list[Line] = []
    with contextlib.suppress(OSError, msgspec.MsgspecError), open(path, "rb") as file:
        for line in file.read(config.BUILD_LOG_BYTES * 4).splitlines():
            lines.append(msgspec.json.decode(line, type=Line))
    return lines


def remove_old(directory: Path, now: float) -> None:
    """Logs that nobody has to remember any more."""
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if now - path.stat().st_mtime > config.BUILD_LOG_KEPT_S:
                os.unlink(path)


class Lines:
    """Cuts a program's output into lines of a log: bytes that are not UTF-8 become U+FFFD, control sequences stay.

    `tail` is the last of it, for the words that a failure is told in.
    """

    def __init__(self, write: BuildLog, step: str, prefix: str) -> None:
        self._log = write
        self._step = step
        self._prefix = prefix
        self._begun: dict[int, bytes] = {}
        self.tail: list[str] = []

    def feed(self, stream: int, data: bytes) -> None:
        """What came on a stream (2 is stderr); the rest of a line may come later."""
        *whole, rest = (self._begun.get(stream, b"") + data).split(b"\n")
        for line in whole:
            self._line(line)
        while len(rest) > config.BUILD_LINE_CHARACTERS:
            self._line(rest[: config.BUILD_LINE_CHARACTERS])
            rest = rest[config.BUILD_LINE_CHARACTERS :]
        self._begun[stream] = rest

    def end(self) -> None:
        """There is no more."""
        for rest in self._begun.values():
            if rest:
                self._line(rest)
        self._begun.clear()
        self._log.tell_left_out(self._step)

    def _line(self, line: bytes) -> None:
        text = line.rstrip(b"\r").decode("utf-8", "replace")
        self.tail = [*self.tail[1 - config.BUILD_TAIL_LINES :], text[: config.BUILD_LINE_CHARACTERS]]
        self._log.add(f"{self._prefix}{text}", "info", self._step)
