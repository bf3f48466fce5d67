"""What builds start from: a template of this host, or an image, which is imported when it is not here."""

from __future__ import annotations

from sandpty.server.auth import Principal
from sandpty.server.builds import ecr
from sandpty.server.builds.log import BuildLog
from sandpty.server.builds.recipe import BASE_STEP, Base, Situation
from sandpty.server.registry import Registry
from sandpty.wire.errors import SandptyError
from sandpty.wire.images import ImportArgs, ImportProgress
from sandpty.wire.templates import EVERYBODY, Defaults, Files, Template, parted


class Bases:
    """As one team names them. Methods raise SandptyError."""

    def __init__(self, registry: Registry, principal: Principal) -> None:
        self._client = registry.client
        self._templates = registry.templates
        self._snapshots = registry.snapshots
        self._principal = principal

    async def situation(self, base: Base, log: BuildLog) -> Situation:
        """Before the first step."""
        if base.refusal:
            raise SandptyError("bad_argument", base.refusal)
        if base.template:
            return await self._of_template(base.template)
        if not base.username and base.aws is None and (here := await self._here(base.image)) is not None:
            return here
        return await self._imported(base, log)

    async def _of_template(self, reference: str) -> Situation:
        """Or of a snapshot, which may be called a template too."""
        try:
            return _of_template(await self._templates.find(reference, self._principal), reference)
        except SandptyError as missing:
            try:
                snapshot = await self._snapshots.find(reference, self._principal)
            except SandptyError:
                raise missing from None
            return Situation(Files("snapshot", snapshot.id), Defaults())

    async def _here(self, image: str) -> Situation | None:
        """An image that the operator has imported as a template of this name is not asked of a registry."""
        try:
            template = await self._templates.find(image, self._principal)
        except SandptyError:
            return None
        return _of_template(template, image) if template.owner == EVERYBODY else None

    async def _imported(self, base: Base, log: BuildLog) -> Situation:
        told = ""

        def show(progress: ImportProgress) -> None:
            nonlocal told
            if progress.text != told:
                told = progress.text
                log.add(f"{progress.text} ({progress.percent:.0f} %)", step=BASE_STEP)

        username, password = base.username, base.password
        if base.aws is not None:
            username, password = await ecr.login(base.aws)
        args = ImportArgs(reference=base.image, username=username, password=password)
        image = await self._client.import_image(args, show)
        log.add(f"{image.reference} is {image.digest}", step=BASE_STEP)
        for notice in image.notices:
            log.add(notice, "warn", BASE_STEP)
        return Situation(Files("image", image.id), image.defaults)


def _of_template(template: Template, reference: str) -> Situation:
    if not template.builds:  # one of ours; another make of it, or one that stands in for it, makes other layers
        make = "stand-in" if template.detail else str(template.size_bytes)
        return Situation(Files("template", template.name), Defaults(), make)
    build = template.tagged(parted(reference)[1])
    if build is None or build.files is None:
        raise SandptyError("no_such_template", f"template {reference[:64]!r} has no build that is ready")
    return Situation(build.files, build.defaults)
