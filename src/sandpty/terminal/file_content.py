"""What is in a file of a guest: Reading and Writing, made by `Files.open` and `Files.create`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Callable

from sandpty import config
from sandpty.terminal.file_socket import FileSocket, writable
from sandpty.wire import file_frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.file_frames import PIECE_BYTES, FileFrame
from sandpty.wire.file_types import Entry
from sandpty.wire.frames import FrameError


class Reading:
    """An open file being read. `entry` is of the open file itself: what is read is what was looked at.

    async with files.open("/etc/passwd") as reading:
        async for piece in reading: ...

    The end is where the file really ends, whatever its size says: a file of /proc (size 0) is read to its end, a file
    that shrinks meanwhile ends earlier. `count`: bytes of this range received so far.
    `wanted`: how many were asked for (None: all there are). `done`: its end was received.
    """

    def __init__(self, connection: FileSocket, path: str, entry: Entry, length: int | None) -> None:
        self._socket = connection
        self._path = path
        self.entry = entry
        self.count = 0
        self.done = False
        self.wanted = length
        self._left = 0  # of the frame that is coming in
        self._stream = False  # big frames follow each other: their heads are received alone

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        while piece := await self.piece():
            yield piece

    async def piece(self) -> bytes:
        """The next bytes (at most 256 KiB), b"" at the end of what was asked for.

        Raises file_error and its like when the guest's kernel cannot read on.
        """
        if self._left == 0 and not await self._next_frame():
            return b""
        piece = await self._socket.content(self._left)
        self._took(len(piece))
        return piece

    def _took(self, count: int) -> None:
        self._left -= count
        self.count += count
        if self.wanted is not None and self.count > self.wanted:
            raise self._socket.misbehaved("more content than was asked for")

    async def _next_frame(self) -> bool:
        if self.done:
            return False
        kind, length = await self._socket.head(alone=self._stream)
        if kind == FileFrame.CONTENT and length:
            self._left = length
            self._stream = length > config.FILE_SMALL_BYTES
            return True
        payload = await self._socket.payload(length)
        self.done = kind in (FileFrame.CONTENT_END, FileFrame.FILE_ERROR)
        self._socket.check(kind, payload, FileFrame.CONTENT_END, self._path)
        try:
            count = file_frames.decode_number(payload)
        except FrameError as error:
            raise self._socket.misbehaved(str(error)) from error
        if count != self.count:
            raise self._socket.misbehaved(f"{count} bytes announced, {self.count} received")
        return False

    async def pour(self, into: socket.socket, most: int, stall_s: float) -> int:
        """Move the rest of the range, `most` bytes of it, into a connected, non-blocking socket; how many that were.

        Through the kernel: no byte of it is copied by us, and a client that is slow makes the guest wait. Raises
        ConnectionError when the other end has gone, TimeoutError when it takes nothing for `stall_s`, and as `piece`.
        """
        end = self.count + most
        with _Pipe() as pipe:
            while (self._left or await self._next_frame()) and self.count < end:
                left = min(self._left, end - self.count)
                if self._socket.holds_content:
                    piece = await self._socket.content(left)
                    self._took(len(piece))
                    await _send_all(into, piece, stall_s)
                else:
                    moved = await self._socket.splice(pipe.write_end, left)
                    self._took(moved)
                    await pipe.empty(into, moved, stall_s)
        return most - (end - self.count)

    async def read(self, offset: int = 0, length: int | None = None) -> None:
        """Ask the open file for another range, once the last one was read to its end (or was of length 0)."""
        while await self.piece():
            pass
        await self._socket.send(file_frames.encode_read(offset, length))
        self.count, self.wanted, self.done, self._stream = 0, length, False, False

    async def all(self, limit_bytes: int) -> bytes:
        """The rest of the range in one piece. Raises too_large when it is more than `limit_bytes`."""
        pieces = []
        size = 0
        async for piece in self:
            size += len(piece)
            if size > limit_bytes:
                raise SandptyError("too_large", f"{self.entry.name} is over {limit_bytes} bytes")
            pieces.append(piece)
        return b"".join(pieces)


class _Pipe:
    """What is between two sockets: the kernel moves pages only through a pipe."""

    def __enter__(self) -> _Pipe:
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # many pipes of one user stay small
            fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, PIECE_BYTES)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.read_end)
        os.close(self.write_end)

    async def empty(self, into: socket.socket, count: int, stall_s: float) -> None:
        """Move `count` bytes, which lie in the pipe, on."""
        loop = asyncio.get_running_loop()
        flags = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE | os.SPLICE_F_MORE
        while count:
            try:
                count -= os.splice(self.read_end, into.fileno(), count, flags=flags)
            except (BlockingIOError, InterruptedError):
                async with asyncio.timeout(stall_s):
                    await writable(loop, into.fileno())
        await asyncio.sleep(0)  # between two who are fast, others get their turn


async def _send_all(into: socket.socket, data: bytes, stall_s: float) -> None:
    async with asyncio.timeout(stall_s):
        await asyncio.get_running_loop().sock_sendall(into, data)


class Writing:
    """A file being written, in place. Nothing is done until `finish` has returned; leaving without it aborts.

    `count`: bytes sent. `created`: after `finish`, whether the file was not there before.
    """

    def __init__(self, connection: FileSocket, path: str, finished: Callable[[], None]) -> None:
        self._socket = connection
        self._path = path
        self._finished = finished
        self.count = 0
        self.created = False

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; waits while the guest is slower. Raises early what `finish` would raise (no_space ...).

        `data` may be used again once this returns.
        """
        view = memoryview(data).cast("B")
        for at in range(0, len(view), PIECE_BYTES):
            if self._socket.has_said_something:
                await self._refused()
            piece = view[at : at + PIECE_BYTES]
            await self._socket.send(file_frames.data_head(len(piece)), piece)
            self.count += len(piece)

    async def _refused(self) -> None:
        """The agent has said something before the end: it can only be why it takes no more."""
        kind, payload = await self._socket.frame()
        if kind == FileFrame.FILE_ERROR:  # what is still on the way is dropped there, up to END
            await self._socket.send(file_frames.END)
            self._finished()
        self._socket.check(kind, payload, FileFrame.WRITTEN, self._path)
        raise self._socket.misbehaved("a file was written before its end")

    async def finish(self) -> Entry:
        """The entry, once every byte was taken by the guest's kernel."""
        if self._socket.has_said_something:
            await self._refused()
        await self._socket.send(file_frames.END)
        kind, payload = await self._socket.frame()
        if kind in (FileFrame.WRITTEN, FileFrame.FILE_ERROR):
            self._finished()
        self._socket.check(kind, payload, FileFrame.WRITTEN, self._path)
        try:
            self.created, entry = file_frames.decode_written(payload)
        except FrameError as error:
            raise self._socket.misbehaved(str(error)) from error
        return entry
