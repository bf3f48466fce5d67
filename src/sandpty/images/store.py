"""Where trees of images are kept, one directory each, and the locks that imports and the collector take.

`<images>/<id>/rootfs` is the tree, `image.json` beside it says what it is. A directory appears whole or not at all:
what is being made is in `.importing-<id>`, locked for as long as somebody works on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from sandpty.wire.errors import SandptyError
from sandpty.wire.images import Image

RECIPE = "1"  # of what we make of an image: another one has other trees
_ID_LETTERS = 32
_ID = re.compile("[0-9a-f]{32}")
_DESCRIPTION = "image.json"
_WORK = ".importing-"


def image_id(name: str, digest: str) -> str:
    """Of the image with this manifest. The name counts: who has a manifest may not be allowed to have its layers."""
    return hashlib.sha256(f"{RECIPE} {name} {digest}".encode()).hexdigest()[:_ID_LETTERS]


def place(images: Path, image: str) -> Path:
    """Raises no_such_image for what is no id."""
    if not _ID.fullmatch(image):
        raise SandptyError("no_such_image", f"not the id of an image: {image[:64]!r}")
    return images / image


def root(images: Path, image: str) -> Path:
    return place(images, image) / "rootfs"


def find(images: Path, image: str) -> Image | None:
    """None: it is not here."""
    try:
        return msgspec.json.decode((place(images, image) / _DESCRIPTION).read_bytes(), type=Image)
    except (OSError, msgspec.MsgspecError):
        return None


def listed(images: Path) -> list[Image]:
    """The oldest first."""
    if not images.is_dir():
        return []
    found = (find(images, path.name) for path in images.iterdir() if _ID.fullmatch(path.name))
    return sorted((image for image in found if image is not None), key=lambda image: (image.created_at, image.id))


def describe(directory: Path, image: Image) -> None:
    """Say what is in it: the last step before it is moved into place."""
    (directory / _DESCRIPTION).write_bytes(msgspec.json.encode(image))


def hold(images: Path, image: str) -> int:
    """A descriptor that keeps it from being collected. Raises no_such_image when it is not here (any more)."""
    path = place(images, image)
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_SH)
        # The collector may have moved it away before we had the lock.
        if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            return fd
        os.close(fd)
    raise SandptyError("no_such_image", f"image {image[:64]!r} is not here")


@contextlib.contextmanager
def work(images: Path, image: str, waiting: Callable[[], None]) -> Iterator[Path]:
    """An empty directory to make it in, removed at the end. Whoever else wants to make it waits, and says so."""
    images.mkdir(mode=0o711, parents=True, exist_ok=True)
    images.chmod(0o711)  # the account that pulls passes through
    path = images / f"{_WORK}{image}"
    fd = _locked(path, waiting)
    try:
        _empty(path)  # of somebody who was killed
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(fd)


def _locked(path: Path, waiting: Callable[[], None]) -> int:
    while True:
        path.mkdir(mode=0o711, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(fd, fcntl.LOCK_EX)
        if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            return fd
        os.close(fd)  # whoever had it has removed it


def _empty(path: Path) -> None:
    path.chmod(0o711)
    for child in path.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        else:
            child.unlink()


def doomed(images: Path, image: str) -> Path:
    """Where one goes that is being removed: `remove_left` finds it if that is cut short."""
    return images / f"{_WORK}{image}-doomed"


def remove_left(images: Path) -> None:
    """What imports that were killed have left."""
    for path in images.glob(f"{_WORK}*"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)
