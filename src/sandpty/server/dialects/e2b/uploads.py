"""POST `/files`: one file as the body, or many in a multipart body, written as they arrive; and `/files/compose`."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.e2b import file_models as models
from sandpty.server.dialects.e2b.acting import Acting, act, acting_for
from sandpty.server.dialects.e2b.errors import HttpError, bad_request
from sandpty.server.dialects.e2b.requests import read_json
from sandpty.server.dialects.e2b.signatures import FileQuery
from sandpty.server.files.multipart import MultipartReader, boundary_of
from sandpty.server.files.paths import base_name, printable
from sandpty.server.files.receiving import body_pieces, one_piece, small_body
from sandpty.server.guest_defaults import default_user
from sandpty.terminal.files import AccountChangedError, EntryType
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

_OCTETS, _FORM = "application/octet-stream", "multipart/form-data"
_METADATA_HEADER = "x-metadata-"
_KEY_BYTES_MAX = 246  # what is left of an attribute's name after `user.e2b.`
_METADATA_BYTES_MAX = 4096  # of keys and values together: one block of most file systems
_PRINTABLE = re.compile(r"[\x20-\x7e]*")


async def upload(context: Context, sandbox: Sandbox, request: web.Request, query: FileQuery) -> web.StreamResponse:
    """Raises HttpError, SandptyError. Files that were complete before an error stay."""
    user, metadata = query.username or default_user(sandbox), _metadata(request.headers)
    if request.content_type not in (_OCTETS, _FORM):
        shown = repr(request.content_type[:80])
        raise bad_request(f"unsupported content type {shown}: send multipart/form-data or application/octet-stream")
    whole = await small_body(request)

    async def write_small(guest: Acting) -> list[models.WrittenFile]:
        return await _Taking(guest, metadata, small=True).body(request, query, one_piece(whole or b""))

    if whole is not None:
        written = await act(context, sandbox, user, write_small)
    else:
        async with acting_for(context, sandbox, user) as guest:
            written = await _Taking(guest, metadata).body(request, query, body_pieces(request))
    return web.Response(body=msgspec.json.encode(written), content_type="application/json")


def _metadata(headers: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers.items():
        if not name.lower().startswith(_METADATA_HEADER):
            continue
        key = name[len(_METADATA_HEADER) :].lower()
        if not key or len(key) > _KEY_BYTES_MAX or not _PRINTABLE.fullmatch(key):
            raise bad_request(f"a metadata key is not 1 to {_KEY_BYTES_MAX} printable ASCII characters")
        if not _PRINTABLE.fullmatch(value):
            raise bad_request(f"the value of metadata {key[:64]!r} is not printable ASCII")
        found.setdefault(key, value)
    if sum(len(key) + len(value) for key, value in found.items()) > _METADATA_BYTES_MAX:
        raise bad_request(f"metadata is over {_METADATA_BYTES_MAX} bytes")
    return found


@dataclass(frozen=True, slots=True)
class _Taking:
    """Writes what a body holds. small: all of it is here already, and each file goes in one piece."""

    guest: Acting
    metadata: Mapping[str, str]
    small: bool = False

    async def body(
        self, request: web.Request, query: FileQuery, pieces: AsyncIterator[bytes]
    ) -> list[models.WrittenFile]:
        if request.content_type == _FORM:
            return await self._parts(MultipartReader(pieces, boundary_of(request.headers["Content-Type"])), query.path)
        if not query.path:
            raise bad_request("path query parameter is required when uploading application/octet-stream")
        return [await self._file(self.guest.path(query.path), pieces)]

    async def _parts(self, reader: MultipartReader, query_path: str) -> list[models.WrittenFile]:
        written: dict[str, models.WrittenFile] = {}
        async for part in reader:
            if part.name != "file":
                continue
            path = self.guest.path(query_path or part.file_name or "")
            if path in written:
                raise bad_request(
                    f"you cannot upload multiple files to the same path '{printable(path)}' in one upload request, "
                    "only the first specified file was uploaded"
                )
            if len(written) >= config.UPLOAD_FILES_MAX:
                raise bad_request(f"more than {config.UPLOAD_FILES_MAX} files in one upload request")
            written[path] = await self._file(path, reader.pieces())
        return list(written.values())

    async def _file(self, path: str, pieces: AsyncIterator[bytes]) -> models.WrittenFile:
        account = self.guest.account
        data = b"".join([piece async for piece in pieces]) if self.small else pieces
        try:
            await self.guest.files.write(
                path, data, parents=True, uid=account.uid, gid=account.gid, metadata=self.metadata
            )
        except AccountChangedError:
            raise
        except SandptyError as error:
            raise _failure(error, path) from error
        shown = printable(path)
        return models.WrittenFile(shown, printable(base_name(path)), "file", dict(self.metadata) or None)


def _failure(error: SandptyError, path: str) -> Exception:
    shown = printable(path)
    match error.reason.name:
        case "is_a_directory":
            return HttpError(400, f"path is a directory: {shown}")
        case "not_a_file":
            return HttpError(400, f"path is not a regular file: {shown}")
        case "not_a_directory":
            return HttpError(500, f"error creating directories: a part of '{shown}' is not a directory")
    return error


# --- compose ---------------------------------------------------------------------------------------------------------


async def compose(context: Context, sandbox: Sandbox, request: web.Request) -> web.StreamResponse:
    """Joins files into one, which takes its place only when it is whole; then the parts are removed."""
    body = await read_json(request, models.ComposeBody)
    if not body.source_paths:
        raise bad_request("source_paths must not be empty")
    if len(body.source_paths) > config.COMPOSE_SOURCES_MAX:
        raise bad_request(f"source_paths must not hold more than {config.COMPOSE_SOURCES_MAX} paths")
    if not body.destination:
        raise bad_request("destination is required")
    user = body.username or default_user(sandbox)
    try:
        # Two connections: what is read from one is written to the other.
        async with acting_for(context, sandbox, user) as guest, acting_for(context, sandbox, user) as source:
            target = guest.path(body.destination)
            sources = await _sources(source, body.source_paths, target)
            await _join(guest, source, sources, target)
    except SandptyError as error:
        if error.reason.name != "no_such_user":
            raise
        shown = printable(user[:64])
        raise HttpError(401, f"error looking up user '{shown}': user: unknown user {shown}") from error
    reply = models.WrittenFile(printable(target), printable(base_name(target)), "file")
    return web.Response(body=msgspec.json.encode(reply), content_type="application/json")


async def _sources(guest: Acting, given: list[str], target: str) -> list[str]:
    paths = []
    place = await _place(guest, target)
    for name in given:
        path = guest.path(name)
        if await _place(guest, path) == place:
            raise bad_request(f'source path "{printable(name)}" cannot be the same as destination')
        try:
            entry = await guest.files.stat(path, follow=True)
        except SandptyError as error:
            if error.reason.name not in ("no_such_file", "not_a_directory", "symlink_loop"):
                raise
            raise HttpError(404, f"source file not found: {printable(name)}") from error
        if entry.type is not EntryType.FILE:
            raise bad_request(f"source path is not a regular file: {printable(name)}")
        paths.append(path)
    return paths


async def _place(guest: Acting, path: str) -> str:
    """One word for one file, however it is named: the sources are removed at last."""
    try:
        return await guest.files.real_path(path)
    except SandptyError:  # it is not there yet
        return path


async def _join(guest: Acting, source: Acting, paths: list[str], target: str) -> None:
    account = guest.account
    # Beside it, but not called after it: a name of 255 bytes leaves no room for more.
    unfinished = f"{target.rpartition('/')[0]}/.e2b-compose.{secrets.token_hex(8)}.tmp"
    try:
        async with guest.files.create(
            unfinished, exclusive=True, parents=True, uid=account.uid, gid=account.gid
        ) as writing:
            for path in paths:
                async with source.files.open(path) as reading:
                    async for piece in reading:
                        await writing.write(piece)
            await writing.finish()
        await guest.files.move(unfinished, target)
    except BaseException:
        with suppress(SandptyError):
            await source.files.remove(unfinished)
        raise
    for path in paths:
        with suppress(SandptyError):
            await guest.files.remove(path)
