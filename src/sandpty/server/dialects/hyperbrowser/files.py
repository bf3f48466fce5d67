"""Files: looked at, listed, read, written, moved, copied, removed, and given other modes and owners.

Whoever a request names with `runAs` really acts: the kernel says what they may do.
"""

from __future__ import annotations

import base64
import binascii
import posixpath
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.bodies import decode_json, read_body
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser import file_models as models
from sandpty.server.dialects.hyperbrowser.errors import bad_request, json_response
from sandpty.server.dialects.hyperbrowser.process_status import JsonText
from sandpty.server.dialects.hyperbrowser.requests import number, read_json
from sandpty.server.dialects.hyperbrowser.tokens import authorized_sandbox
from sandpty.server.files.paths import base_name, expand, printable
from sandpty.server.guest_defaults import default_user
from sandpty.terminal.files import Entry, EntryType, Files, Reading
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox


def file_info(entry: Entry) -> models.FileInfo:
    """A symlink is of the type of what it leads to, and `symlinkTarget` says where, as an absolute path."""
    target = None
    if entry.type is EntryType.SYMLINK:
        link = posixpath.join(posixpath.dirname(entry.path), entry.link_text or "")
        target = printable(posixpath.normpath(link))
    return models.FileInfo(
        path=printable(entry.path),
        name=printable(base_name(entry.path)),
        type="dir" if entry.target_type is EntryType.DIRECTORY else "file",
        size=entry.size,
        mode=entry.mode,
        permissions=entry.permissions,
        owner=printable(entry.owner),
        group=printable(entry.group),
        modified_time=entry.modified_ns // 1_000_000,
        symlink_target=target,
    )


@dataclass(frozen=True, slots=True)
class Acting:
    """A connection to the sandbox's files, as one user."""

    files: Files

    def path(self, given: str) -> str:
        """Raises bad_path."""
        return expand(given, self.files.account)


@asynccontextmanager
async def acting(context: Context, sandbox: Sandbox, run_as: str | None) -> AsyncIterator[Acting]:
    """Raises no_such_user, and as FileConnections.lease."""
    async with context.files.lease(sandbox, run_as or default_user(sandbox)) as files:
        yield Acting(files)


def _mode(text: str | None, default: int) -> int:
    return default if text is None else int(text.replace("o", ""), 8)


