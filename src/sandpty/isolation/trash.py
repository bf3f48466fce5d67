"""Removing directory trees without making anybody wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from pathlib import Path

from sandpty.isolation import program
from sandpty.isolation.background import Background

log = logging.getLogger(__name__)
REMOVE_TIMEOUT_S = 600.0


class Trash:
    """A directory on the same file system; what is moved there disappears in the background, one tree at a time.

    `rm` does it: its walk is safe against links and against the depth of trees that a guest may have made.
    """

    def __init__(self, directory: Path, background: Background) -> None:
        self._directory = directory
        self._background = background
        self._rm = shutil.which("rm") or "/bin/rm"
        self._sweep: asyncio.Task[None] | None = None

    def take(self, tree: Path) -> None:
        """Move `tree` out of sight; nothing there is fine."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(tree, self._directory / f"{tree.name}-{os.urandom(4).hex()}")
        self.sweep()

    def sweep(self) -> None:
        """Remove whatever is there, also from an earlier run."""
        if self._sweep is None or self._sweep.done():
            self._sweep = self._background.spawn(self._empty(), "empty the trash")

    async def _empty(self) -> None:
        failed: set[str] = set()
        while names := [name for name in _names(self._directory) if name not in failed]:
            for name in names:
                argv = [self._rm, "-rf", "--one-file-system", "--", str(self._directory / name)]
                try:
                    if await program.run(argv, timeout_s=REMOVE_TIMEOUT_S) == 0:
                        continue
                    log.warning("cannot remove %s", self._directory / name)
                except OSError as error:  # out of processes, perhaps
                    log.warning("cannot remove %s: %s", self._directory / name, error)
                failed.add(name)  # with the next tree that comes it is tried again


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
