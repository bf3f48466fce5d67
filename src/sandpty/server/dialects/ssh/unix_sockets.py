"""Unix sockets of a sandbox, by `ssh -L PORT:/path/in/the/sandbox` and editors that listen on one.

A connection is a small program in the sandbox between the socket and its own stdin and stdout. It runs as the user who
logged in, so what a path means, and whether it may be used, is the sandbox's kernel's to say: no path is ever looked at
on this host.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal as signals

import asyncssh
from asyncssh.stream import SSHReader, SSHWriter

from sandpty import config
from sandpty.server.dialects.ssh.transport import Connection
from sandpty.terminal import attachment
from sandpty.terminal.attachment import Attachment
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import NEVER_MS, Exit, Output, Start, StartFlags, Stream, Target
from sandpty.wire.verbs import Sandbox

log = logging.getLogger(__name__)
_CONNECTED = b"+"  # what it says first
_WHAT_IT_SAYS = 300
_BRIDGE = """
import os, socket, sys, threading
inside = socket.socket(socket.AF_UNIX)
try:
    inside.connect(os.fsencode(sys.argv[1]))
except (OSError, ValueError) as error:
    sys.exit(getattr(error, "strerror", None) or str(error))
def out(data):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
def into():
    try:
        while data := os.read(0, 65536):
            inside.sendall(data)
        inside.shutdown(socket.SHUT_WR)
    except OSError:
        pass
out(b"+")
os.read(0, 1)
threading.Thread(target=into, daemon=True).start()
try:
    while data := inside.recv(65536):
        out(data)
except OSError:
    pass
os._exit(0)
"""


async def connect(sandbox: Sandbox, user: str, path: str) -> Attachment:
    """The program behind which `path` is, connected. Raises port_closed in the sandbox's words, limit, timeout, ..."""
    request = Start(
        ("python3", "-I", "-c", _BRIDGE, path),
        {"LC_ALL": "C"},
        user,
        cwd="",
        flags=StartFlags.STDIN,
        window=config.SSH_FORWARD_WINDOW_BYTES,
        stall_ms=NEVER_MS,
    )
    try:
        attached = await attachment.start(sandbox.socket, request)
    except SandptyError as error:
        if error.reason.name != "start_failed":
            raise
        raise SandptyError("unsupported", "forwarding to a unix socket needs a python3 in the sandbox") from error
    try:
        async with asyncio.timeout(config.SSH_COMMAND_S):
            await _connected(attached)
    except BaseException as error:
        await _end(attached)
        if isinstance(error, TimeoutError):
            raise SandptyError("timeout", "the socket takes no connection") from error
        raise
    return attached


async def _connected(attached: Attachment) -> None:
    said = b""
    while not isinstance(event := await attached.receive(), Exit):
        if isinstance(event, Output) and event.stream == Stream.STDOUT:
            if event.data != _CONNECTED:
                raise SandptyError("port_closed", "python3 in the sandbox says something else")
            attached.acknowledge()
            await attached.send_input(_CONNECTED)  # it says no more before: the socket's first words come apart
            return
        if isinstance(event, Output):
            said = (said + event.data)[:_WHAT_IT_SAYS]
    raise SandptyError("port_closed", said.decode("utf-8", "replace").strip() or "no connection")


async def carry(
    attached: Attachment, connection: Connection, reader: SSHReader[bytes], writer: SSHWriter[bytes]
) -> None:
    """Both ways, until the socket's side has ended, or the client's channel."""
    tasks = (
        asyncio.create_task(_out(attached, connection, writer), name="ssh-unix-out"),
        asyncio.create_task(_into(attached, reader), name="ssh-unix-in"),
    )
    try:
        await tasks[0]
    except (SandptyError, OSError, asyncssh.Error) as error:
        log.debug("a forwarded unix connection ended: %s", error)
        writer.channel.abort()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _end(attached)
        writer.close()


async def _out(attached: Attachment, connection: Connection, writer: SSHWriter[bytes]) -> None:
    while not isinstance(event := await attached.receive(), Exit):
        if isinstance(event, Output) and event.stream == Stream.STDOUT:
            writer.write(event.data)
            await writer.drain()
            await connection.flowing.wait()
        attached.acknowledge()
    writer.write_eof()


async def _into(attached: Attachment, reader: SSHReader[bytes]) -> None:
    while data := await reader.read(config.SSH_FORWARD_READ_BYTES):
        await attached.send_input(data)
    await attached.close_stdin()


async def _end(attached: Attachment) -> None:
    """The program goes with its connection."""
    if attached.exit is None:
        with contextlib.suppress(SandptyError):  # it has gone, or its sandbox
            await attached.signal(signals.SIGKILL, Target.TREE)
    attached.close()
