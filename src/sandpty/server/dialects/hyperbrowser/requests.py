"""What the handlers of a sandbox's own API share: bodies, looking a process up, waiting for its end."""

from __future__ import annotations

from typing import TypeVar

from aiohttp import web

from sandpty import config
from sandpty.server.bodies import decode_json, read_body
from sandpty.server.dialects.hyperbrowser import models
from sandpty.server.dialects.hyperbrowser.errors import HyperbrowserError, bad_request
from sandpty.server.dialects.hyperbrowser.starting import missing, timeout_ms
from sandpty.terminal import control
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import ProcessInfo, Selector
from sandpty.wire.verbs import Sandbox

T = TypeVar("T")


async def read_json(request: web.Request, model: type[T]) -> T:
    """A request's JSON body. Raises bad_request, too_large, timeout."""
    return decode_json(await read_body(request, config.REQUEST_BODY_BYTES), model)


async def look(sandbox: Sandbox, which: Selector) -> ProcessInfo:
    """Raises HyperbrowserError 404."""
    try:
        return await control.stat(sandbox.socket, which)
    except SandptyError as error:
        if error.reason.name == "no_such_process":
            raise missing(which.tag) from error
        raise


async def wait_for_end(sandbox: Sandbox, which: Selector, body: models.WaitBody) -> None:
    """Raises HyperbrowserError 408."""
    timeout_s = (timeout_ms(body) or config.HYPERBROWSER_WAIT_S * 1000) / 1000
    try:
        await control.wait(sandbox.socket, which, min(timeout_s, config.WAIT_MAX_S))
    except SandptyError as error:
        if error.reason.name == "timeout":
            raise HyperbrowserError(408, f"timed out after {timeout_s:g} s of waiting", "timeout") from error
        raise


def number(request: web.Request, name: str) -> int | None:
    """A number of the query, None for absent or empty. Raises HyperbrowserError 400."""
    text = request.query.get(name)
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise bad_request(f"{name} is a number, not {text[:32]!r}")
    return int(text)


def flag(request: web.Request, name: str) -> bool:
    """`true` from Node, `True` from Python."""
    return request.query.get(name, "").lower() in ("true", "1")
