"""E2B's tags of templates: which build each names, and named before."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.e2b import listing
from sandpty.server.dialects.e2b import template_models as models
from sandpty.server.dialects.e2b.errors import bad_request
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.replies import json_reply, no_content
from sandpty.server.dialects.e2b.requests import read_json
from sandpty.server.dialects.e2b.templates import change_of, find, unknown
from sandpty.server.templates import with_tags, without_tags
from sandpty.wire.templates import Tag, Template, parted

_SORTS = ("latest_desc", "latest_asc", "name_asc", "name_desc")  # the first is meant when none is named


class Tags:
    """The handlers, one per operation."""

    def __init__(self, context: Context) -> None:
        self._templates = context.registry.templates

    def routes(self) -> list[Row]:
        tags = "/templates/{template}/tags"
        return [
            ("POST", "/templates/tags", self.assign),
            ("DELETE", "/templates/tags", self.remove),
            ("GET", tags, self.list),
            ("GET", f"{tags}/count", self.count),
            ("GET", f"{tags}/exists", self.exists),
            ("GET", f"{tags}/groups", self.groups),
            ("GET", f"{tags}/{{tag}}/assignments", self.assignments),
        ]

    async def list(self, request: web.Request, principal: Principal) -> web.Response:
        template = await find(self._templates, request, principal)
        return json_reply([models.tag_reply(tag) for tag in template.tags])

    async def count(self, request: web.Request, principal: Principal) -> web.Response:
        return json_reply({"total": len((await find(self._templates, request, principal)).tags)})

    async def exists(self, request: web.Request, principal: Principal) -> web.Response:
        tag = request.query.get("tag", "")
        if not tag:
            raise bad_request("tag is required")
        template = await find(self._templates, request, principal)
        return json_reply({"exists": any(each.name == tag for each in template.tags), "normalizedTag": tag})

    async def groups(self, request: web.Request, principal: Principal) -> web.Response:
        """Tags with what each names and named, page by page; `search` is a part of their names."""
        sort = request.query.get("sort", _SORTS[0])
        if sort not in _SORTS:
            raise bad_request(f"sort is one of {', '.join(_SORTS)}, not {sort[:40]!r}")
        by_name, descending = sort.startswith("name"), sort.endswith("desc")
        most = listing.parse_limit(request.query.get("tagsLimit"), "tagsLimit", config.TAG_GROUPS_PAGE)
        shown = listing.parse_limit(
            request.query.get("assignmentLimit"), "assignmentLimit", config.TAG_GROUP_ASSIGNMENTS
        )
        search = request.query.get("search", "").lower()
        template = await find(self._templates, request, principal)
        places = [
            (listing.Page.at(0.0 if by_name else tag.assigned_at, tag.name), tag)
            for tag in template.tags
            if search in tag.name.lower()
        ]
        page, token = listing.page_of(places, most, request.query.get("tagsCursor"), descending=descending)
        return json_reply({"tags": [_group(template, tag, shown) for tag in page], "nextCursor": token})

    async def assignments(self, request: web.Request, principal: Principal) -> web.Response:
        """What one tag names and named, the latest first."""
        most = listing.parse_limit(request.query.get("limit"), usual=config.TAG_ASSIGNMENTS_PAGE)
        template = await find(self._templates, request, principal)
        name = request.match_info["tag"]
        places = [(listing.Page.at(tag.assigned_at, tag.build), tag) for tag in _assigned(template, name)]
        page, token = listing.page_of(places, most, request.query.get("cursor"))
        return json_reply({"data": [models.assignment_reply(template, tag) for tag in page], "nextCursor": token})

    async def assign(self, request: web.Request, principal: Principal) -> web.Response:
        """The build that `target` means gets the tags, wherever they were before."""
        body = await read_json(request, models.AssignBody)
        tag = parted(body.target)[1]
        if not body.tags:
            raise bad_request("tags are required")
        assigned = ""

        def change(template: Template) -> Template:
            nonlocal assigned
            build = template.tagged(tag) or template.build(tag)
            if build is None:
                raise unknown(body.target)
            assigned = build.id
            return with_tags(template, body.tags, build.id, time.time())

        await change_of(self._templates, body.target, principal, change)
        return json_reply({"tags": body.tags, "buildID": assigned}, 201)

    async def remove(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.RemoveBody)
        await change_of(self._templates, body.name, principal, lambda template: without_tags(template, body.tags))
        return no_content()


def _assigned(template: Template, name: str) -> list[Tag]:
    """The latest first."""
    return sorted(
        (tag for tag in (*template.tags, *template.past_tags) if tag.name == name), key=lambda tag: -tag.assigned_at
    )


def _group(template: Template, tag: Tag, most: int) -> dict[str, Any]:
    found = _assigned(template, tag.name)
    shown = [models.assignment_reply(template, each) for each in found[:most]]
    return {"tag": tag.name, "assignments": shown, "hasMore": len(found) > most}
