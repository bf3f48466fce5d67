"""E2B's volume content API: the files of a volume, without a sandbox, for whoever holds the volume's token.

Paths begin at the volume's root; links are followed within it and lead nowhere else. What is made belongs to the
sandboxes' `user` unless the request says otherwise, because that is who will want it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.e2b.errors import HttpError, bad_request, http_error, unexpected_http
from sandpty.server.dialects.e2b.listing import rfc3339
from sandpty.server.dialects.e2b.replies import json_reply, no_content
from sandpty.server.dialects.e2b.requests import read_json
from sandpty.server.files.exact import send_content, wants_exact
from sandpty.server.files.paths import PATH_BYTES_MAX, printable
from sandpty.server.files.receiving import body_pieces
from sandpty.server.files.sending import content_type
from sandpty.server.volumes import USER, authorized_volume
from sandpty.terminal.files import KEEP, Entry, EntryType
from sandpty.wire.errors import SandptyError

Handler = Callable[[web.Request, str, str], Awaitable[web.StreamResponse]]  # request, volume id, path
_TYPES = {EntryType.FILE: "file", EntryType.DIRECTORY: "directory", EntryType.SYMLINK: "symlink"}
_FILE_MODE, _DIRECTORY_MODE = 0o644, 0o755
_MODE_MAX = 0o7777


class Change(msgspec.Struct, frozen=True):
    """PATCH .../path: only what is given changes."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


def _stat(entry: Entry) -> dict[str, Any]:
    """When it was made is not known: `ctime` is when it was changed."""
    modified = rfc3339(entry.modified_ns / 1e9)
    link = {} if entry.link_text is None else {"target": printable(entry.link_text)}
    return {
        "name": printable(entry.name),
        "type": _TYPES.get(entry.type, "unknown"),
        "path": printable(entry.path),
        "size": entry.size,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "atime": rfc3339(entry.accessed_ns / 1e9),
        "mtime": modified,
        "ctime": modified,
        **link,
    }


def _path(request: web.Request) -> str:
    """Of the query, absolute; relative ones begin at the root too. Raises HttpError 400."""
    text = request.query.get("path", "")
    if not text or "\0" in text or len(text.encode("utf-8", "surrogateescape")) >= PATH_BYTES_MAX:
        raise bad_request(f"path is needed: 1 to {PATH_BYTES_MAX - 1} bytes without a NUL")
    return text if text.startswith("/") else f"/{text}"


def _number(given: int | str | None, name: str, most: int, default: int) -> int:
    """Raises HttpError 400."""
    if given is None or given == "":
        return default
    try:
        number = int(given)
    except ValueError:
        number = -1
    if not 0 <= number <= most:
        raise bad_request(f"{name} is a number from 0 to {most}, not {str(given)[:32]!r}")
    return number


def _owner(request: web.Request, name: str) -> int:
    return _number(request.query.get(name), name, config.UID_RANGE - 1, USER)


def _mode(request: web.Request, default: int) -> int:
    return _number(request.query.get("mode"), "mode", _MODE_MAX, default)


def _force(request: web.Request) -> bool | None:
    text = request.query.get("force")
    return None if text is None else text.lower() in ("true", "1")


