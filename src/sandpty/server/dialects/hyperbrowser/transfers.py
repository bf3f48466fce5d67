"""Whole files as raw bodies: uploads, downloads, and presigned URLs for them that need no other token."""

from __future__ import annotations

import secrets
import time
from typing import Literal

from aiohttp import web

from sandpty import config
from sandpty.server.auth import Principal, bearer
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser import file_models as models
from sandpty.server.dialects.hyperbrowser.errors import bad_request, json_response
from sandpty.server.dialects.hyperbrowser.files import acting
from sandpty.server.dialects.hyperbrowser.requests import read_json
from sandpty.server.dialects.hyperbrowser.tokens import authorized_sandbox, check_token, running, runtime_url
from sandpty.server.files.paths import printable
from sandpty.server.files.receiving import body_pieces
from sandpty.server.files.sending import content_type, send_file
from sandpty.server.runtime_tokens import Claims, expiry
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox


class FileClaims(Claims, frozen=True, kw_only=True, tag="file"):
    """One file, one way. `once`: for one use, by the server that made it; then `nonce` tells uses apart."""

    path: str
    method: Literal["GET", "PUT"]
    run_as: str = ""
    key: str = ""
    once: str = ""
    nonce: str = ""


class Transfers:
    """The handlers of /files/upload, /files/download and of presigned URLs."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._server = secrets.token_hex(8)
        self._used: dict[str, int] = {}  # one-time URLs by nonce -> when they would have expired

    # --- with a runtime token ---

    async def upload(self, request: web.Request) -> web.StreamResponse:
        sandbox = authorized_sandbox(self._context, request)
        return await self._take(request, sandbox, request.query.get("path", ""), request.query.get("runAs"))

    async def download(self, request: web.Request) -> web.StreamResponse:
        sandbox = authorized_sandbox(self._context, request)
        return await self._give(request, sandbox, request.query.get("path", ""), request.query.get("runAs"))

    async def presign_upload(self, request: web.Request) -> web.StreamResponse:
        return await self._presign(request, "PUT")

    async def presign_download(self, request: web.Request) -> web.StreamResponse:
        return await self._presign(request, "GET")

    async def _presign(self, request: web.Request, method: Literal["GET", "PUT"]) -> web.StreamResponse:
        sandbox = authorized_sandbox(self._context, request)
        body = await read_json(request, models.PresignBody)
        lifetime_s = body.expires_in_seconds or config.HYPERBROWSER_PRESIGNED_S
        if lifetime_s > config.HYPERBROWSER_PRESIGNED_MAX_S:
            raise bad_request(f"expiresInSeconds cannot be greater than {config.HYPERBROWSER_PRESIGNED_MAX_S}")
        async with acting(self._context, sandbox, body.run_as) as who:
            path = who.path(body.path)
        expires = expiry(lifetime_s)
        claims = FileClaims(
            sub=sandbox.id,
            own=sandbox.owner,
            exp=expires,
            path=path,
            method=method,
            run_as=body.run_as or "",
            key=check_token(self._context, bearer(request), sandbox.id).key,
            once=self._server if body.one_time else "",
            nonce=secrets.token_hex(8),
        )
        token = self._context.tokens.sign(claims)
        url = f"{runtime_url(request, sandbox.id)}/files/presigned?token={token}"
        return json_response(
            models.Presigned(token=token, path=printable(path), method=method, expires_at=expires * 1000, url=url)
        )

    # --- with the URL alone ---

    async def presigned(self, request: web.Request) -> web.StreamResponse:
        """Raises unauthenticated for a second use of a one-time URL: the first one counts, however it went."""
        claims = self._context.tokens.read(request.query.get("token", ""), FileClaims)
        if claims.sub != request.match_info["id"] or claims.method != request.method:
            raise SandptyError("unauthenticated", "the URL was made for something else")
        self._context.auth.check_given(claims.own, claims.key)
        self._use(claims)
        sandbox = running(self._context, claims.sub, Principal(claims.own, key=claims.key))
        if claims.method == "PUT":
            return await self._take(request, sandbox, claims.path, claims.run_as)
        return await self._give(request, sandbox, claims.path, claims.run_as)

    def _use(self, claims: FileClaims) -> None:
        if not claims.once:
            return
        now = time.time()
        if len(self._used) >= config.HYPERBROWSER_USED_URLS_KEPT:
            self._used = {nonce: expires for nonce, expires in self._used.items() if expires > now}
        if claims.once != self._server:
            raise SandptyError("unauthenticated", "the URL was for one use, and ended with the server that made it")
        if claims.nonce in self._used:
            raise SandptyError("unauthenticated", "the URL was for one use, and was used")
        self._used[claims.nonce] = claims.exp

    # --- the bytes ---

    async def _take(self, request: web.Request, sandbox: Sandbox, given: str, run_as: str | None) -> web.StreamResponse:
        async with acting(self._context, sandbox, run_as) as who:
            path = who.path(given)
            async with who.files.create(path, parents=True) as writing:
                async for piece in body_pieces(request):
                    await writing.write(piece)
                await writing.finish()
                count = writing.count
        return json_response(models.Transferred(path=printable(path), bytes_written=count))

    async def _give(self, request: web.Request, sandbox: Sandbox, given: str, run_as: str | None) -> web.StreamResponse:
        async with acting(self._context, sandbox, run_as) as who:
            path = who.path(given)
            async with who.files.open(path) as reading:
                return await send_file(request, reading, {"Content-Type": content_type(path)})
