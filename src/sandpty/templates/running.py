"""Running the programs that build: their lines are followed, their failure becomes one readable line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence

_LINES_KEPT = 40  # of a program's output, to find the reason of a failure
_LINE_BYTES_MAX = 300
_MARKS = ("E: ", "error: ", "ERROR: ", "dpkg: error")


class BuildError(Exception):
    """The template could not be built; the message is one readable line."""


def reason_in(lines: Sequence[str]) -> str:
    """The most telling of the last lines."""
    for mark in _MARKS:
        for line in lines:
            if line.startswith(mark) and "apt-get" not in line:
                return line.removeprefix("E: ").removeprefix("ERROR: ")
    return lines[-1] if lines else "it said nothing"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The host's, in plain English and without questions."""
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "TMPDIR": "/tmp", **(extra or {})}


class Program:
    """A builder's program, started; `finish` follows it to its end. It dies with us."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._name = argv[0].rpartition("/")[2]
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=env if env is not None else environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise BuildError(f"{argv[0]} does not run: {error.strerror}") from error

    def finish(self, line: Callable[[str], None] | None = None, *, what: str = "") -> None:
        """Raises BuildError when it fails."""
        kept: deque[str] = deque(maxlen=_LINES_KEPT)
        assert self._process.stdout is not None
        try:
            for text in self._process.stdout:
                if text.strip():
                    kept.append(text.strip()[:_LINE_BYTES_MAX])
                if line is not None:
                    line(text)
            self._process.wait()
        except BaseException:
            self.end()
            raise
        if self._process.returncode != 0:
            raise BuildError(f"{what or self._name} fails: {reason_in(kept)}")

    def end(self) -> None:
        """Ask it, and what it started, to end; nothing when it has."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()
