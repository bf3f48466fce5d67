"""What a client types, on a connection of its own to the agent.

An agent stops reading a connection while the program does not take what was typed on it. Acknowledgements behind it
would wait too, and the program with them, if it waits for its output to be taken before it reads: `cat` does.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from sandpty import config
from sandpty.terminal.connection import AgentConnection
from sandpty.wire import frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import FrameType, Selector

END: Final = "end of input"
_ANY_STREAM = 2  # the terminal, or the stdin pipe: whichever the process has
_Typed: TypeAlias = bytes | tuple[int, int] | str


class Typist:
    """Input and window sizes of one process, in order. `open` it; `run` until it is closed or lost."""

    def __init__(self, connection: AgentConnection, process: int, paused: Callable[[bool], None]) -> None:
        """`paused`: called with True when more than one portion waits, with False when nothing does."""
        self._connection = connection
        self._which = Selector.process(process)
        self._input_head = frames.encode_input_process(self._which, _ANY_STREAM, b"")[frames.HEADER.size :]
        self._paused = paused
        self._waiting: deque[_Typed] = deque()
        self._asked = False  # an answer is due
        self._is_paused = False
        connection.take_at_once = self._answered_at_once

    @classmethod
    async def open(cls, socket: str, process: int, paused: Callable[[bool], None]) -> Typist:
        """Raises agent_unreachable, agent_misbehaved."""
        return cls(await AgentConnection.open(socket), process, paused)

    def type(self, what: bytes | tuple[int, int] | str) -> None:
        """Bytes, a window size (cols, rows), or END. Goes at once when nothing waits; never raises."""
        if not self._asked and not self._waiting and type(what) is bytes and len(what) <= config.INPUT_CHUNK_BYTES:
            with contextlib.suppress(SandptyError):  # a key: no faster way is too fast
                self._connection.send(frames.frame(FrameType.INPUT_PROCESS, self._input_head + what))
                self._asked = True
                return
        self._waiting.append(what)
        if self._asked:
            self._is_paused = True
            self._paused(True)
        else:
            self._send()

    def _send(self) -> None:
        try:
            self._connection.send(self._next())
            self._asked = True
        except SandptyError:  # lost: `run` ends, and whoever reads output is told
            self._waiting.clear()

    def _next(self) -> bytes:
        """The next request; bytes that wait together go together."""
        match self._waiting.popleft():
            case bytes(data):
                size = len(data)
                more = [data]
                while self._waiting and isinstance(following := self._waiting[0], bytes):
                    size += len(following)
                    if size > config.INPUT_CHUNK_BYTES:
                        break
                    more.append(following)
                    self._waiting.popleft()
                return frames.encode_input_process(self._which, _ANY_STREAM, b"".join(more))
            case (cols, rows):
                return frames.encode_resize_process(self._which, cols, rows)
            case _:
                return frames.encode_close_stdin_process(self._which)

    async def run(self) -> None:
        """Take the answers, until the connection is lost: whoever reads output is told of that.

        What the program does not take, because it has ended or has no input, is nobody's error.
        """
        while True:
            try:
                await self._connection.receive()
            except SandptyError:
                return
            self._answered()

    def _answered(self) -> None:
        self._asked = False
        if self._waiting:
            self._send()
        elif self._is_paused:
            self._is_paused = False
            self._paused(False)

    def _answered_at_once(self) -> None:
        """The usual answer, without waking `run`: an echo that comes right behind it is not held up."""
        while self._connection.pop_message(FrameType.DONE) is not None:
            self._answered()

    def close(self) -> None:
        """What was typed goes on its way. Safe to repeat."""
        while self._waiting:
            self._send()
        self._connection.close()
