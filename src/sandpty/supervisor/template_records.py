"""Records of templates that were built or imported: one JSON file each, replaced whole."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import string
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from sandpty import config
from sandpty.isolation.failures import failure
from sandpty.supervisor.checks import check_defaults, check_limits
from sandpty.templates.catalog import Catalog
from sandpty.wire.errors import SandptyError
from sandpty.wire.templates import (
    DEFAULT_TAG,
    EVERYBODY,
    Build,
    Defaults,
    Files,
    Template,
    TemplateArgs,
    TemplatesArgs,
    is_template_id,
    parted,
)
from sandpty.wire.verbs import Limits

log = logging.getLogger(__name__)
ID_LENGTH = 20
_ID_LETTERS = string.ascii_lowercase + string.digits
_NAME = re.compile("[a-z0-9][a-z0-9._/-]{0,127}")
_TAG = re.compile("[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_BUILD_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class TemplateRecords:
    """All records of one data directory; `load` them once. `released` are called when files may be needed no more."""

    def __init__(self, directory: Path, catalog: Catalog) -> None:
        self._directory = directory
        self._catalog = catalog
        self._kept: dict[str, Template] = {}
        self.released: list[Callable[[], None]] = []
        self.left_alone: set[str] = set()  # files that could not be read: what they need is not known

    def load(self) -> None:
        """Find what earlier supervisors kept."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for path in self._directory.glob("*.json"):
            try:
                template = msgspec.json.decode(path.read_bytes(), type=Template)
            except (OSError, msgspec.MsgspecError) as error:
                log.error("template record %s is not readable and is not used: %s", path.name, error)
                self.left_alone.add(path.name)
                continue
            self._kept[template.id] = template
        for path in self._directory.glob("*.new"):
            path.unlink()

    # --- questions ---

    def list(self, args: TemplatesArgs) -> Sequence[Template]:
        """Ours, then the records, oldest first; each with its latest build, and that which its name means."""
        shown = [each for each in self._kept.values() if args.owner is None or _sees(args.owner, each)]
        return [*self._catalog.list(), *map(_shortened, sorted(shown, key=lambda each: (each.created_at, each.id)))]

    def get(self, args: TemplateArgs) -> Template:
        """Raises no_such_template."""
        name = parted(args.reference)[0]
        for ours in self._catalog.list():
            if name in (ours.name, *ours.aliases):
                return ours
        return self._find(name, args.owner)

    def resolve(self, reference: str, owner: str) -> tuple[Template, Build]:
        """What `owner` makes a sandbox from. Raises no_such_template, also while it has no ready build of that tag."""
        name, tag = parted(reference)
        template = self._find(name, owner)
        build = template.tagged(tag) or template.build(tag)
        if build is None or build.state != "ready" or build.files is None:
            raise SandptyError("no_such_template", f"template {name[:64]!r} has no build {tag[:64]!r}")
        return template, build

    def warm(self) -> Iterator[tuple[Template, Build]]:
        """Those of which sandboxes are to be kept ready, and the build that their names mean."""
        for each in self._kept.values():
            build = each.tagged(DEFAULT_TAG)
            if each.warm and build is not None and build.files is not None:
                yield each, build

    def files(self) -> Iterator[Files]:
        """All files that are needed."""
        return (build.files for each in self._kept.values() for build in each.builds if build.files is not None)

    def _find(self, name: str, owner: str) -> Template:
        if (template := self._kept.get(name)) is not None and _sees(owner, template):
            return template
        for namespace in (owner, EVERYBODY):
            for template in self._kept.values():
                if template.owner == namespace and name in template.names:
                    return template
        raise SandptyError("no_such_template", f"template {name[:64]!r} does not exist")

    # --- changes ---

    def save(self, new: Template) -> Template:
        """Keep a new one (its id may be empty) or the next revision. Raises bad_argument, conflict, limit, no_space."""
        now = time.time()
        old = self._kept.get(new.id) if new.id else None
        if (old.revision if old else 0) != new.revision or (old and old.owner != new.owner):
            raise SandptyError("conflict", f"template {new.id[:64]!r} was changed meanwhile")
        self._check(new)
        kept = msgspec.structs.replace(
            new,
            id=new.id or _new_id(),
            created_at=old.created_at if old else now,
            updated_at=now,
            used_at=old.used_at if old else 0.0,
            used_count=old.used_count if old else 0,
            revision=new.revision + 1,
        )
        self._write(kept := _summed_up(kept))
        self._kept[kept.id] = kept
        self._release()
        return kept

    def _check(self, new: Template) -> None:
        if new.id and not is_template_id(new.id):
            raise SandptyError("bad_argument", "not the id of a template")
        ours = {name for each in self._catalog.list() for name in (each.name, *each.aliases)}
        for name in new.names:
            if _NAME.fullmatch(name) is None:
                raise SandptyError("bad_argument", f"not the name of a template: {name[:64]!r}")
            if name in ours or name in self._kept:
                raise SandptyError("conflict", f"the name {name[:64]!r} is taken")
            if any(name in each.names for each in self._of(new.owner) if each.id != new.id):
                raise SandptyError("conflict", f"the name {name[:64]!r} is another template's")
        ids = {build.id for build in new.builds}
        if not all(_TAG.fullmatch(tag.name) and tag.build in ids for tag in new.tags):
            raise SandptyError("bad_argument", "a tag is not a tag, or of no build")
        if not all(map(_BUILD_ID.fullmatch, ids)) or len(ids) < len(new.builds):
            raise SandptyError("bad_argument", "a build's id is a UUID")
        if not 0 <= new.warm <= config.POOL_TEMPLATE_MAX:
            raise SandptyError("limit", f"of a template {config.POOL_TEMPLATE_MAX} sandboxes are kept warm at most")
        _check_builds(new)
        if len(msgspec.json.encode(new)) > config.TEMPLATE_RECORD_BYTES:
            raise SandptyError("too_large", f"a template's record takes {config.TEMPLATE_RECORD_BYTES} bytes at most")
        if new.id not in self._kept and len(self._of(new.owner)) >= config.TEMPLATES_MAX:
            raise SandptyError("limit", f"a team has {config.TEMPLATES_MAX} templates at most")
        if new.id not in self._kept and len(self._kept) >= config.TEMPLATES_OF_ALL_MAX:
            raise SandptyError("limit", f"this host keeps {config.TEMPLATES_OF_ALL_MAX} templates at most")

    def _of(self, owner: str) -> Sequence[Template]:
        return [each for each in self._kept.values() if each.owner == owner]

    def delete(self, template_id: str) -> None:
        """Raises no_such_template. What stands on its files goes on."""
        if self._kept.pop(template_id, None) is None:
            raise SandptyError("no_such_template", f"template {template_id[:64]!r} does not exist")
        with contextlib.suppress(FileNotFoundError):
            self._place(template_id).unlink()
        log.info("template %s deleted", template_id)
        self._release()

    def used(self, template_id: str) -> None:
        """A sandbox was made from it."""
        if (template := self._kept.get(template_id)) is not None:
            template = msgspec.structs.replace(template, used_at=time.time(), used_count=template.used_count + 1)
            self._kept[template_id] = template
            with contextlib.suppress(SandptyError):  # a count is not worth a create
                self._write(template, durable=False)

    def _release(self) -> None:
        for each in self.released:
            each()

    def _place(self, template_id: str) -> Path:
        return self._directory / f"{template_id}.json"

    def _write(self, template: Template, *, durable: bool = True) -> None:
        place = self._place(template.id)
        new = place.with_suffix(".new")
        try:
            with open(new, "wb") as file:
                file.write(msgspec.json.encode(template))
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(new, place)
        except OSError as error:
            raise failure("the template could not be written down", error) from error


