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

    __slots__ = ("buffer", "parent", "size", "stream")

    def __init__(self, stream: OrderedStream, parent: Any) -> None:
        self.stream = stream
        self.parent = parent
        self.buffer = StringIO()
        self.size = 0  # characters


class OrderedStream(OutStream):  # type: ignore[misc]
    """A stream of ipykernel's, as `IPKernelApp.outstream_class`."""

    _flush_pending: bool
    _subprocess_flush_pending: bool
    flush_interval = limits.FLUSH_INTERVAL_S
    _pieces: ClassVar[deque[_Piece]] = deque()
    _pieces_lock: ClassVar[threading.Condition] = threading.Condition(threading.RLock())
    _pieces_size: ClassVar[int] = 0
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
                cls._pieces_size = 0
                cls._pieces_pid = os.getpid()
            last = cls._pieces[-1] if cls._pieces else None
            full = last is not None and last.size >= limits.PIECE_CHARACTERS
            if last is None or full or last.stream is not self or last.parent != parent:
                last = _Piece(self, parent)
                cls._pieces.append(last)
            last.buffer.write(string)
            last.size += len(string)
            cls._pieces_size += len(string)
        if self._is_master_process():
            if cls._overfull():
                self._wait_until_sent()
            else:
                self._schedule_flush()
        elif not self._subprocess_flush_pending:
            self._subprocess_flush_pending = True
            self.pub_thread.schedule(self._flush)
        return len(string)

    def _wait_until_sent(self) -> None:
        """Whoever writes faster than can be sent goes no further meanwhile."""
        if threading.current_thread() is self.pub_thread.thread:
            return
        cls = OrderedStream
        with cls._pieces_lock:
            while cls._overfull():
                if not self._flush_pending:
                    self._flush_pending = True
                    self.pub_thread.schedule(self._flush)
                cls._pieces_lock.wait(limits.UNSENT_WAIT_S)

    @classmethod
    def _overfull(cls) -> bool:
        return cls._pieces_size > limits.UNSENT_CHARACTERS_MAX or len(cls._pieces) > limits.UNSENT_PIECES_MAX

    def _flush(self) -> None:
        """In the thread that sends. Not more at once than fits its own queue: it would wait for itself."""
        self._flush_pending = False
        self._subprocess_flush_pending = False
        cls = OrderedStream
        with cls._pieces_lock:
            if cls._pieces_pid != os.getpid():
                return
            pieces = [cls._pieces.popleft() for _ in range(min(len(cls._pieces), limits.UNSENT_PIECES_MAX))]
            more = bool(cls._pieces)
        for piece in pieces:
            piece.stream._publish(piece)
        if pieces:
            size = sum(piece.size for piece in pieces)
            self.pub_thread.schedule(lambda: cls._sent(size))  # its turn comes after what is sent
        if more:
            self.pub_thread.schedule(self._flush)

    @classmethod
    def _sent(cls, size: int) -> None:
        with cls._pieces_lock:
            cls._pieces_size -= size
            cls._pieces_lock.notify_all()

    def _publish(self, piece: _Piece) -> None:
        self.session.pid = os.getpid()
        message = self.session.msg("stream", {"name": self.name, "text": piece.buffer.getvalue()}, parent=piece.parent)
        for hook in self._hooks:
            message = hook(message)
            if message is None:
                return
        self.session.send(self.pub_thread, message, ident=self.topic)
