"""Reading requests: bounded bodies, which sandbox, whose token, which user of the guest."""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode
from contextlib import suppress
from typing import TypeVar

from aiohttp import web

from sandpty import config
from sandpty.server import bodies
from sandpty.server.context import Context
from sandpty.server.dialects.e2b.errors import HttpError, bad_request, http_error, sandbox_not_found, token_refused
from sandpty.server.guest_defaults import default_user
from sandpty.server.ports.routing import ID_HEADERS, OWN_PORT, PORT_HEADERS, target_by_host
from sandpty.server.registry import wakes
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

T = TypeVar("T")

ENVD_PORT = OWN_PORT


async def read_body(request: web.Request, max_bytes: int) -> bytes:
    """The whole body, chunked or not. Raises HttpError 413 over `max_bytes`, 408 when it does not arrive, 400."""
    try:
        return await bodies.read_body(request, max_bytes)
    except SandptyError as error:
        raise HttpError(error.reason.http, error.message) from error


async def read_json(request: web.Request, model: type[T]) -> T:
    """A control-plane body; an empty one counts as `{}`. Raises HttpError 400, 408, 413."""
    body = await read_body(request, config.REQUEST_BODY_BYTES)
    try:
        return bodies.decode_json(body, model)
    except SandptyError as error:
        raise bad_request(error.message) from error


def _first_header(request: web.Request, names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := request.headers.get(name))), None)


def is_novita(request: web.Request) -> bool:
    """Whether one of Novita's SDKs asks."""
    return "X-Novita-SDK-Name" in request.headers


def named_sandbox_id(request: web.Request) -> str:
    """The sandbox that the Host or the routing headers name, "" for none. A client id after a dash is the old form."""
    if (target := target_by_host(request.headers.get("Host", ""))) is not None:
        return target.sandbox_id
    return (_first_header(request, ID_HEADERS) or "").partition("-")[0]


def find_sandbox(context: Context, request: web.Request, signed_for: str = "") -> Sandbox:
    """The sandbox this request is for, by its headers or else by its token: one that runs, or would wake for it.

    signed_for: the id of the one whose signature the request carries, where nothing else names one.

    Raises HttpError: 502 when there is none, 501 for a port other than envd's.
    """
    sandbox_id = named_sandbox_id(request) or signed_for
    if sandbox_id:
        try:
            sandbox = context.registry.get(sandbox_id)
        except SandptyError as error:
            raise sandbox_not_found(sandbox_id) from error
    else:
        # Novita's Python SDK sends no id after connect(): the token is all there is to go by.
        found = context.registry.by_token(request.headers.get("X-Access-Token", ""))
        if found is None:
            raise sandbox_not_found("")
        sandbox = found
    if sandbox.state != "running" and not wakes(sandbox):
        raise sandbox_not_found(sandbox.id)
    if not context.auth.has_keys(sandbox.owner):
        raise token_refused()  # a token is worth what the keys of its team are worth
    port = _first_header(request, PORT_HEADERS)
    if port is not None and port != str(ENVD_PORT):
        raise HttpError(501, f"port {port[:8]} of a sandbox is not reachable through this server", sandboxId=sandbox.id)
    return sandbox


def check_token(request: web.Request, sandbox: Sandbox) -> None:
    """Raises HttpError 401 unless the request carries the sandbox's access token, or it was created without one."""
    if not is_secure(sandbox):
        return
    given = request.headers.get("X-Access-Token", "").encode("utf-8", "surrogateescape")
    if not hmac.compare_digest(given, str(sandbox.annotations.get("token", "")).encode()) or not given:
        raise token_refused()


def is_secure(sandbox: Sandbox) -> bool:
    """Whether the sandbox's own API asks for its token; only E2B's v1 create can say no."""
    return bool(sandbox.annotations.get("e2b", {}).get("secure", True))


def guest_user(request: web.Request, sandbox: Sandbox) -> str:
    """Whom to run as: the name in `Authorization: Basic`, which selects and proves nothing, else the default user."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    name = ""
    if scheme.lower() == "basic":
        with suppress(binascii.Error, ValueError):
            name = b64decode(value.strip(), validate=True).decode().partition(":")[0]
    return name or default_user(sandbox)


async def authorized_sandbox(context: Context, request: web.Request) -> Sandbox:
    """The sandbox that this request is for and may use, woken if need be. Raises HttpError 401, 501, 502."""
    sandbox = find_sandbox(context, request)
    check_token(request, sandbox)
    return await woken(context, sandbox)


async def woken(context: Context, sandbox: Sandbox) -> Sandbox:
    """The sandbox, running, after its token was checked. Raises HttpError 502."""
    if sandbox.state == "running":
        return sandbox
    try:
        return await context.registry.awake(sandbox.id)
    except SandptyError as error:
        if error.reason.name in ("no_such_sandbox", "sandbox_paused"):
            raise sandbox_not_found(sandbox.id) from error
        raise http_error(error) from error
