"""E2B's logs of a sandbox: GET /sandboxes/{id}/logs, which its command line uses, and the v2 with cursor and search."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.e2b.errors import bad_request
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.listing import rfc3339
from sandpty.server.dialects.e2b.replies import json_reply
from sandpty.server.sandbox_log import LEVELS, LogLine, sandbox_log


def _number(request: web.Request, name: str, default: int, most: int) -> int:
    """Raises HttpError 400."""
    raw = request.query.get(name, "")
    if not raw:
        return default
    if not (raw.isascii() and raw.isdigit() and len(raw) <= 15 and int(raw) <= most):
        raise bad_request(f"{name} is a whole number from 0 to {most}, not {raw[:40]!r}")
    return int(raw)


def _entry(line: LogLine) -> dict[str, Any]:
    return {
        "timestamp": rfc3339(line.at),
        "level": line.level,
        "message": line.message,
        "fields": {"logger": line.logger, **line.fields},
    }


def _line(line: LogLine) -> dict[str, str]:
    """The old form: `line` is JSON once more."""
    content = {"level": line.level, "message": line.message, "logger": line.logger, **line.fields}
    return {"timestamp": rfc3339(line.at), "line": msgspec.json.encode(content).decode()}


class Logs:
    """The handlers. Times in requests are unix milliseconds."""

    def __init__(self, context: Context) -> None:
        self._registry = context.registry

    def routes(self) -> list[Row]:
        return [
            ("GET", "/sandboxes/{id}/logs", self.logs),
            ("GET", "/v2/sandboxes/{id}/logs", self.logs_v2),
        ]

    async def logs(self, request: web.Request, principal: Principal) -> web.Response:
        """From `start` on, oldest first, `limit` of them."""
        start_ms = _number(request, "start", 0, config.LOG_TIME_MAX_MS)
        limit = _number(request, "limit", config.LOG_LINES_MAX, config.LOG_LINES_MAX)
        lines = await sandbox_log(self._registry, request.match_info["id"], principal)
        found = [line for line in lines if line.at * 1000 >= start_ms][:limit]
        return json_reply({"logs": [_line(line) for line in found], "logEntries": [_entry(line) for line in found]})

    async def logs_v2(self, request: web.Request, principal: Principal) -> web.Response:
        """`direction` forward: from `cursor` on, oldest first; backward: up to it, newest first. `level`: at least."""
        direction = request.query.get("direction", "forward")
        if direction not in ("forward", "backward"):
            raise bad_request(f"direction is forward or backward, not {direction[:40]!r}")
        least = request.query.get("level", LEVELS[0])
        if least not in LEVELS:
            raise bad_request(f"level is one of {', '.join(LEVELS)}, not {least[:40]!r}")
        limit = _number(request, "limit", config.LOG_LINES_MAX, config.LOG_LINES_MAX)
        forward = direction == "forward"
        cursor_ms = _number(request, "cursor", 0 if forward else config.LOG_TIME_MAX_MS, config.LOG_TIME_MAX_MS)
        wanted = request.query.get("search", "").lower()
        lines = await sandbox_log(self._registry, request.match_info["id"], principal)
        found = [
            line
            for line in (lines if forward else reversed(lines))
            if (line.at * 1000 >= cursor_ms if forward else int(line.at * 1000) <= cursor_ms)
            and LEVELS.index(line.level) >= LEVELS.index(least)
            and wanted in line.message.lower()
        ]
        return json_reply({"logs": [_entry(line) for line in found[:limit]]})