class VolumeContents:
    """The handlers, one per operation."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._volumes = context.registry.volumes

    def routes(self) -> list[web.RouteDef]:
        base = "/volumecontent/{volume}"
        rows: list[tuple[str, str, Handler]] = [
            ("GET", "/path", self.stat),
            ("PATCH", "/path", self.change),
            ("DELETE", "/path", self.remove),
            ("GET", "/dir", self.list),
            ("POST", "/dir", self.make_directory),
            ("GET", "/file", self.read),
            ("PUT", "/file", self.write),
        ]
        unknown = web.route("*", f"{base}{{tail:.*}}", self._guarded(self._unknown))
        return [*(web.route(method, base + path, self._guarded(handler)) for method, path, handler in rows), unknown]

    def _guarded(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                named = request.match_info["volume"]
                volume_id = authorized_volume(self._context.tokens, self._context.auth, request, named)
                return await handler(request, volume_id, _path(request))
            except HttpError as error:
                return error.response()
            except SandptyError as error:
                return http_error(error).response()
            except ConnectionError:
                raise
            except Exception as error:
                return unexpected_http(error).response()

        return handle

    async def _unknown(self, request: web.Request, volume_id: str, path: str) -> web.StreamResponse:
        raise HttpError(404, f"{request.method} {request.path[:200]} is not part of the API that this server speaks")

    # --- entries ---

    async def stat(self, request: web.Request, volume_id: str, path: str) -> web.StreamResponse:
        async with self._volumes.files(volume_id) as files:
            return json_reply(_stat(await files.stat(path, metadata=False)))

    async def change(self, request: web.Request, volume_id: str, path: str) -> web.StreamResponse:
        body = await read_json(request, Change)
        last = config.UID_RANGE - 1
        uid, gid = _number(body.uid, "uid", last, KEEP), _number(body.gid, "gid", last, KEEP)
        mode = _number(body.mode, "mode", _MODE_MAX, KEEP)
        async with self._volumes.files(volume_id) as files:
            return json_reply(_stat(await files.change(path, uid=uid, gid=gid, mode=mode)))

    async def remove(self, request: web.Request, volume_id: str, path: str) -> web.StreamResponse:
        """A directory goes with all that is in it."""
        async with self._volumes.files(volume_id) as files:
            if (await files.stat(path)).inode == (await files.stat("/")).inode:
                raise bad_request("the root of a volume stays: delete the volume")
            await files.remove(path, recursive=True)
        return no_content()

    # --- directories ---

    async def list(self, request: web.Request, volume_id: str, path: str) -> web.StreamResponse:
        depth = _number(request.query.get("depth"), "depth", config.FILES_LISTED_MAX, 1)
        async with self._volumes.files(volume_id) as files:
            found = [_stat(entry) async for part in files.list(path, depth=depth, metadata=False) for entry in part]
        return json_reply(found)

    async def make_directory(self, request: web.Request, volume_id: str, path: str) -> web.StreamResponse:
        """`force`: with those above it, and one that is there is fine."""
        force, mode = bool(_force(request)), _mode(request, _DIRECTORY_MODE)
        uid, gid = _owner(request, "uid"), _owner(request, "gid")
        async with self._volumes.files(volume_id) as files:
            made = await files.make_directory(path, parents=force, mode=mode, uid=uid, gid=gid)
            if not made.made and not force:
                raise SandptyError("file_exists", f"{printable(path)} exists")
            return json_reply(_stat(made.entry), 201)

    # --- files ---

    async def read(self, request: web.Request, volume_id: str, path: str) -> web.StreamResponse:
        exact = wants_exact(request)
        async with self._volumes.files(volume_id) as files, files.open(path, length=0 if exact else None) as reading:
            headers = {"Content-Type": content_type(path), "X-Content-Type-Options": "nosniff"}
            return await send_content(request, reading, headers, exact=exact)

    async def write(self, request: web.Request, volume_id: str, path: str) -> web.StreamResponse:
        """What is there is overwritten, unless `force` is false. With `force` missing directories are made."""
        force = _force(request)
        uid, gid = _owner(request, "uid"), _owner(request, "gid")
        async with self._volumes.files(volume_id) as files:
            async with files.create(
                path,
                mode=_mode(request, _FILE_MODE),
                set_mode="mode" in request.query,
                exclusive=force is False,
                parents=bool(force),
                uid=uid,
                gid=gid,
            ) as writing:
                async for piece in body_pieces(request):
                    await writing.write(piece)
                entry = await writing.finish()
            return json_reply(_stat(entry), 201)
