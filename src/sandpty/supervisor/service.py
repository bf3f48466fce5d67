"""The supervisor's socket: reads requests, answers them, tells watchers of changes.

Only the server's uid and root are heard. Nothing that comes in can end the supervisor: a connection that breaks the
rules is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from sandpty import config
from sandpty.config import DataDir
from sandpty.isolation.background import Background
from sandpty.supervisor.events import Events
from sandpty.supervisor.key_file import KeyFile
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.supervisor.listening import is_from, listen, peer_uid
from sandpty.supervisor.pool import Pool
from sandpty.wire import verbs
from sandpty.wire.errors import SandptyError
from sandpty.wire.network_policy import NetworkPolicy
from sandpty.wire.verbs import Failure, Host, Message, Request

log = logging.getLogger(__name__)
Verb = Callable[[msgspec.Raw], Awaitable[Any]]
_READ_BYTES = 64 * 1024
_BEGINNING = ("create", "snapshot", "resume")  # what a shutdown that kills would have to wait for


class IdArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str


class ListArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: str = ""


class OwnerArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`owner` None: everybody."""

    owner: str | None = None


class KillArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    reason: verbs.EndReason = "killed"


class PauseArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    memory: bool = True


class DeadlineArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    end_at: float


class ResumeArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    end_at: float
    memory: bool = True


class AnnotateArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    annotations: dict[str, Any]


class MemoryArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    memory_mb: int


class NetworkArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    internet: bool = True
    policy: NetworkPolicy = NetworkPolicy()


class ShutdownArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kill: bool = False


