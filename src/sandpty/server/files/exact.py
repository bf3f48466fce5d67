"""A file as HTTP's answer to GET and HEAD: whole, in part, or not because the client has it already (RFC 9110)."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from sandpty.server.files import ranges
from sandpty.server.files.sending import send_file, send_part
from sandpty.terminal.files import Entry, Reading


def wants_exact(request: web.Request) -> bool:
    """Whether the answer depends on the file's own length and age: it is then opened with length 0."""
    return request.method == "HEAD" or ranges.asks_for_part(request.headers)


def _validators(entry: Entry) -> dict[str, str]:
    return {
        "Accept-Ranges": "bytes",
        "ETag": ranges.entity_tag(entry),
        "Last-Modified": ranges.last_modified(entry),
    }


async def send_content(
    request: web.Request, reading: Reading, headers: Mapping[str, str], *, exact: bool, coding: str = "identity"
) -> web.StreamResponse:
    """The answer. `exact` as `wants_exact` said, `coding` only without it."""
    entry = reading.entry
    if not exact:
        sure = entry.size and coding == "identity"
        return await send_file(request, reading, {**headers, **(_validators(entry) if sure else {})}, coding=coding)
    return await _exact(request, reading, {**headers, **_validators(entry)})


async def _exact(request: web.Request, reading: Reading, headers: dict[str, str]) -> web.StreamResponse:
    entry = reading.entry
    status = ranges.condition_status(request.headers, entry)
    if status != 200:
        return web.Response(status=status, headers=headers)
    part = None
    if ranges.range_holds(request.headers, entry):
        try:
            part = ranges.parse_range(request.headers.get("Range"), entry.size)
        except ranges.UnsatisfiableError:
            return web.Response(status=416, headers=headers | {"Content-Range": f"bytes */{entry.size}"})
    if request.method == "HEAD":
        return web.Response(headers=headers | {"Content-Length": str(entry.size)})
    if part is None:
        await reading.read()
        return await send_file(request, reading, headers)
    await reading.read(part.offset, part.length)
    return await send_part(request, reading, headers | {"Content-Range": part.header}, part.length)
