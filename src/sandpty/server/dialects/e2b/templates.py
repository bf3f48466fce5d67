"""E2B's templates: lists, names, who may use one, removal. Tags: tags.py; how they are built: template_builds.py."""

from __future__ import annotations

import msgspec
from aiohttp import web

from sandpty.server import templates as core
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.e2b import listing
from sandpty.server.dialects.e2b import template_models as models
from sandpty.server.dialects.e2b.errors import HttpError
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.replies import json_reply, no_content
from sandpty.server.dialects.e2b.requests import read_json
from sandpty.wire.errors import SandptyError
from sandpty.wire.templates import EVERYBODY, Template


def unknown(reference: str) -> HttpError:
    return HttpError(404, f"template '{reference[:128]}' not found")


async def find(templates: core.Templates, request: web.Request, principal: Principal) -> Template:
    """The template that the path names. Raises HttpError 404."""
    reference = request.match_info["template"]
    try:
        return await templates.find(reference, principal)
    except SandptyError as error:
        if error.reason.name == "no_such_template":
            raise unknown(reference) from error
        raise


async def change_of(templates: core.Templates, reference: str, principal: Principal, change: core.Change) -> Template:
    """The template, changed. Raises HttpError 404, SandptyError."""
    try:
        return await templates.change(reference, principal, change)
    except SandptyError as error:
        if error.reason.name == "no_such_template":
            raise unknown(reference) from error
        raise


class Templates:
    """The handlers, one per operation."""

    def __init__(self, context: Context) -> None:
        self._templates = context.registry.templates
        self._snapshots = context.registry.snapshots
        self._builds = context.builds

    def routes(self) -> list[Row]:
        return [
            ("GET", "/templates", self.list),
            ("GET", "/v2/templates", self.list_pages),
            ("GET", "/default-templates", self.list_defaults),
            ("GET", "/templates/aliases/{template}", self.alias),
            ("GET", "/templates/{template}", self.get),
            ("PATCH", "/templates/{template}", self.update),
            ("PATCH", "/v2/templates/{template}", self.update),
            ("DELETE", "/templates/{template}", self.delete),
        ]

    # --- look ---

    async def list(self, request: web.Request, principal: Principal) -> web.Response:
        """The team's, then those that are everybody's here."""
        found = await self._templates.list(principal)
        shown = sorted(found, key=lambda template: template.owner == EVERYBODY)
        return json_reply([models.listed(template, principal) for template in shown])

    async def list_pages(self, request: web.Request, principal: Principal) -> web.Response:
        found = await self._templates.list(principal)
        places = [(listing.Page.at(template.created_at, template.id), template) for template in found]
        page, token = listing.newest_first(places, request.query.get("limit"), request.query.get("nextToken"))
        headers = {} if token is None else {"X-Next-Token": token}
        return json_reply([models.listed(template, principal) for template in page], headers=headers)

    async def list_defaults(self, request: web.Request, principal: Principal) -> web.Response:
        found = await self._templates.list(principal)
        return json_reply([models.listed(each, principal) for each in found if each.owner == EVERYBODY])

    async def alias(self, request: web.Request, principal: Principal) -> web.Response:
        """200 when the name is a template's that the team may use, else 404."""
        template = await find(self._templates, request, principal)
        return json_reply({"templateID": template.id, "public": template.public})

    async def get(self, request: web.Request, principal: Principal) -> web.Response:
        template = await find(self._templates, request, principal)
        places = [(listing.Page.at(build.created_at, build.id), build) for build in template.builds]
        page, token = listing.newest_first(places, request.query.get("limit"), request.query.get("nextToken"))
        headers = {} if token is None else {"X-Next-Token": token}
        builds = [models.build_reply(build) for build in page] if template.owner in (principal.id, EVERYBODY) else []
        return json_reply({**models.listed(template, principal), "builds": builds}, headers=headers)

    # --- change ---

    async def update(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.UpdateBody)

        def change(template: Template) -> Template:
            return template if body.public is None else msgspec.structs.replace(template, public=body.public)

        template = await change_of(self._templates, request.match_info["template"], principal, change)
        return json_reply({"names": models.names_of(template, principal)})

    async def delete(self, request: web.Request, principal: Principal) -> web.Response:
        """A template, or a snapshot, which E2B keeps as one."""
        reference = request.match_info["template"]
        try:
            await self._builds.delete(reference, principal)
        except SandptyError as error:
            if error.reason.name != "no_such_template":
                raise
            try:
                await self._snapshots.delete(reference, principal)
            except SandptyError as missing:
                if missing.reason.name == "no_such_snapshot":
                    raise unknown(reference) from missing
                raise
        return no_content()
