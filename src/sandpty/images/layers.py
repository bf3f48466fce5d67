"""A layer's bytes: unpacked as they are read, digests and size watched."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable
from typing import IO, Protocol

import zstandard

from sandpty.wire.errors import SandptyError

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHERS = (b"\xfd7zXZ", b"BZh")  # xz, bzip2
_CHUNK_BYTES = 256 * 1024
_ZSTD_WINDOW_BYTES = 128 * 1024 * 1024  # what `zstd --ultra -22` makes; a larger one is refused


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


class _Hashed(io.RawIOBase):
    """Reads through; knows the digest of what was read."""

    def __init__(self, source: _Readable, read: Callable[[int], None] = lambda count: None) -> None:
        self._source = source
        self._read = read
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        self._hash.update(data)
        self._read(len(data))
        return len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class Layer:
    """`stream`: the unpacked archive. `room` is asked with the count of each piece, and raises when it is too much."""

    def __init__(self, packed: IO[bytes], room: Callable[[int], None]) -> None:
        self._blob = _Hashed(packed)
        raw: io.BufferedReader = io.BufferedReader(self._blob, _CHUNK_BYTES)
        self._content = _Hashed(_unpacked(raw), room)
        self.stream = io.BufferedReader(self._content, _CHUNK_BYTES)
        self._raw = raw

    def finish(self, digest: str, diff_id: str) -> None:
        """Once the archive was read: both digests must hold. Raises bad_image."""
        for rest in (self.stream, self._raw):
            while rest.read(_CHUNK_BYTES):
                pass
        for found, stated, what in (
            (self._blob.digest, digest, "a layer is not what the manifest names"),
            (self._content.digest, diff_id, "a layer's content is not what the configuration names"),
        ):
            if found != stated:
                raise SandptyError("bad_image", f"digest mismatch: {what} ({stated[:19]})")


def _unpacked(raw: io.BufferedReader) -> _Readable:
    """By what it is, not by what it is called: media types of archives that Docker has saved are wrong."""
    begin = raw.peek(8)[:8]
    if begin.startswith(_OTHERS):
        raise SandptyError("bad_image", "a layer is packed by xz or bzip2: layers are plain, gzip or zstd")
    if begin.startswith(_GZIP):
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if begin.startswith(_ZSTD):
        unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        return unpacker.stream_reader(raw, read_across_frames=True)
    return raw


BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)  # what reading a broken layer raises
