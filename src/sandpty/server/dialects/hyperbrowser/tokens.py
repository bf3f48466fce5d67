"""Who asks: an API key on the control plane, a runtime token inside of a sandbox."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import web

from sandpty import config
from sandpty.server.auth import Principal, bearer
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser.errors import not_running
from sandpty.server.origin import host
from sandpty.server.runtime_tokens import RuntimeClaims, expiry
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

_LOOPBACK = re.compile(r"^(?:127\.[0-9.]+|\[::1\])(?=:|$)")


def iso(unix_s: float) -> str:
    """ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Session:
    """A runtime token as a sandbox's detail tells it."""

    token: str
    expires_at: str


def session(context: Context, sandbox: Sandbox, principal: Principal) -> Session:
    """A new token for everything inside of `sandbox`."""
    expires = expiry(config.RUNTIME_TOKEN_S)
    claims = RuntimeClaims(sub=sandbox.id, own=sandbox.owner, exp=expires, key=principal.key)
    return Session(context.tokens.sign(claims), iso(expires))


def origin(request: web.Request) -> str:
    """Where the client reached us.

    A loopback address becomes a name: Node's SDK puts `<port>-<id>.` in front of the host, which no address can carry.
    """
    return f"{request.scheme}://{_LOOPBACK.sub('localhost', host(request))}"


def runtime_url(request: web.Request, sandbox_id: str) -> str:
    """The base of everything inside of a sandbox. With the id in its path, no name needs resolving for it."""
    return f"{origin(request)}/sandbox/{sandbox_id}"


def check_token(context: Context, token: str, sandbox_id: str) -> RuntimeClaims:
    """Raises unauthenticated unless the token is for this sandbox, alive, and its API key is not revoked."""
    if not token:
        raise SandptyError("unauthenticated", "this request carries no runtime token")
    claims = context.tokens.read(token, RuntimeClaims)
    if claims.sub != sandbox_id:
        raise SandptyError("unauthenticated", "the runtime token is for another sandbox")
    context.auth.check_given(claims.own, claims.key)
    return claims


def authorized_sandbox(context: Context, request: web.Request) -> Sandbox:
    """The running sandbox of the path, for a request with a token of it.

    Raises unauthenticated, no_such_sandbox, HyperbrowserError 409 when it does not run.
    """
    sandbox_id = request.match_info["id"]
    claims = check_token(context, bearer(request), sandbox_id)
    return running(context, sandbox_id, context.auth.accept(request, claims.own, claims.key))


def running(context: Context, sandbox_id: str, principal: Principal) -> Sandbox:
    """Raises no_such_sandbox, HyperbrowserError 409 for one that has ended or is paused."""
    try:
        sandbox = context.registry.get(sandbox_id, principal)
    except SandptyError:
        if context.registry.ended.get(sandbox_id, principal.id) is not None:
            raise not_running(sandbox_id) from None
        raise
    if sandbox.state != "running":
        raise not_running(sandbox_id)
    return sandbox


def now_ms() -> int:
    return int(time.time() * 1000)
