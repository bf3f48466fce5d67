"""`python -I -m sandpty.images.confined`: unpacks layers into a tree, with nothing else in reach.

images/importing.py starts it without a network, in mount, pid and ipc namespaces of its own, with the few capabilities
that owners and modes take. It opens the layers, makes the tree its root, and only then reads the first byte of them.
stdin: a `Task`; stdout: one JSON object per line, `Unpacked` or `Failed` at last.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import stat
import struct
import sys
import time
from importlib.machinery import BuiltinImporter, FrozenImporter
from pathlib import Path
from typing import IO

import msgspec

from sandpty import config
from sandpty.images import accounts, layers
from sandpty.images.layers import Layer
from sandpty.images.unpacking import Unpacking, check_space
from sandpty.wire.errors import SandptyError

_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT
_CAPABILITY_VERSION_3 = 0x20080522
# CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP: their numbers in linux/capability.h.
_NEEDED = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 31


class TaskLayer(msgspec.Struct, frozen=True):
    digest: str
    diff_id: str


class Task(msgspec.Struct, frozen=True):
    """blobs: the directory that holds the layers, by the hex of their digests. tree: an empty directory."""

    blobs: str
    tree: str
    layers: list[TaskLayer]
    user: str
    workdir: str
    bytes_max: int
    entries_max: int


class Unpacked(msgspec.Struct, frozen=True, tag="unpacked"):
    """user, workdir: what processes start with, as accounts.py says. size_bytes: of all layers' archives."""

    user: str
    workdir: str
    entries: int
    size_bytes: int
    notices: list[str]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    reason: str
    message: str


class Step(msgspec.Struct, frozen=True, tag="step"):
    """Where it is: in layer `layer` (from 0), with `done_bytes` of its blob read."""

    layer: int
    done_bytes: int
    entries: int


Said = Unpacked | Failed | Step


def _say(word: Said) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
    sys.stdout.buffer.flush()


class _Bounds:
    """Counts, and tells how far it is."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.entries = 0
        self.size_bytes = 0
        self._said_at = 0.0
        self.layer = 0
        self.blob: IO[bytes] | None = None

    def room(self, count: int) -> None:
        self.size_bytes += count
        if self.size_bytes > self._task.bytes_max:
            raise SandptyError("too_large", f"the image holds more than {self._task.bytes_max} bytes")
        if count:  # who reads and reads at the end of a layer makes no progress
            self._tell()

    def entry(self) -> None:
        self.entries += 1
        if self.entries > self._task.entries_max:
            raise SandptyError("too_large", f"the image has more than {self._task.entries_max} entries")

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._said_at >= config.IMAGE_PROGRESS_S and self.blob is not None:
            self._said_at = now
            _say(Step(self.layer, self.blob.tell(), self.entries))


def _open_layer(blobs: Path, digest: str) -> IO[bytes]:
    path = blobs / digest.removeprefix("sha256:")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise SandptyError("bad_image", "a layer is no file")
    return open(fd, "rb", buffering=0)


def _enter(tree: str) -> None:
    """From here on there is nothing but the tree: no file of the image is ever imported as a module."""
    hashlib.sha256()  # loads what it needs now
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (config.IMAGE_MEMORY_BYTES, config.IMAGE_MEMORY_BYTES))
    os.chroot(tree)
    os.chdir("/")
    _keep_only(_NEEDED)
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter]


def _keep_only(capabilities: int) -> None:
    """Give up the others, CAP_SYS_CHROOT above all: with it a root that was changed can be left. Raises OSError."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    words = struct.pack("=6I", capabilities, capabilities, 0, 0, 0, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, words) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _unpack(task: Task) -> Unpacked:
    blobs = [_open_layer(Path(task.blobs), layer.digest) for layer in task.layers]
    _enter(task.tree)
    bounds = _Bounds(task)
    unpacking = Unpacking(bounds.room, bounds.entry)
    for number, (described, blob) in enumerate(zip(task.layers, blobs, strict=True)):
        bounds.layer, bounds.blob = number, blob
        try:
            layer = Layer(blob, bounds.room)
            unpacking.layer(layer.stream)
            layer.finish(described.digest, described.diff_id)
        except layers.BROKEN as error:
            raise SandptyError("bad_image", f"a layer is broken: {error}") from error
        blob.close()
        check_space()
    prepared = accounts.prepare(task.user, task.workdir)
    noted = [f"{count} {text}" for text, count in sorted(unpacking.notices.items())]
    notices = [*noted, *prepared.notices]
    return Unpacked(prepared.user, prepared.workdir, bounds.entries, bounds.size_bytes, notices)


def main() -> int:
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    try:
        _say(_unpack(task))
    except SandptyError as error:
        _say(Failed(error.reason.name, error.message))
    except OSError as error:
        reason = "no_space" if error.errno in _NO_SPACE else "bad_image"
        _say(Failed(reason, f"the image cannot be unpacked: {error.strerror or error}"))
    except MemoryError:
        _say(Failed("bad_image", "the image takes too much memory to unpack"))
    except Exception as error:
        # No traceback: to print one, Python would read files by names that the image may have filled.
        _say(Failed("internal", f"unpacking failed: {type(error).__name__}: {error}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
