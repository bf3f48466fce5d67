"""The local terminal and a terminal of a sandbox, joined until the program ends or the user leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from sandpty.cli.escape import HELP_TEXT, Action, EscapeKeys
from sandpty.cli.signals import handled
from sandpty.sdk import AsyncTerminal, WindowSize
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import AgentError, Exit, Gap, Output

if TYPE_CHECKING:
    from sandpty.cli.local_terminal import LocalTerminal

_ENDING = ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT")
_END_OF_TRANSMISSION = b"\x04"
_INTERRUPT = b"\x03"
NOTICES_MOST = 16
# A break shorter than this is not worth a line on the user's screen.
SILENT_BREAK_S = 1.0


@dataclass(frozen=True, slots=True)
class Detached:
    """The user left, or their terminal went away (`signal` is then its number); the program goes on."""

    signal: int = 0


Outcome: TypeAlias = Exit | Detached


class Conversation:
    """One stay in a terminal. `offset` is how far output was written to the local terminal."""

    def __init__(self, local: LocalTerminal, *, read_only: bool) -> None:
        self._local = local
        self._read_only = read_only
        self._resized = asyncio.Event()
        self._signalled: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._notices: asyncio.Queue[str] = asyncio.Queue(NOTICES_MOST)
        self._break: asyncio.TimerHandle | None = None
        self._break_said = False
        self._redraw = False  # the program is to paint its screen anew
        self.offset = 0

    def on_connection(self, connected: bool) -> None:
        """Told by the terminal when its connection breaks and when it is back."""
        if not connected:
            loop = asyncio.get_running_loop()
            self._break = loop.call_later(SILENT_BREAK_S, self._say_broken)
            return
        if self._break is not None:
            self._break.cancel()
        if self._break_said:
            self._break_said = False
            self._say("connected again")

    def _say_broken(self) -> None:
        self._break_said = True
        self._say("connection lost, connecting again; Enter ~ . leaves")

    def _say(self, text: str) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._notices.put_nowait(text)

    async def run(self, terminal: AsyncTerminal) -> Outcome:
        """Raises SandptyError when the terminal is lost for good. The local one is as it was, whatever happens."""
        self.offset = terminal.position
        others = {"SIGWINCH": self._resized.set, "SIGTSTP": self._suspend, "SIGCONT": self._on_return}
        with handled(_ENDING, self._on_signal), handled(tuple(others), lambda name: others[name]()):  # before raw mode
            try:
                with self._local:
                    return await _first(
                        self._output(terminal),
                        self._input(terminal),
                        self._sizes(terminal),
                        self._signals(),
                        self._tell(),
                    )
            finally:
                if self._break is not None:
                    self._break.cancel()

    def _suspend(self) -> None:
        """Stop here, as ssh's ~^Z does, with the terminal given back; the connection heals when we go on."""
        self._local.give_back()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _on_return(self) -> None:
        """We were stopped, and the shell that had the terminal made it its own."""
        self._local.take_again()
        self._redraw = True
        self._resized.set()

    def _on_signal(self, name: str) -> None:
        if not self._signalled.done():
            self._signalled.set_result(signal.Signals[name])

    async def _output(self, terminal: AsyncTerminal) -> Outcome:
        try:
            return await self._show(terminal)
        except SandptyError:
            raise  # some of them are OSErrors too
        except OSError:
            return Detached()  # the local terminal, or who read our output, has gone

    async def _show(self, terminal: AsyncTerminal) -> Outcome:
        async for event in terminal:
            match event:
                case Output():
                    await self._local.write(event.data)
                    self.offset = event.offset + len(event.data)
                case Gap():
                    gone = event.end - event.start
                    await self._local.notice(f"{gone} bytes of output are gone: the log keeps only the newest")
                    self.offset = event.end
                case Exit():
                    return event
                case AgentError():
                    await self._local.notice(event.message)
        raise AssertionError("a terminal's events end with Exit")

    async def _input(self, terminal: AsyncTerminal) -> Outcome:
        keys = EscapeKeys()
        while typed := await self._local.read():
            if not self._local.is_terminal:
                await self._type(terminal, typed)
                continue
            if self._read_only and _INTERRUPT in typed:
                return Detached()
            for part in keys.feed(typed):
                if part is Action.DETACH:
                    return Detached()
                if part is Action.SUSPEND:
                    self._suspend()
                elif part is Action.HELP:
                    await self._local.notice(HELP_TEXT)
                elif isinstance(part, bytes):
                    await self._type(terminal, part)
        if self._local.is_terminal:
            return Detached()
        await self._type(terminal, _END_OF_TRANSMISSION)
        return await _never()

    async def _type(self, terminal: AsyncTerminal, data: bytes) -> None:
        if not self._read_only:
            await terminal.send_input(data)

    async def _sizes(self, terminal: AsyncTerminal) -> Outcome:
        if self._local.is_terminal and not self._read_only:
            await terminal.resize(self._local.size())
            while True:
                await self._resized.wait()
                self._resized.clear()
                size = self._local.size()
                if self._redraw and size.rows > 1:  # programs look up only when the size is another
                    await terminal.resize(WindowSize(cols=size.cols, rows=size.rows - 1))
                self._redraw = False
                await terminal.resize(size)
        return await _never()

    async def _signals(self) -> Outcome:
        return Detached(await self._signalled)

    async def _tell(self) -> Outcome:
        while True:
            await self._local.notice(await self._notices.get())


async def _never() -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def _first(*parts: Coroutine[Any, Any, Outcome]) -> Outcome:
    """The outcome of the part that ends first; the others are cancelled and awaited."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        # tasks[0] is the output: the program's exit counts for more than what happened beside it.
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
