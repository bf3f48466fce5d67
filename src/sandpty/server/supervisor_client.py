"""The server's one connection to the supervisor: asks verbs, follows events, reconnects when it restarts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from sandpty import config
from sandpty.wire import verbs
from sandpty.wire.errors import REASONS, SandptyError
from sandpty.wire.images import Image, ImportArgs, ImportProgress
from sandpty.wire.templates import Template

log = logging.getLogger(__name__)
T = TypeVar("T")


class SnapshotList(msgspec.Struct, frozen=True):
    snapshots: list[verbs.Snapshot]


class EndedList(msgspec.Struct, frozen=True):
    ended: list[verbs.EndedSandbox]


class TemplateList(msgspec.Struct, frozen=True):
    templates: list[Template]


class SupervisorClient:
    """Use as `async with`; `on_list` gets the whole truth after each (re)connect, `on_event` each change after it.

    `on_keys` gets the API keys that count, after each (re)connect and at each change. The callbacks are synchronous and
    called in the order in which the supervisor speaks.
    """

    def __init__(
        self,
        socket: str,
        on_list: Callable[[list[verbs.Sandbox]], None],
        on_event: Callable[[str, verbs.Sandbox, str], None],
        on_keys: Callable[[Sequence[verbs.KeyHash]], None] | None = None,
    ) -> None:
        self._socket = socket
        self._on_list = on_list
        self._on_event = on_event
        self._on_keys = on_keys
        self._writer: asyncio.StreamWriter | None = None
        self._answers: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._imports: dict[str, Callable[[ImportProgress], None]] = {}
        self._next_id = 0
        self._connected = asyncio.Event()
        self._held: list[tuple[str, verbs.Sandbox, str]] | None = None  # events, while the list is on its way
        self._met = False  # whether the present attempt got as far as being connected
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SupervisorClient:
        self._task = asyncio.create_task(self._run(), name="supervisor-client")
        try:
            async with asyncio.timeout(config.SUPERVISOR_START_TIMEOUT_S):
                await self._connected.wait()
        except TimeoutError as error:
            await self.__aexit__()
            raise SandptyError("supervisor_down", "the supervisor does not answer") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def _run(self) -> None:
        pause_s = config.SUPERVISOR_RETRY_MIN_S
        while True:
            self._met = False
            try:
                await self._converse()
            except Exception as error:  # whatever it is, a server without its supervisor must go on looking for it
                if self._met:
                    log.warning("connection to the supervisor lost: %s", error)
                    pause_s = config.SUPERVISOR_RETRY_MIN_S
            finally:
                self._disconnect()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, config.SUPERVISOR_RETRY_MAX_S)

    def _disconnect(self) -> None:
        self._connected.clear()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(SandptyError("supervisor_down", "the supervisor went away during the request"))

    async def _converse(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(self._socket)
        listening = asyncio.create_task(self._listen(reader), name="supervisor-listener")
        # A lost connection must end the calls below too, and they wait on futures: so the listener fails those.
        listening.add_done_callback(lambda _: self._disconnect())
        try:
            await self._learn_sandboxes()
            await self._learn_keys()
            self._met = True
            self._connected.set()
            await listening
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _learn_sandboxes(self) -> None:
        """Watch before list: an event between the two is told twice, never missed.

        What happens while the pages of the list come is told after it: it is newer than some of them.
        """
        self._held = []
        await self.call("watch", {}, dict)
        sandboxes: list[verbs.Sandbox] = []
        more = True
        while more:
            after = sandboxes[-1].id if sandboxes else ""
            page = await self.call("list", {"after": after}, verbs.SandboxList)
            sandboxes += page.sandboxes
            more = page.more
        self._on_list(sandboxes)
        held, self._held = self._held, None
        for told in held:
            self._on_event(*told)

    async def _learn_keys(self) -> None:
        if self._on_keys is None:
            return
        try:
            answer = await self.call("keys", {}, verbs.Keys)
        except SandptyError as error:
            if error.reason.name == "supervisor_down":
                raise
            # One of a version without teams, or a file that somebody has broken: the keys that are known still count.
            log.warning("the API keys cannot be learned anew: %s", error)
            return
        if answer.keys is not None:
            self._on_keys(answer.keys)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        messages = verbs.MessageReader()
        while data := await reader.read(64 * 1024):
            for body in messages.feed(data):
                self._take(msgspec.json.decode(body, type=verbs.Message))
        raise ConnectionResetError("the supervisor closed the connection")

    def _take(self, message: verbs.Message) -> None:
        if message.id is not None:
            answer = self._answers.pop(message.id, None)
            if answer is None or answer.done():
                return
            if message.error is not None:
                reason = message.error.reason if message.error.reason in REASONS else "internal"
                answer.set_exception(SandptyError(reason, message.error.message))
            else:
                answer.set_result(message.ok if message.ok is not None else msgspec.Raw(b"{}"))
        elif message.event is not None and message.sandbox is not None:
            told = message.event, message.sandbox, message.reason
            if self._held is None:
                self._on_event(*told)
            else:
                self._held.append(told)
        elif message.progress is not None and (show := self._imports.get(message.progress.token)) is not None:
            show(message.progress)
        elif message.event == "keys" and message.keys is not None and self._on_keys is not None:
            self._on_keys(message.keys)

    async def import_image(self, args: ImportArgs, show: Callable[[ImportProgress], None]) -> Image:
        """Returns once the image's files are here; `show` is told how far it is. Cancelled, the import ends too."""
        args = msgspec.structs.replace(args, token=secrets.token_hex(8))
        self._imports[args.token] = show
        try:
            return await self.call("import_image", args, Image, timeout_s=config.IMAGE_IMPORT_S)
        except asyncio.CancelledError:
            with contextlib.suppress(SandptyError):
                await asyncio.shield(self.call("cancel_import", {"token": args.token}, dict))
            raise
        finally:
            del self._imports[args.token]

    async def call(
        self,
        verb: str,
        args: msgspec.Struct | dict[str, Any],
        answer_type: type[T],
        timeout_s: float = config.SUPERVISOR_REPLY_TIMEOUT_S,
    ) -> T:
        """Ask and wait for the answer. Raises SandptyError: what the supervisor answers, or supervisor_down."""
        writer = self._writer
        if writer is None:
            raise SandptyError("supervisor_down", "the supervisor is not running")
        self._next_id += 1
        request_id = self._next_id
        answer: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._answers[request_id] = answer
        try:
            try:
                packed = verbs.pack(verbs.Request(request_id, verb, msgspec.Raw(msgspec.json.encode(args))))
            except ValueError as error:
                raise SandptyError("too_large", str(error)) from error
            writer.write(packed)
            async with asyncio.timeout(timeout_s):
                await writer.drain()
                raw = await answer
        except TimeoutError as error:
            raise SandptyError("supervisor_down", f"the supervisor did not answer `{verb}` in time") from error
        except ConnectionError as error:
            raise SandptyError("supervisor_down", "the supervisor went away during the request") from error
        finally:
            self._answers.pop(request_id, None)
        return msgspec.json.decode(raw, type=answer_type)
