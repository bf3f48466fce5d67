"""The processes behind sessions: which terminal to come back to, and what is started."""

from __future__ import annotations

import contextlib
import signal as signals
from collections.abc import Mapping
from dataclasses import dataclass

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.ssh import client_agent, roles
from sandpty.server.dialects.ssh.client_agent import ClientAgent
from sandpty.server.dialects.ssh.login import Login
from sandpty.server.dialects.ssh.roles import Kind
from sandpty.server.dialects.ssh.seen import Seen, Viewer
from sandpty.server.guest_defaults import default_cwd, default_env, default_user
from sandpty.terminal import attachment, control
from sandpty.terminal.attachment import Attachment
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import LOGIN_SHELL, TERMINAL
from sandpty.wire.frames import (
    NEVER_MS,
    Attach,
    Exit,
    From,
    Output,
    ProcessFlags,
    ProcessInfo,
    Selector,
    Start,
    StartFlags,
    Target,
)
from sandpty.wire.verbs import Sandbox

_STALL_MS = int(config.SSH_STALL_S * 1000)
_PLAIN_SHELL = ("/bin/sh",)  # where there is no bash
_TERMINAL_RUNS = ProcessFlags.PTY | ProcessFlags.RUNNING


@dataclass(frozen=True, slots=True)
class Wish:
    """What a session asked for. `term`: of its terminal, "" without one; `command`: None for a shell; `modes`: as RFC
    4254, section 8, encodes them."""

    login: Login
    key: str
    command: str | None
    term: str
    cols: int
    rows: int
    modes: bytes
    env: Mapping[str, str]
    agent: ClientAgent | None  # the client's, where it offers one

    @property
    def may_type(self) -> bool:
        return roles.may(self.login.role, Kind.DEED, "type")

    @property
    def tag(self) -> str:
        """A person's terminals are found again by it; a person is an API key."""
        return f"ssh:{self.key}" if self.term and self.command is None else f"ssh-command:{self.key}"


async def attach(sandbox: Sandbox, wish: Wish, seen: Seen) -> Attachment:
    """Join or start what was asked for. `seen`: how far people have seen terminals.

    Raises bad_argument, no_such_process, no_such_user, start_failed, limit, agent_unreachable, ...
    """
    if wish.login.joins and wish.command is not None:
        roles.check(wish.login.role, "start a process")
        raise SandptyError("bad_argument", "a command is started, a process is joined: ask for one of them")
    if wish.login.joins:
        return await _join(sandbox, await _wanted(sandbox, wish.login), wish, seen)
    if wish.command is None and wish.term and not wish.login.new:
        mine = [info for info in await _terminals(sandbox) if info.tag == wish.tag and not info.attachments]
        if mine:
            return await _join(sandbox, mine[-1], wish, seen)
    return await _start(sandbox, wish)


async def _terminals(sandbox: Sandbox) -> list[ProcessInfo]:
    """That run, oldest first."""
    listed = await control.list_processes(sandbox.socket)
    return [info for info in listed if info.flags & _TERMINAL_RUNS == _TERMINAL_RUNS]


async def _wanted(sandbox: Sandbox, login: Login) -> ProcessInfo:
    if login.process is not None:
        return await control.stat(sandbox.socket, Selector.process(login.process))
    running = await _terminals(sandbox)
    if not running:
        raise SandptyError("no_such_process", f"no terminal runs in {sandbox.id} to look at")
    return running[-1]


async def _join(sandbox: Sandbox, info: ProcessInfo, wish: Wish, seen: Seen) -> Attachment:
    """From where this person has not seen it yet, or what shows the present screen: whichever shows more."""
    which = Selector.process(info.process)
    may_write = wish.may_type
    if wish.agent is not None:
        await wish.agent.come_back(sandbox, info)

    def request(origin: From, value: int = 0) -> Attach:
        window = config.SSH_TERMINAL_WINDOW_BYTES
        return Attach(which, may_write=may_write, origin=origin, value=value, window=window, stall_ms=_STALL_MS)

    if not info.flags & ProcessFlags.PTY:
        return await attachment.attach(sandbox.socket, request(From.OFFSET, info.start))
    missed_from = seen.get(Viewer(wish.key, sandbox.boot_id, info.process))
    if missed_from is None and may_write:
        async with await attachment.attach(sandbox.socket, request(From.CONTINUE)) as unseen:
            missed_from = unseen.info.start
    attached = await attachment.attach(sandbox.socket, request(From.SCREEN))
    if may_write and missed_from is not None and missed_from < attached.info.start:
        attached.close()
        attached = await attachment.attach(sandbox.socket, request(From.OFFSET, missed_from))
    try:
        if may_write and wish.term and wish.cols and wish.rows:
            await attached.resize(wish.cols, wish.rows)
    except BaseException:
        attached.close()
        raise
    return attached


async def _start(sandbox: Sandbox, wish: Wish) -> Attachment:
    roles.check(wish.login.role, "start a process")
    shell = LOGIN_SHELL if wish.term else (LOGIN_SHELL[0], "-l")
    path = "" if wish.agent is None else await wish.agent.path(sandbox)
    agent = {client_agent.VARIABLE: path} if path else {}
    try:
        return await attachment.start(sandbox.socket, _request(sandbox, wish, shell, agent))
    except SandptyError as error:
        if error.reason.name != "start_failed":
            raise
        return await attachment.start(sandbox.socket, _request(sandbox, wish, (*_PLAIN_SHELL, *shell[1:]), agent))


def _request(sandbox: Sandbox, wish: Wish, shell: tuple[str, ...], agent: dict[str, str]) -> Start:
    env = {**TERMINAL, **default_env(sandbox), **wish.env, **agent}
    if wish.term:
        env["TERM"] = wish.term
    else:
        env.pop("TERM", None)
    return Start(
        argv=shell if wish.command is None else (shell[0], "-c", wish.command),
        env=env,
        user=wish.login.user or default_user(sandbox),
        cwd="" if wish.login.user else default_cwd(sandbox),
        tag=wish.tag,
        flags=StartFlags.PTY if wish.term else StartFlags.STDIN,
        cols=wish.cols if wish.term else 0,
        rows=wish.rows if wish.term else 0,
        window=config.SSH_TERMINAL_WINDOW_BYTES,
        # Nobody is there to come back for a pipe's output: it waits as a pipe does.
        stall_ms=_STALL_MS if wish.term else NEVER_MS,
        modes=wish.modes,
    )


async def bereave(context: Context, sandbox: Sandbox, left: Attachment) -> None:
    """A command without a terminal whose client has gone gets what the end of a pipe gives: no more input, and SIGPIPE
    when it says something. `left`: the client's attachment.
    """
    which = Selector.process(left.info.process)
    request = Attach(which, origin=From.OFFSET, value=left.position, window=config.ATTACH_WINDOW_BYTES)
    with contextlib.suppress(SandptyError):  # it has ended, or its sandbox
        async with await attachment.attach(sandbox.socket, request) as attached:
            with context.registry.cutting(sandbox.id, attached.close):
                await attached.close_stdin()
                while not isinstance(event := await attached.receive(), Exit):
                    if isinstance(event, Output):
                        await attached.signal(signals.SIGPIPE, Target.GROUP)
                        return
