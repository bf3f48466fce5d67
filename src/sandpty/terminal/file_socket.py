"""The socket of a files connection: frames in and out with as few copies as Python allows.

Not an asyncio transport: content is received straight into the `bytes` that are handed on, and sent straight from the
buffers that were given; the kernel's flow control is the only one. The agent is not trusted: whatever it sends, this
raises SandptyError and holds one frame at most.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Sequence

from sandpty import config
from sandpty.terminal.connection import agent_error
from sandpty.terminal.readable import Readable
from sandpty.wire import file_frames, frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.file_frames import ANSWER_BYTES_MAX, PIECE_BYTES, FileErrorCode, FileFrame
from sandpty.wire.frames import AgentError, FrameError

_HEAD = struct.Struct("<IB")
_BUFFER_BYTES = 16 * 1024
_REASONS: dict[int, str] = {
    errno.ENOENT: "no_such_file",
    errno.ENOTDIR: "not_a_directory",
    errno.EISDIR: "is_a_directory",
    errno.EEXIST: "file_exists",
    errno.ENOTEMPTY: "not_empty",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "permission_denied",
    errno.ELOOP: "symlink_loop",
    errno.ENAMETOOLONG: "bad_path",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EFBIG: "no_space",
    errno.EMFILE: "limit",
    errno.ENFILE: "limit",
    errno.ENOMEM: "limit",
    errno.ENXIO: "not_a_file",
    errno.ETXTBSY: "conflict",
    errno.EBUSY: "conflict",
    errno.EAGAIN: "conflict",
    errno.EADDRINUSE: "conflict",
    errno.ECONNREFUSED: "port_closed",
    errno.ETIMEDOUT: "timeout",
    FileErrorCode.NOT_A_FILE: "not_a_file",
    FileErrorCode.BAD_PATH: "bad_path",
    FileErrorCode.NETWORK_FILE_SYSTEM: "network_file_system",
    FileErrorCode.LIMIT: "limit",
    FileErrorCode.ACCOUNT_CHANGED: "conflict",
}


class AccountChangedError(SandptyError):
    """A request that counted on an account was not done."""

    def __init__(self) -> None:
        super().__init__("conflict", "the user's account was changed meanwhile")


def file_error(code: int, message: str, path: str) -> SandptyError:
    """What the guest's kernel said, as an exception; its words are cut and made fit for JSON."""
    text = f"{path[:1000]}: {message[:200]}".encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return SandptyError(_REASONS.get(code, "file_error"), text)


async def writable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    """Wait until there is room to write, or nobody who reads."""
    ready = loop.create_future()
    loop.add_writer(descriptor, _be_ready, ready)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


