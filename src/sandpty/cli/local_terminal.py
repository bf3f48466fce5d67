"""The terminal the user sits at: raw mode, reading, writing, and its state given back on every way out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from types import TracebackType

from sandpty.cli.screen_modes import ScreenModes
from sandpty.sdk.values import WindowSize

READ_BYTES = 64 * 1024
DEFAULT_SIZE = WindowSize(cols=80, rows=24)  # when there is no terminal to ask


class LocalTerminal:
    """stdin and stdout, with stdin in raw mode between entering and leaving when it is a terminal.

    The terminal is written to through an open file of our own: making the shared one non-blocking would change it
    for the shell that started us, and a blocking write after Ctrl-S would stop heartbeats and the escape keys too.
    """

    def __init__(self) -> None:
        self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.modes = ScreenModes()
        self._in = sys.stdin.fileno()
        self._out = sys.stdout.fileno()
        self._own_out: int | None = None
        self._saved: list[object] | None = None
        self._writing = asyncio.Lock()

    def __enter__(self) -> LocalTerminal:
        if self.is_terminal:
            self._saved = termios.tcgetattr(self._in)
            self.make_raw()
            with contextlib.suppress(OSError):
                path = os.ttyname(self._out)
                self._own_out = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved is None:
            return
        self.give_back()
        self._saved = None
        if self._own_out is not None:
            os.close(self._own_out)
            self._own_out = None

    def make_raw(self) -> None:
        """Between entering and leaving: every key is for the sandbox, what was typed ahead too."""
        if self._saved is not None:
            with contextlib.suppress(termios.error):  # it has gone, which reading tells
                tty.setraw(self._in, termios.TCSADRAIN)

    def give_back(self) -> None:
        """As it was before entering; `take_again` goes on."""
        if self._saved is None:
            return
        with contextlib.suppress(OSError):
            os.write(self._out if self._own_out is None else self._own_out, self.modes.leaving())
        with contextlib.suppress(termios.error):
            # TCSANOW: draining could wait for ever on a terminal that is stopped or gone.
            termios.tcsetattr(self._in, termios.TCSANOW, self._saved)  # type: ignore[arg-type]

    def take_again(self) -> None:
        """After somebody else had the terminal: raw, and with the modes that the program switched on."""
        if self._saved is None:
            return
        self.make_raw()
        with contextlib.suppress(OSError):
            os.write(self._out if self._own_out is None else self._own_out, self.modes.entering())

    def size(self) -> WindowSize:
        """As it is now; 80 x 24 without a terminal."""
        for descriptor in (self._in, self._out):
            with contextlib.suppress(OSError):
                now = os.get_terminal_size(descriptor)
                if now.columns > 0 and now.lines > 0:
                    return WindowSize(cols=min(now.columns, 10_000), rows=min(now.lines, 10_000))
        return DEFAULT_SIZE

    async def read(self) -> bytes:
        """What was typed; empty at the end of input, or when the terminal has gone."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        try:
            loop.add_reader(self._in, _settle, ready)
        except PermissionError:
            return os.read(self._in, READ_BYTES)  # a plain file: always ready
        try:
            await ready
        finally:
            loop.remove_reader(self._in)
        try:
            return os.read(self._in, READ_BYTES)
        except OSError:
            return b""

    async def write(self, output: bytes) -> None:
        """Write all of it, waiting for a terminal that is stopped or slow. Raises OSError when it has gone."""
        self.modes.feed(output)
        async with self._writing:
            if self._own_out is None:
                await self._write_blocking(output)
                return
            at = 0
            while at < len(output):
                try:
                    at += os.write(self._own_out, memoryview(output)[at:])
                except BlockingIOError:
                    await self._writable(self._own_out)

    async def _write_blocking(self, output: bytes) -> None:
        def write_all() -> None:
            at = 0
            while at < len(output):
                at += os.write(self._out, memoryview(output)[at:])

        await asyncio.to_thread(write_all)

    @staticmethod
    async def _writable(descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(descriptor, _settle, ready)
        try:
            await ready
        finally:
            loop.remove_writer(descriptor)

    async def notice(self, text: str) -> None:
        """A line of our own, dim; on stderr when stdout is not a terminal, and not over a full-screen program."""
        if not self.is_terminal:
            sys.stderr.write(f"[sandpty: {text}]\n")
        elif not self.modes.alternate_screen:
            await self.write(f"\r\n\x1b[2m[sandpty: {text}]\x1b[0m\r\n".encode())


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
