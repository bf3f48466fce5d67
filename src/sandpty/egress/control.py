"""The supervisor's word: which sandbox may reach which names. It may go and come back; the rules stay meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

import msgspec

from sandpty import config
from sandpty.egress.guests import Guests
from sandpty.egress.resolver import ResolveError
from sandpty.egress.upstream import Upstream
from sandpty.wire import verbs
from sandpty.wire.verbs import EgressMessage

log = logging.getLogger(__name__)
_READ_BYTES = 64 * 1024


class Control:
    """Listens for supervisors, of which the last that came counts. `ended` is set when one says so."""

    def __init__(self, guests: Guests, upstream: Upstream) -> None:
        self._guests = guests
        self._upstream = upstream
        self._finding: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._questions: dict[int, asyncio.Future[tuple[str, int] | None]] = {}
        self._next = 0
        self.ended = asyncio.Event()

    async def open(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_unix_server(self._accepted, sock=listener)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        before, self._writer = self._writer, writer
        if before is not None:
            before.close()
        messages = verbs.MessageReader()
        try:
            writer.write(verbs.pack(EgressMessage(known=self._guests.known, version=verbs.EGRESS_PROTOCOL_VERSION)))
            while data := await reader.read(_READ_BYTES):
                for body in messages.feed(data):
                    self._heard(msgspec.json.decode(body, type=EgressMessage), writer)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.warning("egress: the supervisor's connection: %s", error)
        finally:
            writer.close()
            if self._writer is writer:
                self._writer = None

    def _heard(self, message: EgressMessage, writer: asyncio.StreamWriter) -> None:
        question = self._questions.get(message.id)
        if message.id < 0 and question is not None:
            if not question.done():
                question.set_result(message.original)
            return
        if message.find:
            task = asyncio.create_task(self._find(message, writer), name="find a proxy")
            self._finding.add(task)
            task.add_done_callback(self._finding.discard)
            return
        for rules in message.guests:
            self._guests.set(rules)
        for address in message.forget:
            self._guests.forget(address)
        writer.write(verbs.pack(EgressMessage(id=message.id, done=True)))
        if message.end:
            self.ended.set()

    async def _find(self, message: EgressMessage, writer: asyncio.StreamWriter) -> None:
        addresses: tuple[str, ...] = ()
        with contextlib.suppress(ResolveError):
            addresses = await self._upstream.addresses_of(message.find, message.addresses)
        writer.write(verbs.pack(EgressMessage(id=message.id, done=True, addresses=addresses)))

    async def original(self, guest: str, port: int, at: int) -> tuple[str, int] | None:
        """Where the sandbox's connection from `port` to `at`, our own, was meant to go; None: nobody knows."""
        writer = self._writer
        if writer is None:
            return None
        self._next -= 1  # the supervisor counts upwards
        number = self._next
        answer: asyncio.Future[tuple[str, int] | None] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        try:
            writer.write(verbs.pack(EgressMessage(id=number, guest=guest, port=port, at=at)))
            async with asyncio.timeout(config.EGRESS_ORIGINAL_TIMEOUT_S):
                return await answer
        except (TimeoutError, OSError):
            return None
        finally:
            del self._questions[number]
