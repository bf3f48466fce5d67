"""The egress process, seen from the supervisor: started for the first policy that names domains, headers or a proxy.

It resolves names, looks at connections and carries them (package `sandpty.egress`), without any right, in a network
namespace of its own that the firewall treats as it treats a sandbox's. It outlives the supervisor, so that connections
go on; the next one finds it by its socket. When it is not there, what depends on it is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path

import msgspec

from sandpty import config
from sandpty.isolation import conntrack, program
from sandpty.wire import verbs
from sandpty.wire.verbs import EgressMessage, GuestRules

log = logging.getLogger(__name__)
_READ_BYTES = 64 * 1024
_BACKLOG = 4
_PUBLIC_SERVERS: tuple[str, ...] = ("8.8.8.8",)  # E2B's, where the host has none that a sandbox could reach

CERTIFICATE = "ca.pem"  # as egress/authority.py keeps it, beside its key
_TRUST_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # OpenSSL's: whom it believes about servers


def _environment() -> dict[str, str]:
    return {**program.ENVIRONMENT, **{name: os.environ[name] for name in _TRUST_VARIABLES if name in os.environ}}


class Egress:
    """`wire(pid)` joins the process's network namespace to ours, `wired()` tells whether that was done; `address` is
    the one it gets there."""

    def __init__(
        self,
        directory: Path,
        log_path: Path,
        *,
        wire: Callable[[int], None],
        wired: Callable[[], bool],
    ) -> None:
        self._directory = directory
        self._path = directory / "socket"
        self._argv = [sys.executable, "-m", "sandpty.egress.main", str(config.EGRESS_UID), str(directory)]
        self._pid_path = directory / "pid"
        self._servers = _PUBLIC_SERVERS
        self._log_path = log_path
        self._wire = wire
        self._wired = wired
        self.address = IPv4Address(0)
        self._guests: dict[str, GuestRules] = {}
        self._foreign: set[str] = set()  # known to a process that we found, not (yet) to us
        self._writer: asyncio.StreamWriter | None = None
        self._answers: dict[int, asyncio.Future[EgressMessage]] = {}
        self._next = 0
        self._pid = 0  # when it is a child of ours
        self._connecting = asyncio.Lock()
        self._listening: asyncio.Task[None] | None = None
        self._closed = False

    # --- what it shall know ---

    async def open(self, address: IPv4Address, servers: Sequence[IPv4Address]) -> None:
        """Take over a process that an earlier supervisor started, if there is one. `servers`: the host's resolvers."""
        self.address = address
        self._servers = tuple(map(str, servers)) or _PUBLIC_SERVERS
        self._directory.mkdir(mode=0o700, exist_ok=True)
        if self._wired():
            with contextlib.suppress(OSError, ValueError, TimeoutError, EOFError):
                await self._connect()
        await asyncio.to_thread(self._end_strays)

    def _end_strays(self) -> None:
        """Those that an earlier supervisor had started when it died, and nobody talks to."""
        taken = ""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                taken = self._pid_path.read_text(encoding="ascii").strip()
        ours = b"\0".join(os.fsencode(word) for word in self._argv) + b"\0"
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if name != taken and Path(f"/proc/{name}/cmdline").read_bytes() == ours:
                    os.kill(int(name), signal.SIGKILL)

    async def set(self, rules: GuestRules, servers: tuple[str, ...] | None) -> None:
        """Returns once this, and nothing else, is open for the sandbox with that address. Raises OSError.

        servers: whom to ask for its names; None: the host's own, who are asked for its proxy in any case.
        """
        asked = self._servers if servers is None else servers
        guest = msgspec.structs.replace(rules, servers=asked, resolvers=self._servers)
        self._foreign.discard(guest.address)
        self._guests[guest.address] = guest
        await self._ensure()
        await self._tell(EgressMessage(guests=(guest,)))

    async def reachable(self, host: str) -> bool:
        """Whether a proxy's host has an address that may be reached. Raises OSError."""
        await self._ensure()
        return bool((await self._tell(EgressMessage(find=host, addresses=self._servers))).addresses)

    async def certificate(self) -> bytes:
        """Of its authority, in PEM. Raises OSError."""
        await self._ensure()
        return (self._directory / CERTIFICATE).read_bytes()

    async def forget(self, address: str) -> None:
        """The sandbox has no names any more; what is open on their behalf is cut. Raises OSError."""
        if self._guests.pop(address, None) is None and address not in self._foreign:
            return
        self._foreign.discard(address)
        if self._writer is not None:
            await self._tell(EgressMessage(forget=(address,)))

    async def forget_strangers(self) -> None:
        """What a process that we found knows of sandboxes that are no more."""
        for address in tuple(self._foreign):
            with contextlib.suppress(OSError):
                await self.forget(address)

    async def _tell(self, message: EgressMessage) -> EgressMessage:
        writer = self._writer
        if writer is None:
            raise OSError("the egress process is not there")
        self._next += 1
        number = self._next
        answer: asyncio.Future[EgressMessage] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            writer.write(verbs.pack(msgspec.structs.replace(message, id=number)))
            async with asyncio.timeout(config.EGRESS_ANSWER_TIMEOUT_S):
                return await answer
        except TimeoutError:
            raise OSError("the egress process does not answer") from None
        finally:
            self._answers.pop(number, None)

    # --- the process ---

    async def _ensure(self) -> None:
        async with self._connecting:
            if self._writer is not None:
                return
            try:
                await self._start()
            except (TimeoutError, EOFError, ValueError) as error:
                raise OSError(f"the egress process does not start: {error}") from error

    async def _start(self) -> None:
        await self._reap(kill=True)
        listener = self._listen()
        try:
            self._pid = program.spawn(self._argv, fd3=listener.fileno(), output=self._log_path, env=_environment())
        finally:
            listener.close()
        written = self._pid_path.with_suffix(".new")
        written.write_text(f"{self._pid}\n", encoding="ascii")
        os.replace(written, self._pid_path)
        await self._connect()
        try:
            # Only now: it has said that it left our network.
            await asyncio.to_thread(self._wire, self._pid)
            for guest in tuple(self._guests.values()):  # one message each: together they may be too long
                await self._tell(EgressMessage(guests=(guest,)))
        except OSError:
            await self._drop()
            raise

    def _listen(self) -> socket.socket:
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self._path))
            self._path.chmod(0o600)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener

    async def _connect(self) -> None:
        """Raises OSError, TimeoutError, ValueError, EOFError."""
        async with asyncio.timeout(config.EGRESS_START_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(self._path))
            try:
                messages = verbs.MessageReader()
                bodies: list[bytes] = []
                while not bodies:
                    data = await reader.read(_READ_BYTES)
                    if not data:
                        raise EOFError("it ended at once; its log is supervisor.log")
                    bodies = messages.feed(data)
                hello = msgspec.json.decode(bodies[0], type=EgressMessage)
                if hello.version != verbs.EGRESS_PROTOCOL_VERSION:
                    writer.write(verbs.pack(EgressMessage(end=True)))  # an earlier version's: it makes room for ours
                    raise ValueError("it is of another version")
            except BaseException:
                writer.close()
                raise
        self._foreign = set(hello.known or ()) - self._guests.keys()
        self._writer = writer
        # A task of our own: whoever settles background work at the end does not wait for it.
        self._listening = asyncio.create_task(self._listen_to(reader, writer, messages), name="egress")

    async def _listen_to(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, messages: verbs.MessageReader
    ) -> None:
        try:
            while data := await reader.read(_READ_BYTES):
                for body in messages.feed(data):
                    self._heard(msgspec.json.decode(body, type=EgressMessage), writer)
                await writer.drain()  # it has no rights: one that asks and does not listen shall not fill our memory
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.warning("egress: %s", error)
        finally:
            writer.close()
            self._writer = None
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(OSError("the egress process died"))
        if not self._closed:
            log.warning("the egress process is gone; names are closed until it is back")
            await self._start_again()

    def _heard(self, message: EgressMessage, writer: asyncio.StreamWriter) -> None:
        if message.done:
            answer = self._answers.get(message.id)
            if answer is not None and not answer.done():
                answer.set_result(message)
        elif message.guest in self._guests:
            found = conntrack.original_destination(
                (self.address, message.at & 0xFFFF), (IPv4Address(message.guest), message.port & 0xFFFF)
            )
            original = (str(found[0]), found[1]) if found else None
            writer.write(verbs.pack(EgressMessage(id=message.id, original=original)))
        else:
            writer.write(verbs.pack(EgressMessage(id=message.id)))

    async def _start_again(self) -> None:
        pause_s = config.EGRESS_RETRY_MIN_S
        while self._guests and not self._closed:
            try:
                await self._ensure()
                return
            except OSError as error:
                log.warning("egress: %s", error)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, config.EGRESS_RETRY_MAX_S)

    async def _drop(self) -> None:
        writer, self._writer = self._writer, None
        if self._listening is not None:
            self._listening.cancel()
        if writer is not None:
            writer.close()
        await self._reap(kill=True)

    async def _reap(self, *, kill: bool) -> None:
        if not self._pid:
            return
        pid, self._pid = self._pid, 0
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if kill:
                os.kill(pid, 9)
            await asyncio.to_thread(os.waitpid, pid, 0)

    async def close(self, *, sandboxes_left: bool) -> None:
        """Leave it alone while there are sandboxes; else end it."""
        self._closed = True
        writer = self._writer
        if writer is not None and not sandboxes_left:
            with contextlib.suppress(OSError):
                await self._tell(EgressMessage(end=True))
            await self._reap(kill=True)
            for path in (self._path, self._pid_path):
                path.unlink(missing_ok=True)
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
