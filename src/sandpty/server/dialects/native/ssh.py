"""POST /v1/ssh: how to reach the SSH gateway, and a certificate to log in with for a while."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.native.answers import answering, body, principal
from sandpty.server.dialects.native.models import SshBody, when
from sandpty.wire.errors import SandptyError


class Ssh:
    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return [web.post("/v1/ssh", self.certificate)]

    @answering
    async def certificate(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        wanted = await body(request, SshBody)
        identity = self._context.ssh
        if identity is None:
            raise SandptyError("unsupported", "this server was started without --ssh-port")
        if len(wanted.public_key) > config.SSH_KEY_CHARACTERS:
            raise SandptyError("too_large", f"a public key has at most {config.SSH_KEY_CHARACTERS} characters")
        made = identity.certificate(who.key, wanted.public_key)
        return web.json_response(
            {
                "host": identity.host,
                "port": identity.port,
                "host_key": identity.public_host_key,
                "certificate": made.text,
                "expires_at": when(made.until),
            }
        )