class FileHandlers:
    """The handlers of /files, each for the running sandbox of its request."""

    def __init__(self, context: Context) -> None:
        self._context = context

    # --- looking ---

    async def stat(self, request: web.Request) -> web.StreamResponse:
        sandbox = authorized_sandbox(self._context, request)
        async with acting(self._context, sandbox, request.query.get("runAs")) as who:
            entry = await who.files.stat(who.path(request.query.get("path", "")), metadata=False)
        return json_response({"file": file_info(entry)})

    async def list(self, request: web.Request) -> web.StreamResponse:
        """Alphabetical, a directory before what is in it. Through a symlink the paths are those of where it leads."""
        sandbox = authorized_sandbox(self._context, request)
        depth = number(request, "depth") or 1
        async with acting(self._context, sandbox, request.query.get("runAs")) as who:
            path = who.path(request.query.get("path", ""))
            if (await who.files.stat(path, metadata=False)).type is EntryType.SYMLINK:
                path = await who.files.real_path(path)
            entries = [
                file_info(entry)
                async for portion in who.files.list(path, depth=depth, metadata=False)
                for entry in portion
            ]
        return json_response(models.FileList(path=printable(path), depth=depth, entries=entries))

    async def read(self, request: web.Request) -> web.StreamResponse:
        """The content as a JSON string, in pieces."""
        sandbox = authorized_sandbox(self._context, request)
        body = await read_json(request, models.ReadBody)
        async with acting(self._context, sandbox, body.run_as) as who:
            path = who.path(body.path)
            async with who.files.open(path, offset=body.offset or 0, length=body.length) as reading:
                response = web.StreamResponse(headers={"Content-Type": "application/json"})
                await response.prepare(request)
                try:
                    async for piece in _content(reading, body.encoding or "utf8", body.offset or 0):
                        await response.write(piece)
                except SandptyError as error:  # half an answer is none
                    raise ConnectionResetError(error.message) from error
                await response.write_eof()
                return response

    # --- changing ---

    async def write(self, request: web.Request) -> web.StreamResponse:
        """Missing directories are made; a new file has mode 0644 unless one is given."""
        sandbox = authorized_sandbox(self._context, request)
        body = decode_json(await read_body(request, config.HYPERBROWSER_WRITE_BYTES), models.WriteBody)
        if not body.entries:
            raise bad_request("name a path, or files")
        contents = [(entry, _bytes_of(entry)) for entry in body.entries]
        written = []
        async with acting(self._context, sandbox, body.run_as) as who:
            for entry, data in contents:
                path = who.path(entry.path)
                await who.files.write(
                    path,
                    data,
                    append=bool(entry.append),
                    parents=True,
                    mode=_mode(entry.mode, 0o666),
                    set_mode=entry.mode is not None,
                )
                written.append(models.Written(path=printable(path), name=printable(base_name(path))))
        return json_response({"files": written})

    async def make_directory(self, request: web.Request) -> web.StreamResponse:
        sandbox = authorized_sandbox(self._context, request)
        body = await read_json(request, models.MakeDirectoryBody)
        async with acting(self._context, sandbox, body.run_as) as who:
            made = await who.files.make_directory(
                who.path(body.path), parents=body.parents is not False, mode=_mode(body.mode, 0o755)
            )
        return json_response({"created": made.made > 0})

    async def move(self, request: web.Request) -> web.StreamResponse:
        sandbox = authorized_sandbox(self._context, request)
        body = await read_json(request, models.TransferBody)
        async with acting(self._context, sandbox, body.run_as) as who:
            source, target = who.path(body.source), who.path(body.to)
            entry = await who.files.move(source, target, overwrite=bool(body.overwrite), parents=True)
        return json_response({"entry": file_info(entry)})

    async def copy(self, request: web.Request) -> web.StreamResponse:
        """Relative symlinks in a tree keep their text, and so lead to the copies."""
        sandbox = authorized_sandbox(self._context, request)
        body = await read_json(request, models.TransferBody)
        async with acting(self._context, sandbox, body.run_as) as who:
            entry = await who.files.copy(
                who.path(body.source),
                who.path(body.to),
                recursive=bool(body.recursive),
                overwrite=bool(body.overwrite),
                parents=True,
            )
        return json_response({"entry": file_info(entry)})

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Removing what is not there is a success; a symlink goes, not what it leads to."""
        sandbox = authorized_sandbox(self._context, request)
        body = await read_json(request, models.DeleteBody)
        async with acting(self._context, sandbox, body.run_as) as who:
            try:
                await who.files.remove(who.path(body.path), recursive=bool(body.recursive))
            except SandptyError as error:
                if error.reason.name != "no_such_file":
                    raise
        return json_response({"success": True})

    async def chmod(self, request: web.Request) -> web.StreamResponse:
        sandbox = authorized_sandbox(self._context, request)
        body = await read_json(request, models.ChmodBody)
        async with acting(self._context, sandbox, body.run_as) as who:
            await who.files.change(who.path(body.path), mode=_mode(body.mode, 0), recursive=bool(body.recursive))
        return json_response({"success": True})

    async def chown(self, request: web.Request) -> web.StreamResponse:
        sandbox = authorized_sandbox(self._context, request)
        body = await read_json(request, models.ChownBody)
        async with acting(self._context, sandbox, body.run_as) as who:
            await who.files.change(
                who.path(body.path),
                uid=-1 if body.uid is None else body.uid,
                gid=-1 if body.gid is None else body.gid,
                recursive=bool(body.recursive),
            )
        return json_response({"success": True})


def _bytes_of(entry: models.WriteEntry) -> bytes:
    try:
        if entry.encoding == "base64":
            return base64.b64decode(entry.data, validate=True)
        return entry.data.encode()
    except (binascii.Error, UnicodeError) as error:
        raise bad_request(f"the data of {entry.path[:200]!r} cannot be read: {error}") from error


async def _content(reading: Reading, encoding: str, offset: int) -> AsyncIterator[bytes]:
    """A read's answer. `truncated`: the file goes on after what was asked for."""
    text, held, count = JsonText(), b"", 0
    yield b'{"content":"'
    async for piece in reading:
        count += len(piece)
        if encoding == "utf8":
            yield text.piece(piece)
            continue
        data = held + piece
        whole = len(data) - len(data) % 3
        held = data[whole:]
        yield base64.b64encode(data[:whole])
    yield text.piece(b"", final=True) if encoding == "utf8" else base64.b64encode(held)
    more = reading.entry.size > offset + count
    yield b'",' + msgspec.json.encode({"encoding": encoding, "bytesRead": count, "truncated": more})[1:]
