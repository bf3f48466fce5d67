"""A tree of files that templates are stacked from: what decides its content, and where it is kept.

Another recipe (a newer version of us) has another place, so that what stands on the old tree goes on standing.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

_DESCRIPTION = "template.json"
_HASH_LETTERS = 12


@dataclass(frozen=True, slots=True)
class Description:
    """Of a tree that is complete. created_at: unix seconds."""

    created_at: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Tree:
    """`recipe`: everything that decides what is in it, the trees below it included."""

    name: str
    recipe: str

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.recipe.encode()).hexdigest()[:_HASH_LETTERS]

    def place(self, templates: Path) -> Path:
        """The directory that holds the tree and its description."""
        return templates / f"{self.name}-{self.fingerprint}"

    def root(self, templates: Path) -> Path:
        return self.place(templates) / "rootfs"

    def description(self, templates: Path) -> Description | None:
        """None while it is not built."""
        return described_in(self.place(templates))


def described_in(place: Path) -> Description | None:
    """What is said of the tree in this directory; None when nothing (complete) is there."""
    try:
        described = json.loads((place / _DESCRIPTION).read_text(encoding="utf-8"))
        return Description(float(described["created_at"]), int(described["size_bytes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def describe(directory: Path, created_at: float) -> None:
    """Say what is in `directory/rootfs`: the last step before it is moved into place."""
    done = subprocess.run(
        ["du", "-s", "--block-size=1", str(directory / "rootfs")], capture_output=True, text=True, check=True
    )
    size = int(done.stdout.split()[0])
    text = json.dumps({"created_at": created_at, "size_bytes": size})
    (directory / _DESCRIPTION).write_text(text, encoding="utf-8")
