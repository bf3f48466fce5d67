"""What a new sandbox is made from: one of our templates, a built one, an image or a snapshot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from sandpty.supervisor.snapshots import Snapshots
from sandpty.supervisor.template_records import TemplateRecords, limits_of
from sandpty.templates.catalog import Catalog, Ready
from sandpty.wire.errors import SandptyError
from sandpty.wire.templates import Build, Files, Template
from sandpty.wire.verbs import CreateArgs


class Images(Protocol):
    """Images that were imported."""

    def ready(self, image_id: str) -> Ready:
        """What sandboxes of this image are made from. Raises no_such_template."""


class NoImages:
    """Where none can be imported."""

    def ready(self, image_id: str) -> Ready:
        raise SandptyError("no_such_template", f"image {image_id[:80]!r} was not imported")


class Origins:
    """Finds it; the first that knows the name wins: ours, then records."""

    def __init__(self, catalog: Catalog, snapshots: Snapshots, records: TemplateRecords, images: Images) -> None:
        self._catalog = catalog
        self._snapshots = snapshots
        self._records = records
        self._images = images

    def ready(self, args: CreateArgs) -> Ready:
        """Raises no_such_template, no_such_snapshot."""
        found = self._found(args)
        return found if args.defaults is None else replace(found, defaults=args.defaults)

    def _found(self, args: CreateArgs) -> Ready:
        if args.snapshot:
            return self._snapshots.ready(args.snapshot, args.template)
        if args.files is not None:
            return self.of_files(args.files, args.template)
        if self._catalog.knows(args.template):
            return self._catalog.resolve(args.template)
        return self._of_record(*self._records.resolve(args.template, args.owner))

    def _of_record(self, template: Template, build: Build) -> Ready:
        assert build.files is not None
        found = self.of_files(build.files, template.id)
        warm = template.warm > 0 and build == template.tagged()
        return replace(found, limits=limits_of(build), defaults=build.defaults, record=template.id, warm=warm)

    def kept_warm(self) -> Iterator[tuple[Ready, int]]:
        """Built templates of which the operator wants sandboxes ready, and how many."""
        for template, build in self._records.warm():
            with contextlib.suppress(SandptyError):  # its files are gone: a create says so
                yield self._of_record(template, build), template.warm

    def of_files(self, files: Files, name: str) -> Ready:
        """`name`: what the sandbox says of itself. Raises no_such_template, no_such_snapshot."""
        match files.kind:
            case "template":
                return replace(self._catalog.resolve(files.id), name=name, started=(), warm=False)
            case "image":
                return replace(self._images.ready(files.id), name=name, warm=False)
            case "snapshot":
                return self._snapshots.ready(files.id, name, deleted=True)
