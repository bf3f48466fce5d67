"""/v1/sandboxes/{id}/files: looked at, listed, read, written, moved, removed, given other modes and owners.

Whoever `user` names really acts: the guest's kernel says what they may. Everything is said in the query, whose paths
are the guest's bytes; a body is content, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.native import file_models as models
from sandpty.server.dialects.native.answers import SANDBOX, answering, error_body, principal
from sandpty.server.files.exact import send_content, wants_exact
from sandpty.server.files.paths import base_name, expand, printable
from sandpty.server.files.receiving import body_pieces
from sandpty.server.files.sending import content_disposition, content_type
from sandpty.server.guest_defaults import default_user
from sandpty.terminal.files import KEEP, Entry, EntryType, Files
from sandpty.wire.errors import SandptyError

FILES = SANDBOX + "/files"


class FileHandlers:
    """Handlers; each is one line of the table in docs/reference/protocol.md."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return [
            web.get(FILES + "/stat", self.stat, allow_head=False),
            web.get(FILES + "/list", self.list_, allow_head=False),
            web.get(FILES + "/content", self.read),
            web.put(FILES + "/content", self.write),
            web.put(FILES + "/directory", self.make_directory),
            web.put(FILES + "/symlink", self.make_symlink),
            web.post(FILES + "/move", self.move),
            web.post(FILES + "/copy", self.copy),
            web.post(FILES + "/change", self.change),
            web.delete(FILES, self.remove),
        ]

    @asynccontextmanager
    async def _acting(self, request: web.Request, model: type[models.Q]) -> AsyncIterator[tuple[models.Q, Files]]:
        """The query, and a connection that acts as its user. Raises no_such_user, and as FileConnections.lease."""
        who = principal(self._context, request)
        wanted = models.query(request, model)
        sandbox = await self._context.registry.awake(request.match_info["sandbox"], who)
        async with self._context.files.lease(sandbox, wanted.user or default_user(sandbox)) as files:
            yield wanted, files

    # --- looking ---

    @answering
    async def stat(self, request: web.Request) -> web.StreamResponse:
        async with self._acting(request, models.StatQuery) as (wanted, files):
            return _answer(await files.stat(expand(wanted.path, files.account), follow=wanted.follow))

    @answering
    async def list_(self, request: web.Request) -> web.StreamResponse:
        """A line of JSON for each entry, as they come; what goes wrong after the first is the last line."""
        async with self._acting(request, models.ListQuery) as (wanted, files):
            limit = min(max(0, wanted.limit), config.FILES_LISTED_MAX)
            path = expand(wanted.path, files.account)
            async with aclosing(files.list(path, depth=wanted.depth, limit=limit)) as portions:  # type: ignore[type-var]
                first: list[Entry] = await anext(portions, [])
                response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
                await response.prepare(request)
                try:
                    await _write_lines(response, first)
                    async for portion in portions:
                        await _write_lines(response, portion)
                except SandptyError as error:
                    await response.write(msgspec.json.encode(error_body(error)) + b"\n")
                except TimeoutError as error:
                    raise ConnectionResetError("the client does not read") from error
                await response.write_eof()
                return response

    # --- content ---

    @answering
    async def read(self, request: web.Request) -> web.StreamResponse:
        """GET and HEAD. Ranges and conditions as HTTP has them; `ETag` changes whenever the content may have."""
        async with self._acting(request, models.ReadQuery) as (wanted, files):
            path = expand(wanted.path, files.account)
            exact = wants_exact(request)
            async with files.open(path, length=0 if exact else None) as reading:
                if reading.entry.type is not EntryType.FILE:  # a device has no end, and no content of its own
                    raise SandptyError("not_a_file", f"{printable(path)} is no regular file")
                headers = {
                    "Content-Type": content_type(path),
                    "Content-Disposition": content_disposition(base_name(path)),
                    "X-Content-Type-Options": "nosniff",
                    "X-Sandpty-Mode": f"{reading.entry.mode:04o}",
                }
                try:
                    return await send_content(request, reading, headers, exact=exact)
                except TimeoutError as error:
                    raise ConnectionResetError("the client does not read") from error

    @answering
    async def write(self, request: web.Request) -> web.StreamResponse:
        """In place, as it arrives: a body that is cut off leaves what had come."""
        async with self._acting(request, models.WriteQuery) as (wanted, files):
            uid, gid = await models.owner_of(files, wanted.owner)
            async with files.create(
                expand(wanted.path, files.account),
                mode=models.mode_of(wanted.mode, 0o666),
                set_mode=bool(wanted.mode),
                truncate=wanted.truncate and wanted.offset is None,
                append=wanted.append,
                exclusive=wanted.exclusive,
                parents=wanted.parents,
                uid=uid,
                gid=gid,
                offset=wanted.offset,
                metadata=models.metadata_of(wanted.metadata),
            ) as writing:
                async for piece in body_pieces(request):
                    await writing.write(piece)
                entry = await writing.finish()
            return _answer(entry, created=writing.created)

    # --- changing ---

    @answering
    async def make_directory(self, request: web.Request) -> web.StreamResponse:
        async with self._acting(request, models.MakeDirectoryQuery) as (wanted, files):
            uid, gid = await models.owner_of(files, wanted.owner)
            path, mode = expand(wanted.path, files.account), models.mode_of(wanted.mode, 0o755)
            done = await files.make_directory(path, parents=wanted.parents, mode=mode, uid=uid, gid=gid)
            return _answer(done.entry, created=done.made > 0)

    @answering
    async def make_symlink(self, request: web.Request) -> web.StreamResponse:
        async with self._acting(request, models.MakeSymlinkQuery) as (wanted, files):
            return _answer(await files.make_symlink(expand(wanted.path, files.account), wanted.text), created=True)

    @answering
    async def move(self, request: web.Request) -> web.StreamResponse:
        async with self._acting(request, models.MoveQuery) as (wanted, files):
            source, target = expand(wanted.path, files.account), expand(wanted.to, files.account)
            moved = await files.move(source, target, overwrite=wanted.overwrite, parents=wanted.parents)
            return _answer(moved)

    @answering
    async def copy(self, request: web.Request) -> web.StreamResponse:
        async with self._acting(request, models.CopyQuery) as (wanted, files):
            source, target = expand(wanted.path, files.account), expand(wanted.to, files.account)
            copied = await files.copy(
                source, target, recursive=wanted.recursive, overwrite=wanted.overwrite, parents=wanted.parents
            )
            return _answer(copied)

    @answering
    async def remove(self, request: web.Request) -> web.StreamResponse:
        async with self._acting(request, models.RemoveQuery) as (wanted, files):
            await files.remove(expand(wanted.path, files.account), recursive=wanted.recursive)
            return web.Response(status=204)

    @answering
    async def change(self, request: web.Request) -> web.StreamResponse:
        async with self._acting(request, models.ChangeQuery) as (wanted, files):
            uid, gid = await models.owner_of(files, wanted.owner)
            changed = await files.change(
                expand(wanted.path, files.account),
                mode=models.mode_of(wanted.mode, KEEP),
                uid=uid,
                gid=gid,
                modified_ns=wanted.modified_ns,
                accessed_ns=wanted.accessed_ns,
                recursive=wanted.recursive,
                follow=wanted.follow,
            )
            return _answer(changed)


def _answer(entry: Entry, *, created: bool = False) -> web.Response:
    return web.json_response(models.entry_json(entry), status=201 if created else 200)


async def _write_lines(response: web.StreamResponse, entries: Sequence[Entry]) -> None:
    if entries:
        lines = b"\n".join(msgspec.json.encode(models.entry_json(entry)) for entry in entries)
        async with asyncio.timeout(config.FILE_STALL_S):
            await response.write(lines + b"\n")
