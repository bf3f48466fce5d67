"""In the kernel: stdout and stderr in the order in which they were written.

ipykernel gathers each of them for itself and for 200 ms, so that `print(..., file=sys.stderr)` between two prints comes
before or after both. Here they share one queue.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from io import StringIO
from typing import Any, ClassVar

from ipykernel.iostream import OutStream

from . import limits


class _Piece:
    """Neighbouring output of one stream under one request."""

    __slots__ = ("buffer", "parent", "stream")

    def __init__(self, stream: OrderedStream, parent: Any) -> None:
        self.stream = stream
        self.parent = parent
        self.buffer = StringIO()


class OrderedStream(OutStream):  # type: ignore[misc]
    """A stream of ipykernel's, as `IPKernelApp.outstream_class`."""

    _subprocess_flush_pending: bool
    flush_interval = limits.FLUSH_INTERVAL_S
    _pieces: ClassVar[deque[_Piece]] = deque()
    _pieces_lock: ClassVar[threading.RLock] = threading.RLock()
    _pieces_pid: ClassVar[int] = 0

    def write(self, string: str) -> int | None:
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        if self.pub_thread is None:
            raise ValueError("I/O operation on closed file")
        parent = self.parent_header
        cls = OrderedStream
        with cls._pieces_lock:
            if cls._pieces_pid != os.getpid():  # after a fork: what is there is the parent's to send
                cls._pieces.clear()
                cls._pieces_pid = os.getpid()
            last = cls._pieces[-1] if cls._pieces else None
            if last is None or last.stream is not self or last.parent != parent:
                last = _Piece(self, parent)
                cls._pieces.append(last)
            last.buffer.write(string)
        if self._is_master_process():
            self._schedule_flush()
        elif not self._subprocess_flush_pending:
            self._subprocess_flush_pending = True
            self.pub_thread.schedule(self._flush)
        return len(string)

    def _flush(self) -> None:
        self._flush_pending = False
        self._subprocess_flush_pending = False
        while True:
            with OrderedStream._pieces_lock:
                if not OrderedStream._pieces or OrderedStream._pieces_pid != os.getpid():
                    return
                piece = OrderedStream._pieces.popleft()
            piece.stream._publish(piece)

    def _publish(self, piece: _Piece) -> None:
        self.session.pid = os.getpid()
        message = self.session.msg("stream", {"name": self.name, "text": piece.buffer.getvalue()}, parent=piece.parent)
        for hook in self._hooks:
            message = hook(message)
            if message is None:
                return
        self.session.send(self.pub_thread, message, ident=self.topic)
