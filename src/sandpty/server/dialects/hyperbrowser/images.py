"""Images: this server's templates, and those that teams have built, under Hyperbrowser's names."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

from aiohttp import web

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser import models
from sandpty.server.dialects.hyperbrowser.errors import HyperbrowserError, bad_request, json_response, not_found
from sandpty.server.dialects.hyperbrowser.requests import number
from sandpty.server.dialects.hyperbrowser.tokens import iso
from sandpty.wire.templates import EVERYBODY, Template, parted
from sandpty.wire.verbs import Sandbox

PUBLIC, TEAM = "public", "team"
# The vendor's public images that every program of its documents names. Until a template is called so, `base` stands in
# for them, and docs/reference/hyperbrowser.md says what is in it.
STAND_INS = {"python": "base", "node": "base"}
_SPACE = uuid.UUID("5ad2bc7e-5f0f-4c64-9d2e-0f3f60dd7a55")


def image_id(name: str, template: Template | None = None) -> str:
    """Of ours it is made from the name, so that it is the same on every host; two teams' of one name are two."""
    if template is not None and template.owner != EVERYBODY:
        name = f"{template.id}/{name}"
    return str(uuid.uuid5(_SPACE, name))


def template_names(templates: Sequence[Template]) -> dict[str, Template]:
    """Every name by which an image can be had."""
    found = {name: template for template in templates for name in (template.name, *template.aliases)}
    for name, stand_in in STAND_INS.items():
        if stand_in in found:
            found.setdefault(name, found[stand_in])
    return found


def image_name(sandbox: Sandbox) -> str:
    """What the sandbox was launched from, by the name that was given."""
    extras = sandbox.annotations.get("hyperbrowser", {})
    return str(extras.get("image") or sandbox.annotations.get("template", sandbox.template))


async def launch_template(context: Context, principal: Principal, name: str, id_: str | None) -> str:
    """What to create a sandbox from. A name may have a tag. Raises HyperbrowserError 404, also for another's id."""
    templates = context.registry.templates
    found = template_names(await templates.list(principal)).get(parted(name)[0])
    if found is None or id_ not in (None, image_id(parted(name)[0], found)):
        raise not_found(f"Image {name[:64]!r}")
    return name if found.owner != EVERYBODY else found.name


def page_of(request: web.Request, default_limit: int = config.LIST_PAGE_MAX) -> tuple[int, int]:
    """(page, limit) of a list's query. Raises HyperbrowserError 400."""
    page, limit = number(request, "page"), number(request, "limit")
    if page == 0 or limit == 0:
        raise bad_request("page and limit are numbers from 1")
    return page or 1, min(limit or default_limit, config.LIST_PAGE_MAX)


class Images:
    """The handlers of /images."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def list(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        page, limit = page_of(request)
        sources = set(request.query.getall("source", ())) or {PUBLIC, TEAM}
        wanted = request.query.get("search", "").lower()
        named = template_names(await self._context.registry.templates.list(principal))
        images = [self._image(name, template, principal) for name, template in sorted(named.items())]
        found = [image for image in images if image.source in sources and wanted in image.image_name.lower()]
        shown = found[(page - 1) * limit : page * limit]
        return json_response(models.ImageList(images=shown, total_count=len(found), page=page, per_page=limit))

    async def delete(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        """A team's own, by name or id, with its other names and its builds; sandboxes made from it go on."""
        asked = request.match_info["image"]
        named = template_names(await self._context.registry.templates.list(principal))
        for name, template in named.items():
            if asked in (name, image_id(name, template)):
                if template.owner != principal.id:
                    raise HyperbrowserError(403, f"Image {asked[:64]!r} is not your team's: it stays", "forbidden")
                await self._context.registry.templates.delete(template.id, principal)
                return json_response(models.DeletedImage(id=image_id(name, template), image_name=name))
        raise not_found(f"Image {asked[:64]!r}")

    def _image(self, name: str, template: Template, principal: Principal) -> models.Image:
        mine = template.owner == principal.id
        created = iso(template.created_at or time.time())
        return models.Image(
            id=image_id(name, template),
            image_name=name,
            namespace=principal.team_name if mine else PUBLIC,
            source="team" if mine else "public",
            uploaded=True,
            ready=template.state == "ready",
            created_at=created,
            updated_at=created,
        )
