"""E2B's builds of templates: a build is asked for, its files are uploaded, it is started, and asked about until it is
over. The words of E2B's steps are translated by tables; how steps are done is the core's (server/builds)."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.builds.builds import Wanted
from sandpty.server.builds.log import LEVELS, Line
from sandpty.server.builds.recipe import AwsKeys, Base, Recipe, Step, StepKind
from sandpty.server.context import Context
from sandpty.server.dialects.e2b import template_models as models
from sandpty.server.dialects.e2b.errors import HttpError, bad_request, http_error
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.replies import json_reply, no_content
from sandpty.server.dialects.e2b.requests import read_json
from sandpty.server.dialects.e2b.templates import unknown
from sandpty.server.files.receiving import body_pieces
from sandpty.server.origin import origin
from sandpty.server.runtime_tokens import Claims, expiry
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Limits

UPLOADS = "/templates/uploads/{token}"
_KINDS: dict[str, StepKind] = {"RUN": "run", "COPY": "copy", "ENV": "env", "WORKDIR": "workdir", "USER": "user"}
# E2B's own images are templates here, which are here already.
_OURS = {"e2bdev/base": "base", "e2bdev/code-interpreter": "code-interpreter-v1"}


class UploadClaims(Claims, frozen=True, kw_only=True, tag="upload"):
    """One upload of the team `own`: files of the hash `sub`."""


def base_of(body: models.StartBody) -> Base:
    """What the build starts from."""
    if body.from_template:
        return Base(template=body.from_template, image=body.from_image)
    if ours := _OURS.get(body.from_image.removesuffix(":latest")):
        return Base(template=ours)
    return _base_of_account(body.from_image, body.from_image_registry or models.ImageAccount())


def _base_of_account(image: str, account: models.ImageAccount) -> Base:
    """One of a kind that cannot be used lets the build fail, so that clients show the line that gave it."""
    match account.type:
        case "registry":
            return Base(image=image, username=account.username, password=account.password)
        case "gcp":
            return Base(image=image, username="_json_key", password=account.service_account_json)
        case "aws":
            keys = AwsKeys(account.aws_access_key_id, account.aws_secret_access_key, account.aws_region)
            return Base(image=image, aws=keys)
    return Base(image=image, refusal=f"fromImageRegistry is of type registry, gcp or aws, not {account.type[:32]!r}")


def recipe_of(body: models.StartBody) -> Recipe:
    """Raises HttpError 400."""
    return Recipe(base_of(body), tuple(map(_step, body.steps or ())), body.start_cmd, body.ready_cmd, bool(body.force))


def _step(body: models.StepBody) -> Step:
    kind = _KINDS.get(body.type.upper())
    if kind is None:
        raise bad_request(f"a step is one of {', '.join(_KINDS)}, not {body.type[:32]!r}")
    return Step(kind, tuple(body.args or ()), body.files_hash or "", bool(body.force))


def _number(request: web.Request, name: str, default: int, most: int) -> int:
    """Raises HttpError 400."""
    raw = request.query.get(name, "") or str(default)
    if not (raw.isascii() and raw.isdigit() and len(raw) <= 15 and int(raw) <= most):
        raise bad_request(f"{name} is a whole number from 0 to {most}, not {raw[:40]!r}")
    return int(raw)


def _of_level(request: web.Request, lines: list[Line]) -> list[Line]:
    """Those of the asked level or above. Raises HttpError 400."""
    least = request.query.get("level", LEVELS[0])
    if least not in LEVELS:
        raise bad_request(f"level is one of {', '.join(LEVELS)}, not {least[:40]!r}")
    return [line for line in lines if LEVELS.index(line.level) >= LEVELS.index(least)]


class TemplateBuilds:
    """The handlers, one per operation."""

    def __init__(self, context: Context) -> None:
        self._builds = context.builds
        self._templates = context.registry.templates
        self._tokens = context.tokens

    def routes(self) -> list[Row]:
        build = "/templates/{template}/builds/{build}"
        return [
            ("POST", "/v3/templates", self.request),
            ("GET", "/templates/{template}/files/{hash}", self.files),
            ("POST", f"/v2{build}", self.start),
            ("DELETE", f"/v2{build}", self.cancel),
            ("GET", f"{build}/status", self.status),
            ("GET", f"{build}/logs", self.logs),
        ]

    async def request(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.BuildRequest)
        least_mb = Limits().disk_mb
        wanted = Wanted(
            body.name or body.alias,
            tuple(body.tags or ()),
            cpu_count=body.cpu_count,
            memory_mb=body.memory_mb,
            disk_mb=max(least_mb, body.min_free_disk_mb) if body.min_free_disk_mb else None,
        )
        template, build = await self._builds.request(wanted, principal)
        return json_reply(models.requested(template, build, principal), 202)

    async def files(self, request: web.Request, principal: Principal) -> web.Response:
        """Whether these files are here already, and where to send them in any case."""
        files = request.match_info["hash"]
        await self._own(request, principal)
        present = self._builds.uploads.find(principal.id, files) is not None
        claims = UploadClaims(sub=files, own=principal.id, exp=expiry(int(config.UPLOAD_LINK_S)))
        url = origin(request) + UPLOADS.format(token=self._tokens.sign(claims))
        return json_reply({"present": present, "url": url}, 201)

    async def upload(self, request: web.Request) -> web.StreamResponse:
        """The link says whose and which; no key is sent with it."""
        try:
            claims = self._tokens.read(request.match_info["token"], UploadClaims)
            await self._builds.uploads.keep(claims.own, claims.sub, body_pieces(request))
        except SandptyError as error:
            return http_error(error).response()
        return web.Response()

    async def start(self, request: web.Request, principal: Principal) -> web.Response:
        recipe = recipe_of(await read_json(request, models.StartBody))
        await self._builds.start(await self._own(request, principal), request.match_info["build"], recipe, principal)
        return web.Response(status=202)

    async def cancel(self, request: web.Request, principal: Principal) -> web.Response:
        """Not part of E2B's API: `sandpty template build` uses it when it is interrupted."""
        await self._builds.cancel(await self._own(request, principal), request.match_info["build"], principal)
        return no_content()

    async def status(self, request: web.Request, principal: Principal) -> web.Response:
        offset = _number(request, "logsOffset", 0, config.BUILD_LOG_LINES * 2)
        limit = min(_number(request, "limit", config.BUILD_LOG_PAGE, 10_000), config.BUILD_LOG_PAGE)
        template = await self._seen(request, principal)
        build, lines = await self._builds.status(template, request.match_info["build"], principal)
        shown = _of_level(request, list(lines))[offset : offset + limit]
        about = [line for line in lines if line.step == build.step][-config.BUILD_TAIL_LINES :]
        return json_reply(models.status_reply(template, build, shown, about))

    async def logs(self, request: web.Request, principal: Principal) -> web.Response:
        """From `cursor` (unix milliseconds) on, oldest first; or, backward, up to it, newest first."""
        direction = request.query.get("direction", "forward")
        if direction not in ("forward", "backward"):
            raise bad_request(f"direction is forward or backward, not {direction[:40]!r}")
        forward = direction == "forward"
        cursor_ms = _number(request, "cursor", 0 if forward else config.LOG_TIME_MAX_MS, config.LOG_TIME_MAX_MS)
        limit = min(_number(request, "limit", config.BUILD_LOG_PAGE, 10_000), config.BUILD_LOG_PAGE)
        template = await self._seen(request, principal)
        _, lines = await self._builds.status(template, request.match_info["build"], principal)
        found = [
            line
            for line in (lines if forward else reversed(lines))
            if (line.at * 1000 >= cursor_ms if forward else int(line.at * 1000) <= cursor_ms)
        ]
        entries: list[dict[str, Any]] = [models.log_entry(line) for line in _of_level(request, found)[:limit]]
        return json_reply({"logs": entries})

    async def _own(self, request: web.Request, principal: Principal) -> str:
        """The id of the template. Raises HttpError 404, 403."""
        reference = request.match_info["template"]
        try:
            return (await self._templates.own(reference, principal)).id
        except SandptyError as error:
            if error.reason.name == "no_such_template":
                raise unknown(reference) from error
            if error.reason.name == "forbidden":
                raise HttpError(403, error.message) from error  # without our hint
            raise

    async def _seen(self, request: web.Request, principal: Principal) -> str:
        """As `_own`, also while a supervisor that is being restarted cannot be asked about a build that goes on."""
        template = request.match_info["template"]
        if self._builds.goes_on(template, request.match_info["build"], principal):
            return template
        return await self._own(request, principal)
