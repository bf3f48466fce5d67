"""Which images are needed, and the removal of those that nothing refers to."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from sandpty import config
from sandpty.config import DataDir
from sandpty.images import store
from sandpty.templates.collecting import is_held, stood_on
from sandpty.wire.images import Image


@dataclass(frozen=True, slots=True)
class KeptImage:
    """used: a template, sandbox or snapshot refers to it, or it was imported a moment ago."""

    image: Image
    used: bool


def kept(data: DataDir) -> list[KeptImage]:
    """All that are here, the oldest first."""
    needed = _of_templates(data) | {Path(source).parent.name for source in stood_on(data)}
    images = data.images
    return [
        KeptImage(image, image.id in needed or is_held(store.place(images, image.id))) for image in store.listed(images)
    ]


def _of_templates(data: DataDir) -> set[str]:
    found = set()
    for record in data.template_records.glob("*.json"):
        for build in json.loads(record.read_bytes()).get("builds", ()):
            files = build.get("files") or {}
            if files.get("kind") == "image":
                found.add(str(files.get("id")))
    return found


def collect(data: DataDir, unused_s: float = config.IMAGE_UNUSED_S) -> list[Image]:
    """Remove the unused ones that were imported longer ago than that, and what killed imports have left.

    Returns the images. Raises OSError, ValueError when what is needed cannot be read: then nothing was removed.
    """
    removed = []
    store.remove_left(data.images)
    now = time.time()
    for each in kept(data):
        if not each.used and now - each.image.created_at >= unused_s and _remove(data.images, each.image.id):
            removed.append(each.image)
    return removed


def _remove(images: Path, image: str) -> bool:
    """Unless somebody holds it by now. Nobody finds half of it."""
    path = store.place(images, image)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        doomed = store.doomed(images, image)
        os.rename(path, doomed)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(fd)
    shutil.rmtree(doomed, ignore_errors=True)
    return True
