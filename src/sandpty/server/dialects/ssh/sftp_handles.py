"""Open files of an SFTP client on files connections, which read and write in order and act for one request at a time.

A handle has a connection into the sandbox only while it moves content: a client may keep hundreds of files open, a
sandbox has a few dozen connections. What a handle stands for is its path: a file that is replaced meanwhile is another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from sandpty import config
from sandpty.terminal.files import Files, Reading, Writing
from sandpty.wire.errors import SandptyError

_NOWHERE = -1  # no offset: whatever is read next has to be asked for
Lease = Callable[[], AbstractAsyncContextManager[Files]]


class Handle:
    """One open file. `closing_mode`: what its mode becomes at the end, when it was made with more."""

    def __init__(self, path: str, *, readable: bool, writable: bool, append: bool) -> None:
        self.path = path
        self.readable = readable
        self.writable = writable
        self.append = append
        self.closing_mode: int | None = None
        self.reading: Reading | None = None
        self.writing: Writing | None = None
        self.held: AsyncExitStack | None = None  # the connection and what goes on there
        self.position = _NOWHERE  # of the next byte that is read or written there
        self.buffer = b""  # read and not asked for yet
        self.ahead_bytes = config.SFTP_FIRST_AHEAD_BYTES
        self.used = False  # since its connection was last looked at
        self.failed: SandptyError | None = None  # what became of something that was written, and is not said yet

    def check(self) -> None:
        """Raises, once, what became of what was written: the client was told that it was taken."""
        failed, self.failed = self.failed, None
        if failed is not None:
            raise failed


class Handles:
    """The streams of one client's handles. Its requests are served one after the other."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._live: OrderedDict[Handle, None] = OrderedDict()

    async def read(self, handle: Handle, offset: int, size: int) -> bytes:
        """`size` bytes, less only at the end of the file."""
        handle.used = True
        if handle.reading is None:
            await self.begin_reading(handle)
        if offset != handle.position:
            handle.buffer = b""
            handle.ahead_bytes = config.SFTP_FIRST_AHEAD_BYTES
            await self._ask(handle, offset)
        pieces = [handle.buffer]
        got = len(handle.buffer)
        while got < size:
            assert handle.reading is not None
            if piece := await handle.reading.piece():
                pieces.append(piece)
                got += len(piece)
            elif handle.reading.count == handle.reading.wanted:  # all of what was asked for, and there may be more
                handle.ahead_bytes = min(2 * handle.ahead_bytes, config.SFTP_AHEAD_BYTES)
                await self._ask(handle, offset + got)
            else:
                break  # the end of the file, as it is now
        whole = b"".join(pieces)
        handle.buffer = whole[size:]
        handle.position = offset + min(size, len(whole))
        if not handle.buffer and got < size:
            handle.position = _NOWHERE  # who asks again looks again: it may have grown
        return whole[:size]

    async def begin_reading(self, handle: Handle) -> None:
        """Open it. Raises what opening raises."""
        files = await self._hold(handle)
        try:
            assert handle.held is not None
            handle.reading = await handle.held.enter_async_context(files.open(handle.path, length=0))
        except BaseException:
            await self.release(handle)
            raise
        handle.buffer = b""
        handle.position = _NOWHERE

    async def _ask(self, handle: Handle, offset: int) -> None:
        """For what is there. What is left of an earlier question is read to its end, unless it is much."""
        reading = handle.reading
        assert reading is not None
        if not reading.done and reading.wanted and reading.wanted - reading.count > config.SFTP_FIRST_AHEAD_BYTES:
            ahead = handle.ahead_bytes
            await self.release(handle)
            await self.begin_reading(handle)
            handle.ahead_bytes = ahead
            reading = handle.reading
            assert reading is not None
        await reading.read(offset, handle.ahead_bytes)

    async def write(self, handle: Handle, offset: int, data: bytes) -> None:
        """Raises early or late what the guest's kernel says; what it says later yet is for `check`."""
        handle.used = True
        handle.check()
        if handle.writing is None or not (handle.append or offset == handle.position):
            files = await self._hold(handle)
            where = None if handle.append else offset
            writing = files.create(handle.path, truncate=False, append=handle.append, offset=where)
            assert handle.held is not None
            handle.writing = await handle.held.enter_async_context(writing)
            handle.position = offset
        try:
            await handle.writing.write(data)
        except BaseException:
            handle.writing = None  # it is given up
            await self.release(handle)
            raise
        handle.position += len(data)
        self._live.move_to_end(handle)

    @property
    def live(self) -> bool:
        """Whether any has a connection."""
        return bool(self._live)

    async def release_idle(self) -> None:
        """Those that were not used since this was last called."""
        for handle in list(self._live):
            if not handle.used:
                await self.release(handle)
            handle.used = False

    async def settle(self) -> None:
        """Everything that was written is in its file, or its handle knows why not."""
        for handle in [each for each in self._live if each.writing is not None]:
            await self.release(handle)

    async def release(self, handle: Handle) -> None:
        """Give its connection back; what was written is finished."""
        held, handle.held = handle.held, None
        writing, handle.writing, handle.reading = handle.writing, None, None
        handle.buffer = b""
        self._live.pop(handle, None)
        if held is None:
            return
        try:
            async with held:
                if writing is not None:
                    await writing.finish()
        except SandptyError as error:
            if writing is not None:
                handle.failed = error

    async def _hold(self, handle: Handle) -> Files:
        """A connection for what comes next; whoever has not used his for longest loses it."""
        await self.release(handle)
        while len(self._live) >= config.SFTP_STREAMS_MAX:
            await self.release(next(iter(self._live)))
        held = AsyncExitStack()
        files = await held.enter_async_context(self._lease())
        handle.held = held
        self._live[handle] = None
        return files
