"""Templates as the dialects see them: whose they are, what they are called, which build a tag means.

A template is referred to by its id or by a name, with the team's name before it for another team's, and a tag after it:
`app`, `app:v2`, `team/app`, `4f0…:v2`. No tag is the tag `default`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.supervisor_client import SupervisorClient, TemplateList
from sandpty.wire.errors import SandptyError
from sandpty.wire.templates import DEFAULT_TAG, EVERYBODY, Build, Tag, Template, TemplateArgs, TemplatesArgs, parted

Change = Callable[[Template], Template]
_ATTEMPTS = 8  # of a change while others than this server change the same template


class Teams(Protocol):
    """What is needed of the authenticator."""

    def team_named(self, name: str) -> str | None:
        """The team's id."""


class Templates:
    """Of all teams; every method asks whose they are."""

    def __init__(self, client: SupervisorClient, teams: Teams | None) -> None:
        self._client = client
        self._teams = teams
        self._turns: dict[str, asyncio.Lock] = {}  # by team: its changes wait for each other

    async def list(self, principal: Principal | None) -> Sequence[Template]:
        """The principal's, public ones and ours, oldest first, with their latest builds only; None: everything."""
        args = TemplatesArgs(owner=principal.id if principal is not None else None)
        return (await self._client.call("templates", args, TemplateList)).templates

    async def find(self, reference: str, principal: Principal) -> Template:
        """What the principal means by it, whole. Raises no_such_template."""
        name, owner = self._owned(reference, principal)
        template = await self._client.call("template", TemplateArgs(reference=name, owner=owner), Template)
        if not (template.public or template.owner in (principal.id, EVERYBODY)):
            raise _missing(reference)
        return template

    async def own(self, reference: str, principal: Principal) -> Template:
        """One that the principal may change. Raises no_such_template, forbidden."""
        template = await self.find(reference, principal)
        if template.owner != principal.id:
            raise SandptyError("forbidden", f"template {reference[:64]!r} is not yours")
        return template

    def _owned(self, reference: str, principal: Principal) -> tuple[str, str]:
        """Without the team's name before it, and that team's id."""
        team, slash, name = reference.partition("/")
        if not slash:
            return reference, principal.id
        if team == principal.team_name:
            return name, principal.id
        owner = self._teams.team_named(team) if self._teams is not None else None
        # A name of ours may have a slash in it, as those of images have.
        return (name, owner) if owner is not None else (reference, principal.id)

    async def exact(self, reference: str, principal: Principal) -> str:
        """The same as `id:tag`, which means the same to everybody. Raises no_such_template."""
        template = await self.find(reference, principal)
        return f"{template.id}:{parted(reference)[1]}"

    async def save(self, template: Template) -> Template:
        """Raises bad_argument, conflict, limit, no_space, too_large."""
        return await self._client.call("save_template", template, Template)

    async def change(self, template_id: str, principal: Principal, change: Change) -> Template:
        """What `change` makes of it, kept; it is asked again when somebody else was faster. Raises as `own`, `save`."""
        async with self._turn(principal):
            return await self._changed(template_id, principal, change)

    async def change_or_make(self, name: str, principal: Principal, change: Change, new: Template) -> Template:
        """As `change`; where there is none of this name, `new`. Raises as `own` (but for no_such_template), `save`."""
        async with self._turn(principal):
            try:
                return await self._changed(name, principal, change)
            except SandptyError as error:
                if error.reason.name != "no_such_template":
                    raise
            return await self.save(new)

    def _turn(self, principal: Principal) -> asyncio.Lock:
        return self._turns.setdefault(principal.id, asyncio.Lock())

    async def _changed(self, template_id: str, principal: Principal, change: Change) -> Template:
        for _ in range(_ATTEMPTS):
            template = await self.own(template_id, principal)
            try:
                return await self.save(change(template))
            except SandptyError as error:
                if error.reason.name != "conflict" or "meanwhile" not in error.message:
                    raise
        raise SandptyError("conflict", f"template {template_id} is changed by too many at once")

    async def delete(self, reference: str, principal: Principal) -> Template:
        """Sandboxes made from it go on. Raises no_such_template, forbidden."""
        template = await self.own(reference, principal)
        await self._client.call("delete_template", {"id": template.id}, dict)
        return template


def _missing(reference: str) -> SandptyError:
    return SandptyError("no_such_template", f"template {reference[:64]!r} does not exist")


def with_build(template: Template, build: Build) -> Template:
    """With this build new, or instead of what was said of it. Old builds that no tag names are forgotten."""
    others = [each for each in template.builds if each.id != build.id]
    tagged = {tag.build for tag in template.tags}
    while len(others) >= config.TEMPLATE_BUILDS_KEPT:
        oldest = next((each for each in others if each.id not in tagged), others[0])
        others.remove(oldest)
    place = next((number for number, each in enumerate(others) if each.created_at > build.created_at), len(others))
    builds = (*others[:place], build, *others[place:])
    kept = {each.id for each in builds}
    tags = tuple(tag for tag in template.tags if tag.build in kept)
    past = tuple(tag for tag in template.past_tags if tag.build in kept)
    return msgspec.structs.replace(template, builds=builds, tags=tags, past_tags=past)


def with_tags(template: Template, names: Sequence[str], build_id: str, now: float) -> Template:
    """With these tags on that build, and on no other; what they named before is remembered for a while."""
    moved = tuple(tag for tag in template.tags if tag.name in names)
    kept = tuple(tag for tag in template.tags if tag.name not in names)
    new = (Tag(name, build_id, now) for name in dict.fromkeys(names))
    past = (*template.past_tags, *moved)[-config.TEMPLATE_TAGS_MAX :]
    return msgspec.structs.replace(template, tags=(*kept, *new), past_tags=past)


def without_tags(template: Template, names: Sequence[str]) -> Template:
    """Raises bad_argument for `default`, which stays; no_such_template when one is not there."""
    if DEFAULT_TAG in names:
        raise SandptyError("bad_argument", f"the tag {DEFAULT_TAG!r} cannot be removed: delete the template")
    known = {tag.name for tag in template.tags}
    if missing := [name for name in names if name not in known]:
        raise SandptyError("no_such_template", f"template {template.name!r} has no tag {missing[0][:64]!r}")

    def others(tags: Sequence[Tag]) -> tuple[Tag, ...]:
        return tuple(tag for tag in tags if tag.name not in names)

    return msgspec.structs.replace(template, tags=others(template.tags), past_tags=others(template.past_tags))
