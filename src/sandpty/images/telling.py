"""What the program that imports is told, and what it says: JSON, one object per line."""

from __future__ import annotations

import msgspec

from sandpty.wire.images import Image, ImportProgress


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of its stdin. When stdin ends before it is done, it gives up.

    source: as images/reference.py reads it. operator: asked for by who rules this host, who may read its files and
    reach any registry. registries, registry_auth: the operator's files.
    """

    images: str
    source: str
    platform: str
    username: str
    password: str
    operator: bool
    registries: str
    registry_auth: str


class Going(msgspec.Struct, frozen=True, tag="going"):
    progress: ImportProgress


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The last word. It keeps the image from being collected until its stdin ends."""

    image: Image


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The last word: a reason of wire/errors.py. Nothing is left."""

    reason: str
    message: str


Said = Going | Done | Failed


def argv(python: str) -> list[str]:
    """How it is started."""
    return [python, "-I", "-m", "sandpty.images.importing"]
