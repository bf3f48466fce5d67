"""Which trees are kept in the templates' directory, who stands on them, and the removal of those nobody needs.

A tree is needed when a template of ours is stacked from it, when a supervisor holds it (one of another version may), or
when a sandbox or snapshot of a data directory stands on it. Data directories are registered by their supervisors.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sandpty import config
from sandpty.config import DataDir
from sandpty.templates import host_usr
from sandpty.templates.catalog import Ready
from sandpty.templates.locking import locked
from sandpty.templates.progress import ignored
from sandpty.templates.stacks import STACKS
from sandpty.templates.tree import described_in

_USERS = "users"
_DOOMED = ".building-doomed-"  # builders remove what begins so
TreeState = Literal["current", "in use", "unused"]


@dataclass(frozen=True, slots=True)
class KeptTree:
    """A directory of the templates' directory. current: what we would use; in use: something else stands on it."""

    name: str
    path: Path
    state: TreeState
    size_bytes: int
    created_at: float


def register(templates: Path, data: DataDir) -> None:
    """From now on, what stands on trees in this data directory counts."""
    users = templates / _USERS
    users.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = str(data.root.resolve())
    (users / hashlib.sha256(text.encode()).hexdigest()[:16]).write_text(text, encoding="utf-8")


def hold(templates: Path, template: Ready) -> None:
    """Keep the trees of a template from being collected for as long as this process lives. Raises OSError."""
    for tree in (tree for layer in template.layers for tree in layer.trees):
        if tree.is_relative_to(templates):
            fd = os.open(templates / tree.relative_to(templates).parts[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_SH)


def trees(templates: Path) -> list[KeptTree]:
    """Every complete tree, by name."""
    current = {tree.place(templates) for stack in STACKS.values() for tree in stack} | {host_usr.place(templates)}
    used = list(_used(templates))
    return [_kept(path, current, used) for path in _places(templates)]


def _places(templates: Path) -> Iterator[Path]:
    if templates.is_dir():
        for path in sorted(templates.iterdir()):
            if path.is_dir() and not path.name.startswith(".") and path.name != _USERS:
                yield path


def _kept(path: Path, current: set[Path], used: list[str]) -> KeptTree:
    described = described_in(path)
    size, created_at = (described.size_bytes, described.created_at) if described else (0, path.stat().st_mtime)
    state: TreeState = "unused"
    if path in current:
        state = "current"
    elif any(source == str(path) or source.startswith(f"{path}/") for source in used) or is_held(path):
        state = "in use"
    return KeptTree(path.name, path, state, size, created_at)


def is_held(path: Path) -> bool:
    """Whether some process has locked this directory to keep it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _used(templates: Path) -> Iterator[str]:
    """The sources of all layers of all sandboxes and snapshots that are known."""
    for user in sorted((templates / _USERS).glob("*")):
        root = Path(user.read_text(encoding="utf-8"))
        if not root.is_dir():
            user.unlink()
            continue
        yield from stood_on(DataDir(root))


def stood_on(data: DataDir) -> Iterator[str]:
    """The sources of all layers of the sandboxes and snapshots of a data directory."""
    for description in (*data.sandboxes.glob("*/meta.json"), *data.snapshots.glob("*/snapshot.json")):
        try:
            for layer in json.loads(description.read_text(encoding="utf-8")).get("layers", ()):
                yield layer["source"]
                yield from layer.get("below", ())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # half made or being removed: it stands on nothing


def collect(templates: Path, unused_s: float = config.TREE_UNUSED_S) -> list[KeptTree]:
    """Remove the unused trees that are older than that; returns them. Waits for a build that is under way."""
    removed = []
    now = time.time()
    with locked(templates, ignored):
        for tree in trees(templates):
            if tree.state != "unused" or now - tree.created_at < unused_s:
                continue
            doomed = templates / f"{_DOOMED}{tree.name}"
            os.rename(tree.path, doomed)  # nobody finds half of it
            shutil.rmtree(doomed, ignore_errors=True)
            removed.append(tree)
    return removed