def _be_ready(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class FileSocket:
    """Open with `await FileSocket.open(path)`. One thing at a time; `close` from anywhere."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(_BUFFER_BYTES)
        self._first = self._last = 0  # what was received and not taken
        self._content_left = 0  # of the CONTENT frame that is coming in
        self._in_use = 0  # calls that wait for the socket: it must not be closed under them
        self._readable = Readable(connected.fileno())
        self.closed = False

    @classmethod
    async def open(cls, path: str, first: bytes) -> FileSocket:
        """Connect, say HELLO and `first` in one write, and wait for the agent's HELLO.

        Raises SandptyError: agent_unreachable, agent_misbehaved, limit (connections of the agent).
        """
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        connection = cls(raw)
        try:
            async with asyncio.timeout(config.AGENT_CONNECT_TIMEOUT_S):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.FILE_SOCKET_BYTES)
                await connection._loop.sock_connect(raw, path)
                await connection.send(frames.encode_hello() + first)
                kind, payload = await connection.frame()
                if kind != frames.FrameType.AGENT_HELLO:
                    raise connection.misbehaved(f"frame 0x{kind:02x} where HELLO was due")
                if frames.decode(kind, payload).version != frames.PROTOCOL_VERSION:  # type: ignore[union-attr]
                    raise connection.misbehaved("the agent does not speak this protocol version")
        except (OSError, TimeoutError) as error:
            connection.close()
            raise SandptyError("agent_unreachable", "the sandbox does not answer; is it still running?") from error
        except FrameError as error:
            raise connection.misbehaved(str(error)) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """At once; whoever waits gets agent_unreachable. Safe to repeat."""
        if self.closed:
            return
        self.closed = True
        if self._in_use:  # its call ends now, and closes the descriptor
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                self._end()
        else:
            self._end()

    def _end(self) -> None:
        self._readable.stop()
        self._socket.close()

    def misbehaved(self, what: str) -> SandptyError:
        self.close()
        return SandptyError("agent_misbehaved", what)

    def _lost(self) -> SandptyError:
        self.close()
        return SandptyError("agent_unreachable", "the connection to the sandbox was lost")

    def _release(self) -> None:
        self._in_use -= 1
        if self.closed and not self._in_use:
            self._end()

    # --- sending ---

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """All of it; waits while the guest is slower. The parts may be changed afterwards."""
        if self.closed:
            raise self._lost()
        self._in_use += 1
        try:
            try:
                sent = self._socket.sendmsg(parts)
            except (BlockingIOError, InterruptedError):
                sent = 0
            for part in parts:
                if sent >= len(part):
                    sent -= len(part)
                else:
                    await self._loop.sock_sendall(self._socket, memoryview(part)[sent:] if sent else part)
                    sent = 0
        except OSError as error:
            raise self._lost() from error
        finally:
            self._release()
        if self.closed:
            raise self._lost()

    def send_with(self, data: bytes, descriptor: int) -> None:
        """A small request and a descriptor with it, while nothing else is on the way."""
        if self.closed:
            raise self._lost()
        try:
            if socket.send_fds(self._socket, [data], [descriptor]) == len(data):
                return
        except OSError as error:
            raise self._lost() from error
        raise self._lost()

    # --- receiving ---

    async def _receive(self, need: int, most: int) -> None:
        """Until `need` bytes are in the buffer; never more than `most`."""
        if self._first:
            held = self._last - self._first
            self._buffer[:held] = self._buffer[self._first : self._last]
            self._first, self._last = 0, held
        if len(self._buffer) < need:
            self._buffer.extend(bytes(need - len(self._buffer)))
        most = min(most, len(self._buffer))
        if self.closed:
            raise self._lost()
        self._in_use += 1
        try:
            with memoryview(self._buffer) as view:
                while self._last < need:
                    with view[self._last : most] as room:
                        try:
                            got = self._socket.recv_into(room)
                        except (BlockingIOError, InterruptedError):
                            await self._readable.wait()
                            continue
                    if not got or self.closed:
                        raise self._lost()
                    self._last += got
        except OSError as error:
            raise self._lost() from error
        finally:
            self._release()

    async def head(self, *, alone: bool = False) -> tuple[int, int]:
        """The next frame's type and the length of its payload. alone: receive no byte of what follows.

        What is no content may follow at once: use `payload`. Raises agent_misbehaved when the length is out of bounds.
        """
        if self._last - self._first < _HEAD.size:
            await self._receive(_HEAD.size, _HEAD.size if alone else _BUFFER_BYTES)
        length, kind = _HEAD.unpack_from(self._buffer, self._first)
        self._first += _HEAD.size
        length -= 1
        if length < 0 or length > (PIECE_BYTES if kind == FileFrame.CONTENT else ANSWER_BYTES_MAX):
            raise self.misbehaved(f"a frame of {length} bytes")
        return kind, length

    async def payload(self, length: int) -> bytes:
        if self._last - self._first < length:
            await self._receive(length, max(length, _BUFFER_BYTES))
        with memoryview(self._buffer) as view:
            payload = bytes(view[self._first : self._first + length])
        self._first += length
        if self._first == self._last:
            self._first = self._last = 0
            if len(self._buffer) > _BUFFER_BYTES:
                self._buffer = bytearray(_BUFFER_BYTES)
        return payload

    async def frame(self) -> tuple[int, bytes]:
        """The next frame, which is small."""
        kind, length = await self.head()
        return kind, await self.payload(length)

    async def content(self, left: int) -> bytes:
        """Some of the `left` bytes of content that are still to come (at least one)."""
        held = self._last - self._first
        if held:
            return await self.payload(min(held, left))
        if self.closed:
            raise self._lost()
        self._in_use += 1
        try:
            while True:
                try:
                    piece = self._socket.recv(left)
                    break
                except (BlockingIOError, InterruptedError):
                    await self._readable.wait()
        except OSError as error:
            raise self._lost() from error
        finally:
            self._release()
        if not piece or self.closed:
            raise self._lost()
        return piece

    @property
    def holds_content(self) -> bool:
        """Whether some of what comes next was received already."""
        return self._last > self._first

    async def splice(self, pipe: int, left: int) -> int:
        """Move some of the `left` bytes of content that are still to come into a pipe, uncopied; how many.

        Only when none are held here. Raises OSError when the kernel cannot.
        """
        if self.closed:
            raise self._lost()
        self._in_use += 1
        try:
            while True:
                try:
                    moved = os.splice(self._socket.fileno(), pipe, left, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
                    break
                except (BlockingIOError, InterruptedError):
                    await self._readable.wait()
        finally:
            self._release()
        if not moved or self.closed:
            raise self._lost()
        return moved

    @property
    def has_said_something(self) -> bool:
        """Whether a frame, or the end, is there without waiting."""
        if self._last > self._first or self.closed:
            return True
        try:
            return len(self._socket.recv(1, socket.MSG_PEEK)) >= 0
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    async def answer(self, kind: FileFrame, path: str) -> bytes:
        """The payload of the frame that is due. Raises what a FILE_ERROR or ERROR says instead."""
        got, payload = await self.frame()
        self.check(got, payload, kind, path)
        return payload

    def check(self, got: int, payload: bytes, kind: FileFrame, path: str) -> None:
        """Raise unless the frame that came is the one that was due."""
        if got == kind:
            return
        try:
            if got == FileFrame.FILE_ERROR:
                raise file_error(*file_frames.decode_file_error(payload), path)
            if got == FileFrame.ERROR:
                raise agent_error(AgentError(*file_frames.decode_error(payload)))
        except FrameError as error:
            raise self.misbehaved(str(error)) from error
        raise self.misbehaved(f"frame 0x{got:02x} where {kind.name} was due")


__all__: Sequence[str] = ["AccountChangedError", "FileSocket", "file_error"]
