"""One session channel: a shell, a command, or files. What goes wrong is said on its stderr, with an exit status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import signal as signals
import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

import asyncssh
from asyncssh.scp import run_scp_server
from asyncssh.sftp import run_sftp_server
from asyncssh.stream import SSHReader, SSHServerStreamSession, SSHWriter

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.ssh import terminals
from sandpty.server.dialects.ssh.background import Background
from sandpty.server.dialects.ssh.bounds import Turns
from sandpty.server.dialects.ssh.client_agent import ClientAgent
from sandpty.server.dialects.ssh.login import Login
from sandpty.server.dialects.ssh.relay import Relay
from sandpty.server.dialects.ssh.seen import Seen, Viewer
from sandpty.server.dialects.ssh.sftp import SftpServer
from sandpty.server.dialects.ssh.terminals import Wish
from sandpty.server.dialects.ssh.transport import Channel
from sandpty.server.ends import wait_for_the_end
from sandpty.terminal import control
from sandpty.terminal.attachment import Attachment
from sandpty.terminal.signals import signal_number
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import MAX_WINDOW_CELLS, Exit, ExitReason, Selector, Target
from sandpty.wire.verbs import Sandbox

log = logging.getLogger(__name__)
_STDERR = 1
_SFTP_VERSION = 3  # OpenSSH's
_DEFAULT_SIZE = (80, 24)
_MODE = struct.Struct(">BI")  # of a terminal: which, and its value
_SCP = re.compile(r"scp (?:-[a-zA-Z]+ )*-[a-zA-Z]*[tf]\b")  # what an scp client has the other side run
_SSH_FAILED = 255  # ssh's own exit status for what is not the command's
_WORDS = {
    ExitReason.DEADLINE: "killed: its time was up",
    ExitReason.KILLED: "killed",
    ExitReason.OUT_OF_MEMORY: "killed: the sandbox is out of memory",
    ExitReason.SANDBOX_ENDED: "ended with its sandbox",
}


class SharedState(Protocol):
    """What sessions share. `background`: for what is still to be done when a client has gone."""

    background: Background
    seen: Seen


class Session(asyncssh.SSHServerSession[bytes]):
    """`login`: a function, because what is wrong with a user name is said here, where a person can read it.

    `offered_agent`: called when the client offers its agent.
    """

    def __init__(
        self,
        context: Context,
        principal: Principal,
        login: Callable[[], Login],
        gateway: SharedState,
        offered_agent: Callable[[], ClientAgent | None],
    ) -> None:
        self._context = context
        self._shared = gateway
        self._principal = principal
        self._login = login
        self._offered_agent = offered_agent
        self._agent: ClientAgent | None = None
        self._channel: Channel
        self._size = (0, 0)
        self._modes = b""
        self._early: deque[bytes] = deque()
        self._early_end = False
        self._relay: Relay | None = None
        self._process: tuple[str, int] | None = None  # the agent's socket, and its number there
        self._signals: deque[int] = deque()
        self._signalling = False
        self._streams: SSHServerStreamSession[bytes] | None = None
        self._task: asyncio.Task[None] | None = None

    # --- asyncssh's callbacks ---

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        assert isinstance(chan, Channel)
        self._channel = chan
        chan.agent_requested = self._agent_requested

    def _agent_requested(self) -> bool:
        with contextlib.suppress(SandptyError):  # no such user name; that is said later
            self._agent = self._offered_agent()
        return self._agent is not None

    def pty_requested(
        self, term_type: str, term_size: tuple[int, int, int, int], term_modes: Mapping[int, int]
    ) -> bool:
        self._size = term_size[:2]
        self._modes = b"".join(_MODE.pack(*mode) for mode in term_modes.items())
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        return subsystem == "sftp"

    def session_started(self) -> None:
        self._task = asyncio.create_task(self._run(), name="ssh-session")

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._relay is not None:
            self._relay.type(data)
        elif self._streams is not None:
            self._streams.data_received(data, datatype)
        else:
            self._early.append(data)
            self._channel.pause_reading()

    def eof_received(self) -> bool:
        if self._relay is not None:
            self._relay.end_input()
        elif self._streams is not None:
            self._streams.eof_received()
        else:
            self._early_end = True
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        self._size = (width, height)
        if self._relay is not None:
            self._relay.resize(width, height)

    def signal_received(self, signal: str) -> None:
        with contextlib.suppress(SandptyError):  # one that does not exist
            self._signal(signal_number(signal))

    def break_received(self, msec: int) -> bool:
        """As a terminal does with BRKINT."""
        self._signal(signals.SIGINT)
        return True

    def pause_writing(self) -> None:
        for behind in (self._relay, self._streams):
            if behind is not None:
                behind.pause_writing()

    def resume_writing(self) -> None:
        for behind in (self._relay, self._streams):
            if behind is not None:
                behind.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._streams is not None:
            self._streams.connection_lost(exc)
        if self._task is not None and self._streams is None:
            self._task.cancel()

    # --- ours ---

    def _signal(self, number: int) -> None:
        """Not behind what is typed: the program may not take it. One after the other."""
        if self._process is None or len(self._signals) >= config.SSH_SIGNALS_WAITING:
            return
        self._signals.append(number)
        if not self._signalling:
            self._signalling = True
            self._shared.background.spawn(self._send_signals(*self._process))

    async def _send_signals(self, socket: str, process: int) -> None:
        try:
            while self._signals:
                with contextlib.suppress(SandptyError):  # it is lost: whoever receives from it is told
                    number = self._signals.popleft()
                    await control.signal(socket, Selector.process(process), number, Target.GROUP)
        finally:
            self._signalling = False

    @property
    def _has_terminal(self) -> bool:
        return self._channel.get_terminal_type() is not None

    async def _run(self) -> None:
        try:
            await self._serve()
        except SandptyError as error:
            hint = f" ({error.reason.hint})" if error.reason.hint else ""
            self._end(f"{error.message}{hint}", error.reason.exit_status)
        except (asyncssh.Error, OSError) as error:  # the client has gone
            log.debug("session ended: %s", error)
            self._channel.abort()
        except Exception:
            incident = secrets.token_hex(6)
            log.exception("incident %s: ssh session failed", incident)
            self._end(f"internal error; the server's log has it under incident {incident}", _SSH_FAILED)

    def _end(self, message: str, status: int) -> None:
        if self._channel.is_closing():
            return
        newline = "\r\n" if self._has_terminal else "\n"
        text = f"sandpty: {' '.join(message.split())}{newline}"
        self._channel.write(text.encode("utf-8", "surrogateescape"), _STDERR)
        self._channel.exit(status)

    async def _serve(self) -> None:
        login = self._login()
        command = self._channel.get_command()
        is_sftp = self._channel.get_subsystem() == "sftp"
        sandbox = await self._context.registry.awake(login.sandbox, self._principal)
        if is_sftp or (command is not None and _SCP.match(command)):
            await self._serve_files(login, command)
        else:
            await self._serve_process(sandbox, self._wish(login, command))

    def _wish(self, login: Login, command: str | None) -> Wish:
        cols, rows = (
            min(given, MAX_WINDOW_CELLS) or usual for given, usual in zip(self._size, _DEFAULT_SIZE, strict=True)
        )
        env = {
            name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
            for name, value in self._channel.get_environment_bytes().items()
        }
        asked = self._channel.get_terminal_type()
        term = (asked or "dumb") if asked is not None else ""
        return Wish(login, self._principal.key, command, term, cols, rows, self._modes, env, self._agent)

    # --- processes ---

    async def _serve_process(self, sandbox: Sandbox, wish: Wish) -> None:
        registry = self._context.registry
        async with await terminals.attach(sandbox, wish, self._shared.seen) as attached:
            with registry.cutting(sandbox.id, attached.close):
                registry.running(sandbox.id, self._principal)  # it may have been paused while we attached
                try:
                    ended = await self._relayed(sandbox, attached, wish)
                except SandptyError as error:
                    raise await self._explained(sandbox, error) from error
                except asyncio.CancelledError:
                    if not wish.term and not wish.login.joins:
                        self._shared.background.spawn(terminals.bereave(self._context, sandbox, attached))
                    raise
        self._say_end(ended)

    async def _relayed(self, sandbox: Sandbox, attached: Attachment, wish: Wish) -> Exit | None:
        may_write = wish.may_type
        self._process = (sandbox.socket, attached.info.process)
        self._relay = Relay(self._channel, attached, may_write=may_write, terminal=bool(wish.term))
        self._catch_up(self._relay, wish)
        try:
            return await self._relay.run()
        finally:
            if self._relay.seen is not None and may_write:
                viewer = Viewer(wish.key, sandbox.boot_id, attached.info.process)
                self._shared.seen.remember(viewer, self._relay.seen)

    def _catch_up(self, relay: Relay, wish: Wish) -> None:
        """What came before there was somebody to give it to."""
        for data in self._early:
            relay.type(data)
        if self._early_end:
            relay.end_input()
        if (self._size[0] or wish.cols, self._size[1] or wish.rows) != (wish.cols, wish.rows):
            relay.resize(*self._size)
        self._early.clear()
        self._channel.resume_reading()

    async def _explained(self, sandbox: Sandbox, error: SandptyError) -> SandptyError:
        """What became of the sandbox, when that is why the process was lost."""
        if error.reason.name != "agent_unreachable":
            return error
        await wait_for_the_end(self._context, sandbox)
        if sandbox.id not in self._context.registry:
            return SandptyError("sandbox_ended", f"sandbox {sandbox.id} has ended")
        try:
            self._context.registry.running(sandbox.id)
        except SandptyError as known:
            return known
        return error

    # --- files ---

    async def _serve_files(self, login: Login, command: str | None) -> None:
        """sftp, or the older scp, which is a protocol of its own behind a command."""
        streams = self._streams = SSHServerStreamSession[bytes](None)
        streams.connection_made(self._channel)
        for data in self._early:
            streams.data_received(data, None)
        if self._early_end:
            streams.eof_received()
        self._early.clear()
        self._channel.resume_reading()
        server = SftpServer(self._channel, self._context, self._principal, login, scp=command is not None)
        reader = _Requests(streams, self._channel, server.turns)
        writer = _Answers(streams, self._channel)
        try:
            if command is None:
                await run_sftp_server(server, reader, writer, _SFTP_VERSION)
                return
            to_stderr = SSHWriter[bytes](streams, self._channel, _STDERR)
            handling = run_scp_server(server, command, reader, writer, to_stderr)
            if handling is not None:
                await handling
        finally:
            await server.exit()

    def _say_end(self, ended: Exit | None) -> None:
        if self._channel.is_closing():
            return
        if ended is None:
            self._channel.exit(0)
            return
        if ended.reason in _WORDS:
            newline = "\r\n" if self._has_terminal else "\n"
            self._channel.write(f"sandpty: {_WORDS[ended.reason]}{newline}".encode(), _STDERR)
        if ended.signalled:
            name = _signal_name(ended.value)
            self._channel.exit_with_signal(name, ended.core_dumped, f"killed by SIG{name}")
        else:
            self._channel.exit(ended.value)


class _Requests(SSHReader[bytes]):
    """Many may have come at once."""

    def __init__(self, streams: SSHServerStreamSession[bytes], channel: Channel, turns: Turns) -> None:
        super().__init__(streams, channel)
        self._turns = turns

    async def readexactly(self, n: int) -> bytes:
        await self._turns.take()
        return await super().readexactly(n)

    async def readline(self) -> bytes:
        await self._turns.take()
        return await super().readline()


class _Answers(SSHWriter[bytes]):
    """Clients take a channel that is closed without an exit status for a failure."""

    def close(self) -> None:
        assert isinstance(self.channel, Channel)
        self.channel.exit(0)


def _signal_name(number: int) -> str:
    """As RFC 4254 writes it, without SIG."""
    try:
        return signals.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return f"{number}@sandpty"
