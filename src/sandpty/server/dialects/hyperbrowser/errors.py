"""How errors look to Hyperbrowser's clients: `{"message", "code"}`, and the request's id in a header.

Both SDKs make one exception of it: message, code and HTTP status. A 401 of the runtime makes them fetch a new token and
ask again, so nothing else of the runtime may be 401; 429, 502, 503 and 504 count as worth another try.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from sandpty.wire.errors import SandptyError

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Where their clients expect another status than the table's, and codes of their own that they look for.
_STATUSES = {"no_such_user": 400, "sandbox_ended": 409, "start_failed": 400}
_KERNEL_TEXTS = ("No such file or directory", "Not a directory", "Operation not permitted", "Permission denied")
_CODES = {
    "output_lost": "replay_window_expired",
    "sandbox_paused": "sandbox_not_running",
    "sandbox_ended": "sandbox_not_running",
    "no_such_sandbox": "not_found",
    "no_such_process": "not_found",
    "no_such_template": "not_found",
    "no_such_file": "not_found",
}


class HyperbrowserError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code

    def response(self) -> web.Response:
        return json_response({"message": self.message, "code": self.code}, self.status)


def bad_request(message: str) -> HyperbrowserError:
    return HyperbrowserError(400, message, "bad_request")


def not_found(what: str) -> HyperbrowserError:
    """`what` begins the sentence: Image "x"."""
    return HyperbrowserError(404, f"{what} not found", "not_found")


def not_running(sandbox_id: str) -> HyperbrowserError:
    """The sandbox is stopped or paused; the SDKs say the same of a sandbox without a token."""
    return HyperbrowserError(409, f"Sandbox is not running: {sandbox_id[:64]}", "sandbox_not_running")


def unsupported(what: str) -> HyperbrowserError:
    return HyperbrowserError(501, f"{what} not supported by this server", "unsupported")


def replay_window_expired() -> HyperbrowserError:
    """What was asked for again is no longer kept."""
    return HyperbrowserError(410, "Replay window expired", "replay_window_expired")


def of(error: SandptyError) -> HyperbrowserError:
    """What the error table says, in this vendor's words."""
    name = error.reason.name
    if name == "output_lost":
        return replay_window_expired()
    message = error.message
    if name == "timeout" and "timed out" not in message:
        message = f"timed out: {message}"
    for text in _KERNEL_TEXTS:  # their clients and tests look for these words as Go writes them
        message = message.replace(text, text.lower())
    if name == "sandbox_paused":
        message = f"Sandbox is not running: {message}"
    return HyperbrowserError(_STATUSES.get(name, error.reason.http), message, _CODES.get(name, name))


def unexpected(error: Exception) -> HyperbrowserError:
    """Logged under an id that the client is told."""
    incident = secrets.token_hex(6)
    log.error("incident %s", incident, exc_info=error)
    return HyperbrowserError(500, f"internal error, incident {incident}", "internal")


def answering(handler: Handler) -> Handler:
    """Errors of `handler` as answers. Every answer carries a request id, which the SDKs' exceptions repeat."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            response = await handler(request)
        except HyperbrowserError as error:
            response = error.response()
        except SandptyError as error:
            response = of(error).response()
        except ConnectionError:
            raise
        except Exception as error:
            response = unexpected(error).response()
        if not response.prepared:
            response.headers["x-request-id"] = secrets.token_hex(8)
            # Node would keep a refused WebSocket's connection, and not end before it does
            if "Upgrade" in request.headers:
                response.force_close()
        return response

    return handle


def json_response(value: object, status: int = 200) -> web.Response:
    """JSON with its length: Node fails on an answer without either."""
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")
