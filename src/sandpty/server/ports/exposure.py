"""Ports that are reached only once they are exposed, some of them only by who shows a token of the sandbox.

Programs show a runtime token (`Authorization: Bearer`). A browser is sent to GRANT_PATH on the port's own host with a
grant in its query, gets a cookie for that host, and is sent on. What opens a port is not passed on to its service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import quote

from aiohttp import web

from sandpty import config
from sandpty.server.auth import Authenticator, bearer
from sandpty.server.ports.answers import PortError
from sandpty.server.ports.heads import Header
from sandpty.server.ports.policy import policy_of
from sandpty.server.ports.routing import Target
from sandpty.server.runtime_tokens import Claims, RuntimeClaims, SignedTokens, expiry
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

GRANT_PATH = "/_hb/auth"  # Hyperbrowser's
_COOKIE = "_hb_port"


class PortClaims(Claims, frozen=True, kw_only=True, tag="port"):
    """One port of one sandbox. `key`: the API key behind it."""

    port: int
    key: str = ""


def grant_url(tokens: SignedTokens, sandbox: Sandbox, port: int, key: str, url: str) -> tuple[str, int]:
    """Where to send a browser that shall reach the port at `url` (ends in /), and until when (unix seconds)."""
    expires = expiry(config.PORT_GRANT_S)
    grant = tokens.sign(PortClaims(sub=sandbox.id, own=sandbox.owner, exp=expires, port=port, key=key))
    return f"{url.rstrip('/')}{GRANT_PATH}?grant={grant}&next={quote('/', safe='')}", expires


def without_grant(headers: Iterable[Header]) -> Iterator[Header]:
    """A request's headers for the service behind a port that wants a token: neither that token nor our cookie."""
    for name, value in headers:
        if name.lower() == b"cookie":
            pairs = [pair for pair in value.split(b";") if pair.partition(b"=")[0].strip() != _COOKIE.encode()]
            if pairs:
                yield name, b";".join(pairs).strip()
        elif name.lower() != b"authorization":
            yield name, value


class Exposure:
    """Of one server."""

    def __init__(self, tokens: SignedTokens, auth: Authenticator) -> None:
        self._tokens = tokens
        self._auth = auth

    def admit(self, request: web.Request, target: Target, sandbox: Sandbox) -> web.Response | None:
        """None: go on to the service. Else the answer to a browser that came with a grant.

        Raises PortError: 403 for a port that is not exposed, 401 without a token where one is wanted.
        """
        exposed = policy_of(sandbox).exposed
        if exposed is None:
            return None
        if target.port not in exposed:
            raise PortError(403, f"Port {target.port} is not exposed", sandboxId=sandbox.id, port=target.port)
        if not exposed[target.port]:
            return None
        if request.path == GRANT_PATH and "grant" in request.query:
            return self._welcome(request, target, sandbox)
        if self._knows(request, target, sandbox):
            return None
        raise PortError(401, f"Port {target.port} needs a token", sandboxId=sandbox.id, port=target.port)

    def _knows(self, request: web.Request, target: Target, sandbox: Sandbox) -> bool:
        if self._is_of(bearer(request), sandbox):
            return True
        return self._opens(request.cookies.get(_COOKIE, ""), target, sandbox)

    def _is_of(self, token: str, sandbox: Sandbox) -> bool:
        try:
            claims = self._tokens.read(token, RuntimeClaims)
        except SandptyError:
            return False
        return claims.sub == sandbox.id and self._auth.counts(claims.own, claims.key)

    def _opens(self, token: str, target: Target, sandbox: Sandbox) -> bool:
        try:
            claims = self._tokens.read(token, PortClaims)
        except SandptyError:
            return False
        right = claims.sub == sandbox.id and claims.port == target.port
        return right and self._auth.counts(claims.own, claims.key)

    def _welcome(self, request: web.Request, target: Target, sandbox: Sandbox) -> web.Response:
        grant = request.query["grant"]
        if not target.named or not self._opens(grant, target, sandbox):
            raise PortError(401, "The grant is not valid any more", sandboxId=sandbox.id, port=target.port)
        after = request.query.get("next", "/")
        # Only a place on this very host: `//` and `/\\` would name another one.
        if not after.startswith("/") or after[1:2] in ("/", "\\") or not after.isprintable():
            after = "/"
        claims = self._tokens.read(grant, PortClaims)
        kept = PortClaims(
            sub=claims.sub, own=claims.own, exp=expiry(config.PORT_COOKIE_S), port=claims.port, key=claims.key
        )
        answer = web.Response(status=302, headers={"Location": after, "Cache-Control": "no-store"})
        answer.set_cookie(
            _COOKIE,
            self._tokens.sign(kept),
            max_age=config.PORT_COOKIE_S,
            httponly=True,
            secure=request.secure,
            samesite="Lax",
        )
        return answer
