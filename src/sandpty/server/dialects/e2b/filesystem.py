"""The unary methods of E2B's filesystem.Filesystem. Facts of the protocol and of envd: docs/reference/e2b.md."""

from __future__ import annotations

import msgspec
from aiohttp import web

from sandpty.server.context import Context
from sandpty.server.dialects.e2b import file_models as models
from sandpty.server.dialects.e2b.acting import Acting, act, acting_for, acting_user
from sandpty.server.dialects.e2b.connect import ConnectError, decode_message, error_from
from sandpty.server.dialects.e2b.requests import guest_user
from sandpty.server.dialects.e2b.selecting import number
from sandpty.server.dialects.e2b.unary import UnaryMethod, unary
from sandpty.server.files.paths import printable
from sandpty.server.files.watchers import Watchers
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox


def file_failure(error: SandptyError, words: dict[str, tuple[str, str]], user: str) -> ConnectError:
    """What E2B says: `words` has (code, message) by reason, the error table says the rest."""
    if error.reason.name == "no_such_user":
        return ConnectError("unauthenticated", f"invalid username: '{printable(user[:64])}'")
    if error.reason.name in words:
        return ConnectError(*words[error.reason.name])
    return error_from(error)


class FilesystemService:
    """The handlers, for every sandbox of this server."""

    def __init__(self, context: Context, watchers: Watchers) -> None:
        self._context = context
        self._watchers = watchers

    def routes(self) -> list[web.RouteDef]:
        methods: dict[str, UnaryMethod] = {
            "Stat": self.stat,
            "ListDir": self.list_dir,
            "MakeDir": self.make_dir,
            "Move": self.move,
            "Remove": self.remove,
            "CreateWatcher": self.create_watcher,
            "GetWatcherEvents": self.get_watcher_events,
            "RemoveWatcher": self.remove_watcher,
        }
        return [
            web.post(f"/filesystem.Filesystem/{name}", unary(self._context, method)) for name, method in methods.items()
        ]

    async def stat(self, sandbox: Sandbox, request: web.Request, body: bytes) -> models.EntryReply:
        message = decode_message(body, models.PathRequest)
        user, path = guest_user(request, sandbox), message.path

        async def look(guest: Acting) -> models.EntryReply:
            nonlocal path
            path = guest.path(message.path)
            return models.EntryReply(models.entry_info(await guest.files.stat(path)))

        try:
            return await act(self._context, sandbox, user, look)
        except SandptyError as error:
            missing = ("not_found", f"file not found: {printable(path)}")
            raise file_failure(error, {"no_such_file": missing, "not_a_directory": missing}, user) from error

    async def list_dir(self, sandbox: Sandbox, request: web.Request, body: bytes) -> bytes:
        """Entries become JSON a portion at a time: a hundred thousand of them as objects would take a lot of memory."""
        message = decode_message(body, models.ListDirRequest)
        depth = number(message.depth, "depth") or 1
        user, path = guest_user(request, sandbox), message.path
        portions: list[bytes] = []
        try:
            async with acting_for(self._context, sandbox, user) as guest:
                path = guest.path(message.path)
                async for entries in guest.files.list(path, depth=depth):
                    if entries:
                        encoded = msgspec.json.encode([models.entry_info(entry) for entry in entries])
                        portions.append(encoded[1:-1])
        except SandptyError as error:
            words = {
                "no_such_file": ("not_found", f"path not found: {printable(path)}"),
                "not_a_directory": ("invalid_argument", f"path is not a directory: {printable(path)}"),
            }
            raise file_failure(error, words, user) from error
        return b'{"entries":[' + b",".join(portions) + b"]}"

    async def make_dir(self, sandbox: Sandbox, request: web.Request, body: bytes) -> models.EntryReply:
        message = decode_message(body, models.PathRequest)
        user, path = guest_user(request, sandbox), message.path
        try:
            async with acting_for(self._context, sandbox, user) as guest:
                path = guest.path(message.path)
                account = guest.account
                done = await guest.files.make_directory(path, uid=account.uid, gid=account.gid)
        except SandptyError as error:
            in_the_way = ("invalid_argument", f"path already exists but it is not a directory: {printable(path)}")
            raise file_failure(error, {"file_exists": in_the_way, "not_a_directory": in_the_way}, user) from error
        if not done.made:
            raise ConnectError("already_exists", f"directory already exists: {printable(path)}")
        return models.EntryReply(models.entry_info(done.entry))

    async def move(self, sandbox: Sandbox, request: web.Request, body: bytes) -> models.EntryReply:
        message = decode_message(body, models.MoveRequest)
        user, source = guest_user(request, sandbox), message.source
        try:
            async with acting_for(self._context, sandbox, user) as guest:
                source, target = guest.path(message.source), guest.path(message.destination)
                account = guest.account
                entry = await guest.files.move(source, target, parents=True, uid=account.uid, gid=account.gid)
        except SandptyError as error:
            missing = ("not_found", f"source file not found: {printable(source)}")
            raise file_failure(error, {"no_such_file": missing}, user) from error
        return models.EntryReply(models.entry_info(entry))

    async def remove(self, sandbox: Sandbox, request: web.Request, body: bytes) -> None:
        """What is not there is as good as removed."""
        message = decode_message(body, models.PathRequest)
        user = guest_user(request, sandbox)
        try:
            async with acting_for(self._context, sandbox, user) as guest:
                path = guest.path(message.path)
                await guest.files.remove(path, recursive=True)
        except SandptyError as error:
            if error.reason.name in ("no_such_file", "not_a_directory"):
                return
            raise file_failure(error, {}, user) from error

    # --- watchers that are asked -----------------------------------------------------------------------------------

    async def create_watcher(self, sandbox: Sandbox, request: web.Request, body: bytes) -> models.WatcherReply:
        message = decode_message(body, models.WatchRequest)
        user, path = guest_user(request, sandbox), message.path
        try:
            async with acting_for(self._context, sandbox, user) as guest:
                path = guest.path(message.path)
            id_ = await self._watchers.create(
                sandbox,
                acting_user(sandbox),
                path,
                recursive=message.recursive,
                entries=message.wants_entries,
                network_file_systems=message.allows_network,
            )
        except SandptyError as error:
            raise watch_failure(error, path, user) from error
        return models.WatcherReply(id_)

    async def get_watcher_events(self, sandbox: Sandbox, _: web.Request, body: bytes) -> models.EventsReply:
        id_ = decode_message(body, models.WatcherRequest).id
        events = await self._watchers.events(sandbox.id, id_)
        return models.EventsReply([event for event in map(models.event_of, events) if event is not None])

    async def remove_watcher(self, sandbox: Sandbox, _: web.Request, body: bytes) -> None:
        await self._watchers.remove(sandbox.id, decode_message(body, models.WatcherRequest).id)


def watch_failure(error: SandptyError, path: str, user: str) -> ConnectError:
    shown = printable(path)
    words = {
        "no_such_file": ("not_found", f"path {shown} not found"),
        "not_a_directory": ("invalid_argument", f"path {shown} not a directory"),
        "network_file_system": (
            "invalid_argument",
            f"cannot watch path on network filesystem: {shown}; changes made elsewhere are not seen there",
        ),
    }
    return file_failure(error, words, user)
