"""What the blocking SDK is made of, name by name as in `_awaiting`: `_sync`, generated from `_async`, uses this."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import ssl

READ_BYTES = 128 * 1024  # two of the largest frames
PIECE_BYTES = 256 * 1024  # of what is uploaded: one write of the server's, too
JOIN_TIMEOUT_S = 10.0  # of a thread whose connection was closed
_WAIT_SLICE_S = 0.2 if os.name == "nt" else 3600.0  # Windows tells of Ctrl-C only between two waits

Lock = threading.RLock
Event = threading.Event
sleep = time.sleep


def acquired(lock: threading.RLock, timeout_s: float) -> bool:
    """Whether the lock could be had within that time; 0 asks once."""
    return lock.acquire(timeout=timeout_s)


class ByteStream:
    """A TCP connection, with TLS or without. One thread may read while another writes."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._tls: ssl.SSLSocket | None = None
        self._using_tls = threading.Lock()  # an SSL object is not to be used by two threads at once

    @classmethod
    def open(cls, host: str, port: int, timeout_s: float) -> ByteStream:
        """Raises OSError (TimeoutError is one)."""
        # As bytes a name need not be prepared for other alphabets, which takes a while to load.
        name: Any = host.encode() if host.isascii() else host
        connected = socket.create_connection((name, port), timeout_s)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(connected)

    def start_tls(self, host: str, timeout_s: float) -> None:
        """From now on with TLS, to a server that proves to be `host`. Raises OSError."""
        import ssl

        self._socket.settimeout(timeout_s)
        self._socket = self._tls = ssl.create_default_context().wrap_socket(self._socket, server_hostname=host)

    def read(self, timeout_s: float) -> bytes:
        """What is there; empty at the end. Raises OSError (TimeoutError is one)."""
        # The socket's own timeout is the writer's: it is one for both directions.
        until = time.monotonic() + timeout_s
        while True:
            left_s = min(until - time.monotonic(), _WAIT_SLICE_S)
            if self.is_readable or _can_read(self._socket, max(0.0, left_s)):
                data = self._received()
                if data is not None:
                    return data
            elif time.monotonic() >= until:
                raise TimeoutError(f"nothing came within {timeout_s:g} s")

    def _received(self) -> bytes | None:
        if self._tls is None:
            return self._socket.recv(READ_BYTES)
        import ssl

        with self._using_tls, contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._tls.settimeout(0)  # a record that is not whole, or not for us, is waited for outside
            return self._tls.recv(READ_BYTES)
        return None

    def write(self, data: bytes, timeout_s: float | None) -> None:
        """All of it; None waits for ever. Raises OSError (TimeoutError is one)."""
        if self._tls is None:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(data)
            return
        with self._using_tls:
            self._tls.settimeout(timeout_s)
            self._tls.sendall(data)

    @property
    def is_readable(self) -> bool:
        """Whether something, or the end, has come that nobody has read."""
        try:
            return bool(self._tls is not None and self._tls.pending()) or _can_read(self._socket, 0)
        except OSError:  # closed
            return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits for it in another thread
        self._socket.close()


def _can_read(connected: socket.socket, timeout_s: float) -> bool:
    try:
        if hasattr(select, "poll"):  # which knows descriptors of any number
            poll = select.poll()
            poll.register(connected, select.POLLIN)
            return bool(poll.poll(timeout_s * 1000))
        return bool(select.select([connected], [], [], timeout_s)[0])
    except ValueError as error:
        raise ConnectionAbortedError("closed here, by another thread") from error


class Pulse:
    """Calls `beat` every `period_s` until it is let go. One thread does it for all: it never waits long."""

    _lock = threading.Lock()
    _beats: ClassVar[weakref.WeakSet[Pulse]] = weakref.WeakSet()
    _thread: threading.Thread | None = None

    def __init__(self, beat: Callable[[], None], period_s: float) -> None:
        self._beat = weakref.WeakMethod(beat)
        with self._lock:
            self._beats.add(self)
            if Pulse._thread is None:
                Pulse._thread = threading.Thread(
                    target=self._run, args=(period_s,), name="sandpty heartbeats", daemon=True
                )
                Pulse._thread.start()

    def leave(self) -> None:
        with self._lock:
            self._beats.discard(self)

    @classmethod
    def begin_anew(cls) -> None:
        """In a child of fork: the parent's connections are not ours to read, and its thread is not here."""
        cls._lock, cls._beats, cls._thread = threading.Lock(), weakref.WeakSet(), None

    @classmethod
    def _run(cls, period_s: float) -> None:
        while True:
            time.sleep(period_s)
            with cls._lock:
                pulses = list(cls._beats)
            for pulse in pulses:
                if (beat := pulse._beat()) is not None:
                    beat()
                del beat  # else what it belongs to would live on until the next round
            del pulses


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Pulse.begin_anew)


class Worker:
    """Runs one function in a thread that does not keep the program alive. `join` raises what it raised."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    @property
    def is_current(self) -> bool:
        """Whether the caller is this worker itself."""
        return threading.current_thread() is self._thread

    def join(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def leave(self) -> None:
        """Wait for the end of a worker that has been told to end; what it raises is nobody's any more."""
        self._thread.join(JOIN_TIMEOUT_S)


Callback = Callable[[Any], None]


def call(callback: Callback, value: Any) -> None:
    """Call it."""
    callback(value)


def pieces(data: Any) -> Iterator[bytes]:
    """Content as it is sent: of text, bytes, a file object or an iterable."""
    if isinstance(data, str | bytes | bytearray | memoryview):
        view = memoryview(as_bytes(data))
        for at in range(0, len(view), PIECE_BYTES):
            yield bytes(view[at : at + PIECE_BYTES])
    elif hasattr(data, "read"):
        while piece := as_bytes(data.read(PIECE_BYTES)):
            yield piece
    elif hasattr(data, "__iter__"):
        yield from map(as_bytes, data)
    else:
        kind = type(data).__name__
        raise TypeError(f"content is text, bytes, a binary file or an iterable of bytes, not {kind}")


def as_bytes(piece: Any) -> bytes:
    """Text as UTF-8."""
    if isinstance(piece, str):
        return piece.encode()
    if isinstance(piece, bytes | bytearray | memoryview):
        return bytes(piece)
    raise TypeError(f"a piece of content is bytes, not {type(piece).__name__}")
