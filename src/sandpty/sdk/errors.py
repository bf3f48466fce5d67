"""From what a server answers to a SandptyError of the one table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sandpty.sdk.exceptions import error_of
from sandpty.wire.errors import REASONS, SandptyError

# For answers without a reason of ours: a proxy's, or another program on that port.
_BY_STATUS = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "unsupported",
    408: "timeout",
    412: "conflict",
    413: "too_large",
    416: "conflict",
    429: "limit",
    502: "server_unreachable",
    503: "server_unreachable",
    504: "server_unreachable",
}


def unreachable(url: str, cause: BaseException) -> SandptyError:
    """No answer at all: nothing listens there, or the connection broke."""
    detail = " ".join(str(cause).split()) or type(cause).__name__
    return error_of("server_unreachable", f"no sandpty server answers at {url}: {detail}")


def from_response(status: int, body: bytes) -> SandptyError:
    """The error of an HTTP answer. `body` is JSON `{"error": {"reason", "message", "hint"}}`, or anything."""
    return _from_member(_error_member(body), status)


def from_member(error: Mapping[str, Any]) -> SandptyError:
    """The error that stands in an answer beside successes."""
    return _from_member(error, 500)


def _from_member(error: Mapping[str, Any], status: int) -> SandptyError:
    reason = error.get("reason")
    message = error.get("message")
    if isinstance(reason, str) and reason in REASONS:
        return error_of(reason, message if isinstance(message, str) else reason)
    fallback = _BY_STATUS.get(status, "internal")
    return error_of(fallback, message if isinstance(message, str) else f"the server answered HTTP {status}")


def from_close(code: int, text: str) -> SandptyError:
    """The error of a WebSocket close code 4000 + HTTP status; its text is `reason: message`."""
    name, _, message = text.partition(": ")
    if name in REASONS:
        return error_of(name, message or name)
    return error_of(_BY_STATUS.get(code - 4000, "internal"), text or f"the server closed with code {code}")


def _error_member(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    error = parsed.get("error") if isinstance(parsed, dict) else None
    return error if isinstance(error, dict) else {}
