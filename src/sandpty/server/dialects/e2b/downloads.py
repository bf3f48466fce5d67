"""GET `/files`: a file of the sandbox, whole, in part, or not because the client has it already."""

from __future__ import annotations

from aiohttp import web

from sandpty.server.context import Context
from sandpty.server.dialects.e2b.acting import Acting, act
from sandpty.server.dialects.e2b.connect import CORS_HEADERS
from sandpty.server.dialects.e2b.errors import HttpError
from sandpty.server.dialects.e2b.signatures import FileQuery
from sandpty.server.files.exact import send_content, wants_exact
from sandpty.server.files.paths import base_name, printable
from sandpty.server.files.sending import choose_coding, content_disposition, content_type
from sandpty.server.guest_defaults import default_user
from sandpty.terminal.files import AccountChangedError, EntryType
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox


async def download(context: Context, sandbox: Sandbox, request: web.Request, query: FileQuery) -> web.StreamResponse:
    """Raises HttpError, SandptyError before anything was sent."""
    exact = wants_exact(request)
    coding = "identity" if exact else choose_coding(request.headers.get("Accept-Encoding"))

    async def answer(guest: Acting) -> web.StreamResponse:
        path = guest.path(query.path)
        try:
            return await _answer(guest, request, path, exact, coding)
        except AccountChangedError:
            raise
        except SandptyError as error:
            raise _failure(error, path) from error

    return await act(context, sandbox, query.username or default_user(sandbox), answer)


async def _answer(
    guest: Acting, request: web.Request, path: str, exact: bool, coding: str | None
) -> web.StreamResponse:
    async with guest.files.open(path, length=0 if exact or coding is None else None) as reading:
        if reading.entry.type is not EntryType.FILE:  # a device has no end, and no content of its own
            raise HttpError(400, f"path '{printable(path)}' is not a regular file")
        if coding is None:
            raise HttpError(406, "none of the codings in Accept-Encoding can be served: use gzip or identity")
        headers = {
            "Content-Type": content_type(path),
            "Content-Disposition": content_disposition(base_name(path)),
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
            **CORS_HEADERS,
        }
        return await send_content(request, reading, headers, exact=exact, coding=coding)


def _failure(error: SandptyError, path: str) -> Exception:
    shown = printable(path)
    match error.reason.name:
        case "no_such_file" | "not_a_directory":
            return HttpError(404, f"path '{shown}' does not exist")
        case "is_a_directory":
            return HttpError(400, f"path '{shown}' is a directory")
        case "not_a_file":
            return HttpError(400, f"path '{shown}' is not a regular file")
    return error
