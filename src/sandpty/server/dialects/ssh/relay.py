"""Between one channel and one process: output out, input in, in order, with backpressure both ways.

A terminal's client takes megabytes out of TCP before it shows them, so what TCP has delivered says nothing of what is
still to be seen, and stale output after Ctrl-C would be long. So a terminal's output is acknowledged to the agent when
its client's host has it *and* the client has said that it took it, but for SSH_TERMINAL_AHEAD_BYTES.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Coroutine
from typing import Any

from sandpty import config
from sandpty.server.delivery import Delivery
from sandpty.server.dialects.ssh.transport import Channel
from sandpty.terminal.attachment import Attachment
from sandpty.wire import frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import NO_OFFSET, Exit, FrameType, Gap, ProcessFlags, Stream

_HEADER_BYTES = 10  # of OUTPUT as a message: u8 type, u8 stream, u64 offset
_INPUT_HEAD = struct.pack("<BQ", FrameType.INPUT, NO_OFFSET)
_NOTED_BYTES = 4096  # of output: of less it is not minded what TCP has delivered, until somebody looks
_STDERR = 1  # SSH_EXTENDED_DATA_STDERR
_STDERR_STREAM = int(Stream.STDERR)
_LEAVE = b"\x03"  # typed by who may only look


class Relay:
    """Make it, give it what the channel says, and `run` it.

    `terminal`: the client has one. What a process without one says is then shown as a terminal would: LF as CR LF.
    """

    def __init__(self, channel: Channel, attached: Attachment, *, may_write: bool, terminal: bool) -> None:
        self._channel = channel
        self._connection = channel.connection
        self._attached = attached
        self._pty = bool(attached.info.flags & ProcessFlags.PTY)
        self._may_write = may_write
        self._waiting: deque[Coroutine[Any, Any, None]] = deque()  # for the program to take what was typed before
        self._resizing: Coroutine[Any, Any, None] | None = None  # the last of them, if it is one
        self._typing: asyncio.Task[None] | None = None  # while something waits
        self._cooked = terminal and not self._pty
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._left = asyncio.Event()
        self._acks = _Acks(channel, attached) if self._pty else None
        channel.typed = self.type

    # --- what the channel says ---

    def pause_writing(self) -> None:
        self._flowing.clear()

    def resume_writing(self) -> None:
        self._flowing.set()
        self._wrote()  # also what was written just before it was full

    def type(self, data: bytes) -> None:
        if not self._may_write:
            if _LEAVE in data:
                self._left.set()
        elif self._typing is not None or not self._attached.relay_input_at_once(_INPUT_HEAD + data):
            self._type_in_turn(self._attached.send_input(data))

    def end_input(self) -> None:
        if self._may_write and not self._pty:
            self._type_in_turn(self._attached.close_stdin())

    def resize(self, cols: int, rows: int) -> None:
        """A size of nothing means that the client does not know it."""
        if self._may_write and self._pty and cols and rows:
            most = frames.MAX_WINDOW_CELLS
            if self._waiting and self._waiting[-1] is self._resizing:
                self._waiting.pop().close()  # nobody has seen it
            self._resizing = self._attached.resize(min(cols, most), min(rows, most))
            self._type_in_turn(self._resizing)

    def _type_in_turn(self, sending: Coroutine[Any, Any, None]) -> None:
        """After all that came before. The client sends no more meanwhile than it is on the way to do."""
        self._waiting.append(sending)
        self._channel.pause_reading()
        if self._typing is None:
            self._typing = asyncio.create_task(self._type_waiting(), name="ssh-input")

    async def _type_waiting(self) -> None:
        try:
            while self._waiting:
                with contextlib.suppress(SandptyError):  # lost; whoever receives next is told
                    await self._waiting.popleft()
        finally:
            self._typing = None
            while self._waiting:
                self._waiting.popleft().close()
        if not self._channel.is_closing():
            self._channel.resume_reading()

    @property
    def seen(self) -> int | None:
        """Up to which offset the client has a terminal's output; None of what is no terminal."""
        return None if self._acks is None else self._acks.offset

    # --- output ---

    async def run(self) -> Exit | None:
        """Until the process has ended, and everything was written; None: the viewer left. Raises SandptyError."""
        output = asyncio.create_task(self._output(), name="ssh-output")
        left = asyncio.create_task(self._left.wait(), name="ssh-left")
        try:
            await asyncio.wait((output, left), return_when=asyncio.FIRST_COMPLETED)
            return await output if output.done() else None
        finally:
            tasks = (output, left) if self._typing is None else (output, left, self._typing)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._acks is not None:
                self._acks.close()

    async def _output(self) -> Exit:
        if self._pty:  # unsent output is output that cannot be taken back
            self._channel.set_write_buffer_limits(high=0)
        self._attached.take_at_once(self._output_at_once)
        while True:
            message = await self._attached.receive_message()
            if message[0] == FrameType.OUTPUT:
                self._write(message)
            else:
                match frames.decode(message[0], bytes(message[1:])):
                    case Exit() as ended:
                        return ended
                    case Gap() as gap if self._pty:
                        self._channel.write(_gap_notice(gap))
            await self._flowing.wait()
            await self._connection.flowing.wait()
            self._wrote()

    def _output_at_once(self, message: bytes | memoryview) -> bool:
        """What has just come in while `_output` waits for it; whether the client takes more without waiting."""
        if self._acks is not None and self._channel.write_at_once(bytes(message[_HEADER_BYTES:])):
            self._acks.wrote()
            return self._connection.writable
        if self._channel.is_closing():
            return False
        self._write(message)
        if not self._flowing.is_set():
            return False
        self._wrote()
        return self._connection.flowing.is_set()

    def _write(self, message: bytes | memoryview) -> None:
        data = bytes(message[_HEADER_BYTES:])
        if self._cooked:
            data = data.replace(b"\n", b"\r\n")
        to_stderr = message[1] == _STDERR_STREAM and not self._cooked
        self._channel.write(data, _STDERR if to_stderr else None)

    def _wrote(self) -> None:
        if self._acks is not None:
            self._acks.wrote()
        else:
            self._attached.acknowledge()