def _check_builds(new: Template) -> None:
    for build in new.builds:
        check_limits(limits_of(build))
        check_defaults(build.defaults)
    if len(new.builds) > config.TEMPLATE_BUILDS_KEPT or len(new.tags) > config.TEMPLATE_TAGS_MAX:
        raise SandptyError("limit", f"a template keeps {config.TEMPLATE_BUILDS_KEPT} builds at most")


def limits_of(build: Build) -> Limits:
    """Of the sandboxes made from it."""
    return Limits(cpu_count=build.cpu_count, memory_mb=build.memory_mb, disk_mb=build.disk_mb)


def _new_id() -> str:
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(ID_LENGTH))


def _sees(owner: str, template: Template) -> bool:
    return template.public or template.owner in (owner, EVERYBODY)


def _summed_up(template: Template) -> Template:
    """With the fields that follow from others."""
    names = template.names or (template.id,)
    shown = template.tagged(DEFAULT_TAG) or (template.builds[-1] if template.builds else None)
    state = shown.state if shown is not None else "waiting"
    return msgspec.structs.replace(
        template,
        name=names[0],
        aliases=names[1:],
        state="building" if state == "waiting" else state,
        detail=shown.reason if shown is not None else "",
        size_bytes=shown.size_bytes if shown is not None else 0,
    )


def _shortened(template: Template) -> Template:
    """With two builds at most, without what they start with and why they failed: lists are long."""
    default = template.tagged(DEFAULT_TAG)
    kept = [build for build in template.builds[-1:] if build != default]
    builds = [default, *kept] if default else kept
    return msgspec.structs.replace(
        template, builds=tuple(msgspec.structs.replace(build, defaults=Defaults(), reason="") for build in builds)
    )
