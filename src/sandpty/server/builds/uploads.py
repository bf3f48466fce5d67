"""Files that builds copy: archives as clients send them, kept by the hash that the client gives, apart for each team.

An archive is bytes here and nothing else: it is unpacked in a sandbox only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

from sandpty import config, disk_room
from sandpty.server.builds.recipe import is_hash
from sandpty.wire.errors import SandptyError


class Uploads:
    """Below one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._turns: dict[str, asyncio.Semaphore] = {}  # by team: SDKs send all files of a template at once

    def find(self, team: str, files: str) -> Path | None:
        """The archive, which from now on counts as used. Raises bad_argument for what is not a hash."""
        place = self._place(team, files)
        try:
            os.utime(place)
        except FileNotFoundError:
            return None
        return place

    def _place(self, team: str, files: str) -> Path:
        if not is_hash(files):
            raise SandptyError("bad_argument", "files are known by a hash of 64 hexadecimal digits")
        return self._directory / team / files

    async def keep(self, team: str, files: str, pieces: AsyncIterator[bytes]) -> None:
        """Take an archive; a reader sees all of it or nothing. Raises bad_argument, limit, too_large, no_space."""
        place = self._place(team, files)
        turn = self._turns.setdefault(team, asyncio.Semaphore(config.UPLOADS_AT_ONCE))
        try:
            async with asyncio.timeout(config.UPLOAD_TURN_S):
                await turn.acquire()
        except TimeoutError:
            raise SandptyError("limit", f"{config.UPLOADS_AT_ONCE} uploads of your team go on and on") from None
        try:
            await self._keep(place, pieces)
        finally:
            turn.release()

    async def _keep(self, place: Path, pieces: AsyncIterator[bytes]) -> None:
        new = place.with_name(f".{secrets.token_hex(8)}")
        try:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with await asyncio.to_thread(new.open, "xb") as file:
                size = 0
                async for piece in pieces:
                    size += len(piece)
                    if size > config.UPLOAD_BYTES_MAX:
                        raise SandptyError("too_large", f"an upload has {config.UPLOAD_BYTES_MAX >> 20} MiB at most")
                    file.write(piece)
            self._make_room(place.parent, size)
            os.rename(new, place)
        except OSError as error:
            raise SandptyError("no_space", f"the upload cannot be kept: {error.strerror}") from error
        finally:
            new.unlink(missing_ok=True)

    def _make_room(self, directory: Path, size: int) -> None:
        """The least lately used go. Raises no_space where the disk itself is full."""
        kept = []
        for path in directory.iterdir():
            with contextlib.suppress(OSError):
                found = path.stat()
                kept.append((found.st_mtime, found.st_size, path))
        if not disk_room.has_room(directory):
            raise SandptyError("no_space", "the data directory's disk is full")
        for used_at, bytes_, path in sorted(kept, reverse=True):
            size += bytes_
            if not path.name.startswith(".") and (
                size > config.UPLOADS_BYTES_MAX or time.time() - used_at > config.LAYER_UNUSED_S
            ):
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what an earlier server has left half."""
        for path in self._directory.glob("*/.*"):
            path.unlink(missing_ok=True)