def _gap_notice(gap: Gap) -> bytes:
    return f"\r\n[sandpty: {gap.end - gap.start} bytes of output are no longer kept]\r\n".encode()


class _Acks:
    """Acknowledges a terminal's output to the agent: it bounds what is on the way, and what the next attach repeats."""

    def __init__(self, channel: Channel, attached: Attachment) -> None:
        self._channel = channel
        self._connection = channel.connection
        self._attached = attached
        assert self._connection.client is not None
        self._delivery = Delivery(self._connection.client, attached.position)
        self._counted_bytes = self._connection.sent_bytes
        self._acknowledged = attached.position
        self._sent = attached.position  # all below it has been sent
        self._noted = attached.position  # the same, as `_delivery` knows it
        self._looked = attached.position  # the same, when it was last looked
        self._ahead_bytes = config.SSH_TERMINAL_AHEAD_BYTES
        self._poll_s = config.DELIVERY_POLL_MIN_S
        self._timer: asyncio.TimerHandle | None = None
        channel.taken = self._taken

    def _taken(self, size: int) -> None:
        """Clients say what they took in portions of their own size, some of a megabyte."""
        self._ahead_bytes = max(config.SSH_TERMINAL_AHEAD_BYTES, size + size // 4)
        self._look()

    def wrote(self) -> None:
        """Everything received has been sent."""
        self._sent = self._attached.position
        if self._sent - self._looked >= config.SSH_ACK_EVERY_BYTES:
            self._look()
            return
        if self._sent - self._noted >= _NOTED_BYTES:
            self._count()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(config.ACK_DELAY_S, self._look)

    def _count(self) -> None:
        sent_bytes = self._connection.sent_bytes
        self._delivery.wrote(sent_bytes - self._counted_bytes, self._sent if self._sent != self._noted else None)
        self._counted_bytes, self._noted = sent_bytes, self._sent

    def _look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._count()
        self._looked = self._sent
        self._delivery.advance()
        moved = self._acknowledge()
        if self._acknowledged < self._attached.position:
            if not moved and self._poll_s >= config.DELIVERY_POLL_MAX_S:
                # It shows nothing, or says so later than others: let it be, as far as it lets itself be sent.
                self._ahead_bytes = min(2 * self._ahead_bytes, self._channel.client_window_bytes)
            self._poll_s = config.DELIVERY_POLL_MIN_S if moved else min(self._poll_s * 2, config.DELIVERY_POLL_MAX_S)
            self._timer = asyncio.get_running_loop().call_later(self._poll_s, self._look)

    def _acknowledge(self) -> bool:
        ahead = max(0, self._channel.untaken_bytes - self._ahead_bytes)
        offset = min(self._delivery.offset, self._attached.position - ahead)
        if offset <= self._acknowledged:
            return False
        self._acknowledged = offset
        with contextlib.suppress(SandptyError):  # lost; whoever receives next is told
            self._attached.ack(offset)
        return True

    @property
    def offset(self) -> int:
        """Up to where the client has it all. What it got in the last moment may be missing: better said twice."""
        return self._acknowledged

    def close(self) -> None:
        self._channel.taken = None
        if self._timer is not None:
            self._timer.cancel()
