"""Images from registries and archives, as the supervisor imports them for templates.

| verb | args | answer |
|---|---|---|
| import_image | ImportArgs | Image, once its files are here; the same at once when they were |
| cancel_import | {"token"} | {}; `import_image` with that token fails with `conflict` |
| images | - | {"images": [Image]} that are here |

While an import with a token runs, those who watch are told: event "import" with `progress`: ImportProgress.

Only registries can be asked for here: a file of the host is imported by who may read it (`sandpty template import`).
`Image.id` is what `Files("image", id)` of a template's build says. An image that nothing refers to goes after a while.
"""

from __future__ import annotations

import msgspec

from sandpty.wire.templates import Defaults


class ImportArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`reference`: `ubuntu:22.04`, `ghcr.io/team/tool@sha256:...`. `username`, `password`: for its registry; without
    them what the operator has given for it, or none. `platform`: `linux/arm64/v8`; empty: this machine's.
    """

    reference: str
    token: str = ""
    username: str = ""
    password: str = ""
    platform: str = ""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image whose files are here. `digest`: of its manifest. `size_bytes`: on the disk, unpacked.

    defaults: its environment, working directory and user; the user is empty where it has none of its own or root.
    command: Entrypoint and Cmd. notices: what of it was left out or changed, one line each.
    """

    id: str  # ^[a-z0-9-]{1,64}$
    reference: str
    digest: str
    platform: str
    created_at: float
    size_bytes: int
    entries: int = 0
    defaults: Defaults = Defaults()
    command: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


class Blob(msgspec.Struct, frozen=True):
    """A layer on its way: how much of it is here."""

    digest: str
    size_bytes: int
    done_bytes: int


class ImportProgress(msgspec.Struct, frozen=True, kw_only=True):
    """`text` is for people: "pulling", "unpacking layer 2 of 5". percent: of the whole; it never goes back."""

    token: str = ""
    text: str
    percent: float
    blobs: tuple[Blob, ...] = ()
