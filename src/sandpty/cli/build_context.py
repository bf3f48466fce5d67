"""The files beside a Dockerfile: which of them a COPY means, their hash, and an archive of them."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sandpty.wire.errors import SandptyError

IGNORE_FILE = ".dockerignore"


class Context:
    """A directory, without what its .dockerignore names."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()
        self._patterns: list[tuple[bool, str]] = []
        ignore = self._directory / IGNORE_FILE
        for line in ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else ():
            pattern = line.strip().lstrip("/")
            if pattern and not pattern.startswith("#"):
                self._patterns.append((not pattern.startswith("!"), pattern.lstrip("!").strip("/")))

    def files(self, source: str) -> list[Path]:
        """Everything that a source means, in order. Raises SandptyError: outside of the directory, or nothing."""
        plain = source.lstrip("/") or "."
        if ".." in Path(plain).parts:
            raise SandptyError("bad_argument", f"COPY takes files from below the build's directory, not {source!r}")
        found = [self._directory] if plain in (".", "./") else sorted(self._directory.glob(plain.rstrip("/")))
        files = sorted({each for path in found for each in self._below(path) if not self._ignored(each)})
        if not files:
            raise SandptyError("no_such_file", f"nothing to copy: {source}")
        return files

    def _below(self, path: Path) -> Iterator[Path]:
        if path != self._directory:
            yield path
        if path.is_dir() and not path.is_symlink():
            yield from path.rglob("*")

    def _ignored(self, path: Path) -> bool:
        """The last pattern that fits decides."""
        name = path.relative_to(self._directory)
        names = [str(name), *(str(parent) for parent in name.parents[:-1])]
        ignored = False
        for without, pattern in self._patterns:
            bare = pattern.removeprefix("**/")
            if any(
                fnmatch.fnmatch(each, pattern) or (bare != pattern and fnmatch.fnmatch(Path(each).name, bare))
                for each in names
            ):
                ignored = without
        return ignored

    def hash(self, source: str) -> str:
        """Of names, kinds, modes and contents."""
        digest = hashlib.sha256(source.encode())
        for path in self.files(source):
            found = path.lstat()
            digest.update(
                f"\0{path.relative_to(self._directory)}\0{found.st_mode:o}\0{found.st_size}\0".encode(
                    "utf-8", "surrogateescape"
                )
            )
            if stat.S_ISLNK(found.st_mode):
                digest.update(os.fsencode(os.readlink(path)))
            elif stat.S_ISREG(found.st_mode):
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def archive(self, source: str) -> IO[bytes]:
        """A compressed tar, which goes when it is closed."""
        packed = tempfile.TemporaryFile()  # noqa: SIM115 - closed by who asked
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
            for path in self.files(source):
                tar.add(path, arcname=str(path.relative_to(self._directory)), recursive=False)
        packed.seek(0)
        return packed
