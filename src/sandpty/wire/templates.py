"""Templates as the supervisor keeps them: what sandboxes are made from, what their processes start with, who may.

A template has builds, the newest last; a tag names one of them, and the tag `default` is what the bare name means. What
we bring (`base` and the like) shows as a template without an owner, with one build.

| verb | args | answer |
|---|---|---|
| templates | TemplatesArgs | {"templates": [Template]}: what the owner sees, each with its latest builds only |
| template | TemplateArgs | Template, whole |
| save_template | Template | Template: made or replaced; `conflict` when its revision is not the kept one's |
| delete_template | {"id"} | {}; sandboxes made from it go on |
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

DEFAULT_TAG = "default"
EVERYBODY = ""  # the owner of what every team may use and none may change
_ID = re.compile("[a-z0-9]{20}")

BuildState = Literal["waiting", "building", "ready", "failed"]
FilesKind = Literal["template", "image", "snapshot"]


class Defaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What processes of a template's sandboxes start with, unless they say otherwise, and what runs from boot on.

    workdir "": the home of the user; user "": `user`. start_cmd and ready_cmd are for a login shell of that user; a
    sandbox is handed out once ready_cmd has ended with 0.
    """

    env: dict[str, str] = {}
    workdir: str = ""
    user: str = ""
    start_cmd: str = ""
    ready_cmd: str = ""


class Files(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files that sandboxes find: those of a template that we bring (its name), an image or a snapshot (its id)."""

    kind: FilesKind
    id: str


class Build(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One build of a template. files: None until it is ready. Times are unix seconds, 0.0: not yet.

    limits: of its sandboxes, cpu_count, memory_mb and disk_mb. reason: why it failed, in words for a person; step:
    where. source: what it was built from, in words. tags: that it gets once it is ready.
    """

    id: str  # a UUID
    state: BuildState = "waiting"
    cpu_count: float = 2.0
    memory_mb: int = 1024
    disk_mb: int = 10240
    files: Files | None = None
    defaults: Defaults = Defaults()
    source: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0
    finished_at: float = 0.0
    size_bytes: int = 0
    reason: str = ""
    step: str = ""
    tags: tuple[str, ...] = ()


class Tag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A name of one build. assigned_at: unix seconds."""

    name: str
    build: str
    assigned_at: float


class Template(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`state`: ready, building or failed; `detail` says what is going on. name: the first of its names, or its id.

    owner: a team's id, or EVERYBODY. past_tags: what tags named before, oldest first. warm: sandboxes
    of it that are kept ready, by the operator's word. used_at, used_count: sandboxes
    made from it. Filled by the supervisor: name,
    aliases (the other names), state, detail, size_bytes, used_at, used_count, revision.
    """

    name: str = ""
    aliases: tuple[str, ...] = ()
    state: Literal["ready", "building", "failed"] = "building"
    detail: str = ""
    created_at: float = 0.0
    size_bytes: int = 0
    id: str = ""
    owner: str = EVERYBODY
    names: tuple[str, ...] = ()
    public: bool = False
    updated_at: float = 0.0
    builds: tuple[Build, ...] = ()
    tags: tuple[Tag, ...] = ()
    past_tags: tuple[Tag, ...] = ()
    warm: int = 0
    used_at: float = 0.0
    used_count: int = 0
    revision: int = 0

    def tagged(self, tag: str = DEFAULT_TAG) -> Build | None:
        """The build that the tag names."""
        wanted = next((each.build for each in self.tags if each.name == tag), None)
        return self.build(wanted) if wanted is not None else None

    def build(self, build_id: str) -> Build | None:
        return next((build for build in self.builds if build.id == build_id), None)


class TemplatesArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`owner`: who asks sees their own, public ones and ours; None: everything, for those who rule this host."""

    owner: str | None = None


class TemplateArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`reference`: an id, or a name as `owner` means it; both may have a tag after a colon, which is not looked at."""

    reference: str
    owner: str = EVERYBODY


def is_template_id(text: str) -> bool:
    """Whether it has the shape of one (names may have it too)."""
    return _ID.fullmatch(text) is not None


def parted(reference: str) -> tuple[str, str]:
    """Name (or id) and tag of `name:tag`; without a tag it is `default`."""
    name, colon, tag = reference.partition(":")
    return name, tag if colon else DEFAULT_TAG