class Service:
    """Serves `verbs` until `ending` is set (by the verb `shutdown` or a signal)."""

    def __init__(
        self,
        sandboxes: Sandboxes,
        pool: Pool,
        *,
        events: Events,
        background: Background,
        host: Host,
        server_uid: int,
        keys: KeyFile,
        more: Mapping[str, Verb],
    ) -> None:
        """`more`: verbs that others serve."""
        self._sandboxes = sandboxes
        self._pool = pool
        self._events = events
        self._background = background
        self._host = host
        self._keys = keys
        self._server_uid = server_uid
        self._allowed = {0, os.geteuid(), server_uid}
        self._connections = 0
        self.senders: set[asyncio.Task[None]] = set()  # of events, one for each connection that watches
        self.ending = asyncio.Event()
        self.kill_all = False
        self._verbs: dict[str, Verb] = {
            **more,
            "hello": self._hello,
            "create": self._create,
            "list": self._list,
            "kill": self._kill,
            "pause": self._pause,
            "resume": self._resume,
            "set_deadline": self._set_deadline,
            "snapshot": self._snapshot,
            "snapshots": self._snapshots,
            "delete_snapshot": self._delete_snapshot,
            "annotate": self._annotate,
            "network": self._network,
            "egress_authority": self._sandboxes.policies.authority,
            "set_memory": self._set_memory,
            "keys": self._known_keys,
            "reload_keys": self._reload_keys,
            "shutdown": self._shutdown,
        }

    # --- connections ---

    async def serve(self, data: DataDir) -> asyncio.Server:
        """Begin to listen; the caller closes the server."""
        listener = listen(str(data.supervisor_socket), self._server_uid, config.AGENT_BACKLOG)
        return await asyncio.start_unix_server(self._accepted, sock=listener)

    def end_events(self) -> None:
        """Nobody watches any more: these tasks have no end of their own that one could wait for."""
        for sender in tuple(self.senders):
            sender.cancel()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: socket.socket = writer.get_extra_info("socket")
        # Some are left for root, who ends everything, also when the server has taken all it may have.
        more = config.SUPERVISOR_CONNECTIONS_OF_ROOT if peer_uid(peer) == 0 else 0
        if self._connections >= config.SUPERVISOR_CONNECTIONS_MAX + more or not is_from(peer, self._allowed):
            writer.close()
            return
        self._connections += 1
        try:
            await _Conversation(self, reader, writer).run()
        except (ConnectionError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            log.warning("connection closed: %s", error)
        finally:
            self._connections -= 1
            writer.close()

    async def answer(self, request: Request) -> Message:
        """What to say to one request; never raises but for cancellation."""
        handler = self._verbs.get(request.verb)
        try:
            if handler is None:
                raise SandptyError("bad_request", f"unknown verb {request.verb[:64]!r}")
            if self.ending.is_set() or (self.kill_all and request.verb in _BEGINNING):
                raise SandptyError("supervisor_down", "the supervisor is shutting down")
            result = await handler(request.args)
            return Message(id=request.id, ok=msgspec.Raw(msgspec.json.encode(result)))
        except SandptyError as error:
            return Message(id=request.id, error=Failure(error.reason.name, error.message))
        except msgspec.MsgspecError as error:
            return Message(id=request.id, error=Failure("bad_request", str(error)))
        except Exception:
            incident = secrets.token_hex(4)
            log.exception("verb %s failed, incident %s", request.verb, incident)
            return Message(id=request.id, error=Failure("internal", f"incident {incident}"))

    @property
    def events(self) -> Events:
        return self._events

    @property
    def background(self) -> Background:
        return self._background

    # --- verbs ---

    async def _hello(self, raw: msgspec.Raw) -> Host:
        return self._host

    async def _create(self, raw: msgspec.Raw) -> verbs.Sandbox:
        args = msgspec.json.decode(raw, type=verbs.CreateArgs)
        return await self._sandboxes.create(args, self._pool.claim)

    async def _list(self, raw: msgspec.Raw) -> verbs.SandboxList:
        behind = sorted(self._sandboxes.list(msgspec.json.decode(raw, type=ListArgs).after), key=lambda each: each.id)
        page: list[verbs.Sandbox] = []
        room = config.LIST_PAGE_BYTES
        for sandbox in behind:
            room -= len(msgspec.json.encode(sandbox))
            if page and room < 0:
                break
            page.append(sandbox)
        return verbs.SandboxList(page, more=len(page) < len(behind))

    async def _kill(self, raw: msgspec.Raw) -> dict[str, Any]:
        args = msgspec.json.decode(raw, type=KillArgs)
        await self._sandboxes.kill(args.id, args.reason)
        return {}

    async def _pause(self, raw: msgspec.Raw) -> verbs.Sandbox:
        args = msgspec.json.decode(raw, type=PauseArgs)
        return await self._sandboxes.pausing.pause(args.id, args.memory)

    async def _resume(self, raw: msgspec.Raw) -> verbs.Sandbox:
        args = msgspec.json.decode(raw, type=ResumeArgs)
        return await self._sandboxes.pausing.resume(args.id, args.end_at, args.memory)

    async def _set_deadline(self, raw: msgspec.Raw) -> verbs.Sandbox:
        args = msgspec.json.decode(raw, type=DeadlineArgs)
        return await self._sandboxes.changing.deadline(args.id, args.end_at)

    async def _snapshot(self, raw: msgspec.Raw) -> verbs.Snapshot:
        return await self._sandboxes.snapshots.create(msgspec.json.decode(raw, type=verbs.SnapshotArgs))

    async def _snapshots(self, raw: msgspec.Raw) -> dict[str, list[verbs.Snapshot]]:
        return {"snapshots": self._sandboxes.snapshots.list(msgspec.json.decode(raw, type=OwnerArgs).owner)}

    async def _delete_snapshot(self, raw: msgspec.Raw) -> dict[str, Any]:
        await self._sandboxes.snapshots.delete(msgspec.json.decode(raw, type=IdArgs).id)
        return {}

    async def _annotate(self, raw: msgspec.Raw) -> verbs.Sandbox:
        args = msgspec.json.decode(raw, type=AnnotateArgs)
        return await self._sandboxes.changing.annotations(args.id, args.annotations)

    async def _network(self, raw: msgspec.Raw) -> verbs.Sandbox:
        args = msgspec.json.decode(raw, type=NetworkArgs)
        return await self._sandboxes.changing.network(args.id, args.internet, args.policy)

    async def _set_memory(self, raw: msgspec.Raw) -> verbs.Sandbox:
        args = msgspec.json.decode(raw, type=MemoryArgs)
        return await self._sandboxes.changing.memory(args.id, args.memory_mb)

    async def _known_keys(self, raw: msgspec.Raw) -> verbs.Keys:
        content = self._keys.read()
        return verbs.Keys(keys=None if content is None else content.hashes())

    async def _reload_keys(self, raw: msgspec.Raw) -> verbs.Keys:
        """keys.json was changed: tell the server."""
        answer = await self._known_keys(raw)
        if answer.keys is not None:
            self._events.publish_keys(answer.keys)
        return answer

    async def _shutdown(self, raw: msgspec.Raw) -> dict[str, Any]:
        args = msgspec.json.decode(raw, type=ShutdownArgs)
        if args.kill:
            self.kill_all = True  # nothing new is begun from here on
            await self._sandboxes.idle.wait()
            await self._sandboxes.kill_all()
        self.ending.set()
        return {}


class _Conversation:
    """One connection: requests are served side by side, answers come in any order."""

    def __init__(self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._service = service
        self._reader = reader
        self._writer = writer
        self._room = asyncio.Semaphore(config.SUPERVISOR_REQUESTS_MAX)
        self._pending = 0
        self._with_events = contextlib.ExitStack()
        self._sender: asyncio.Task[None] | None = None

    async def run(self) -> None:
        messages = verbs.MessageReader()
        try:
            while data := await self._reader.read(_READ_BYTES):
                for body in messages.feed(data):
                    request = msgspec.json.decode(body, type=Request)
                    await self._room.acquire()
                    # Not ended with the connection: what was asked for is done even if the asker goes away.
                    self._service.background.spawn(self._serve(request), f"verb {request.verb[:32]}")
        finally:
            self._with_events.close()
            if self._sender is not None:
                self._sender.cancel()

    async def _serve(self, request: Request) -> None:
        try:
            if request.verb == "watch":
                self._watch()
                message = Message(id=request.id, ok=msgspec.Raw(b"{}"))
            else:
                message = await self._service.answer(request)
            with contextlib.suppress(ConnectionError):
                self._writer.write(_packed(message))
                await self._writer.drain()
        finally:
            self._room.release()

    def _watch(self) -> None:
        if self._sender is None:
            queue = self._with_events.enter_context(self._service.events.watching())
            self._sender = self._service.background.spawn(self._send_events(queue), "events")
            self._service.senders.add(self._sender)
            self._sender.add_done_callback(self._service.senders.discard)

    async def _send_events(self, queue: asyncio.Queue[Message | None]) -> None:
        with contextlib.suppress(ConnectionError):
            while (message := await queue.get()) is not None:
                self._writer.write(_packed(message))
                await self._writer.drain()
            log.warning("a watcher was too slow and is cut off")
        self._writer.close()


def _packed(message: Message) -> bytes:
    try:
        return verbs.pack(message)
    except ValueError as error:
        return verbs.pack(Message(id=message.id, error=Failure("too_large", str(error))))
