"""How errors look to E2B's clients: `{"code": int, "message": str}` on the control plane and from the proxy in front
of a sandbox, `{"code": "<connect code>", "message": str}` from the process service.

The shapes are load-bearing: Python's generated client raises KeyError on a missing member, JavaScript decides
"not found" by the body's code.
"""

from __future__ import annotations

import logging
import secrets

import msgspec
from aiohttp import web

from sandpty.server.dialects.e2b.connect import ConnectError
from sandpty.wire.errors import SandptyError

log = logging.getLogger(__name__)

NOT_FOUND_TEXT = "The sandbox was not found"  # the SDKs look for exactly these words


class HttpError(Exception):
    """An error of the control plane or of the proxy: an HTTP status, and a body with the same code."""

    def __init__(self, status: int, message: str, **members: str | int) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.members = members

    def response(self) -> web.Response:
        body = {**self.members, "code": self.status, "message": self.message}
        return web.Response(status=self.status, body=msgspec.json.encode(body), content_type="application/json")


def bad_request(message: str) -> HttpError:
    return HttpError(400, message)


def sandbox_unknown(sandbox_id: str) -> HttpError:
    """The control plane's answer."""
    return HttpError(404, f"Sandbox \"{sandbox_id[:64]}\" doesn't exist or you don't have access to it")


def sandbox_not_found(sandbox_id: str) -> HttpError:
    """The proxy's answer for an unknown, ended or paused sandbox; from it the SDKs know that it is not running."""
    return HttpError(502, NOT_FOUND_TEXT, sandboxId=sandbox_id[:64])


def token_refused() -> HttpError:
    return HttpError(401, "unauthorized access, please provide a valid access token or method signing if supported")


def http_error(error: SandptyError) -> HttpError:
    """What the error table says for the control plane."""
    reason = error.reason
    message = f"{error.message} ({reason.hint})" if reason.hint else error.message
    return HttpError(reason.http, message)


def incident(error: Exception) -> str:
    """Log an unexpected error under an id that the client is told."""
    id_ = secrets.token_hex(6)
    log.error("incident %s", id_, exc_info=error)
    return id_


def unexpected_http(error: Exception) -> HttpError:
    return HttpError(500, f"internal error, incident {incident(error)}")


def unexpected_connect(error: Exception) -> ConnectError:
    return ConnectError("internal", f"internal error, incident {incident(error)}")
