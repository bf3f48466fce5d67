# Generated from sdk/_async by scripts/generate-sync: change it there.
"""WebSockets of the native dialect, and what their ends mean."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

import h11

from sandpty.sdk import errors
from sandpty.sdk._blocking import ByteStream, Lock, Pulse, acquired
from sandpty.sdk._sync.http import Answer, Http, Upgraded
from sandpty.sdk.settings import proxy_of
from sandpty.sdk.websocket import (
    BINARY,
    CLOSE,
    GOOD_END,
    PING,
    PONG,
    TEXT,
    BrokenWebSocketError,
    ClosedWebSocketError,
    Message,
    MessageReader,
    accepted,
    closing,
    encode,
    encode_close,
    new_key,
)
from sandpty.wire.errors import SandptyError

OPEN_TIMEOUT_S = 10.0
HEARTBEAT_S = 15.0  # a connection that died silently is noticed within some twice this
PULSE_S = 5.0  # how often somebody looks; the server's heartbeats are to be answered within 12 s
CLOSE_TIMEOUT_S = 2.0
WRITE_TIMEOUT_S = 30.0  # a server takes what is said, always; a service behind a port need not
QUEUED_MESSAGES = 16  # received while nobody asks for them; above it the connection is not read


class WebSocket:
    """A connection on which one task receives while others send. `close` it.

    Who receives reads the connection, without anybody between. While nobody receives, a heartbeat looks after it.
    A patient one waits for ever for signs of life.
    """

    def __init__(self, upgraded: Upgraded, *, patient: bool) -> None:
        self._stream: ByteStream = upgraded.stream
        self._patient = patient
        self._incoming = MessageReader()
        self._first = upgraded.rest
        self._end: tuple[int, str] | None = None  # code and text of a goodbye, or 0 and why there was none
        self._said_end = False
        self._reading = Lock()
        self._writing = Lock()
        self._heard_at = time.monotonic()
        self._asked_at: float | None = None  # a ping that nothing came after
        self._pulse = Pulse(self._look_after, PULSE_S)

    def receive(self, timeout_s: float | None = None) -> Message:
        """The next message. Raises TimeoutError, ClosedWebSocketError."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        messages = self._incoming.messages
        with self._reading:
            while not messages:
                if self._end is not None:
                    raise ClosedWebSocketError(*self._end)
                self._read(until)
            return messages.popleft()

    def send(self, data: bytes | memoryview | str) -> None:
        """Returns when there is room for more. Raises ClosedWebSocketError."""
        message = encode(TEXT, data.encode()) if isinstance(data, str) else encode(BINARY, data)
        if self._end is None:
            self._write(message)
        if self._end is not None:
            raise ClosedWebSocketError(*self._end)

    def close(self) -> None:
        """Say goodbye, and wait a moment for the answer: all that was sent before has arrived then. Safe to repeat."""
        self._pulse.leave()
        until = time.monotonic() + CLOSE_TIMEOUT_S
        try:
            self._say_end(GOOD_END)
            if acquired(self._reading, CLOSE_TIMEOUT_S):
                try:
                    with contextlib.suppress(TimeoutError):
                        while self._end is None:
                            self._incoming.messages.clear()
                            self._read(until)
                finally:
                    self._reading.release()
        finally:
            self._lose("closed here")

    # --- the connection ----------------------------------------------------------------------------------------------

    def _lose(self, why: str) -> None:
        if self._end is None:
            self._end = (0, why)
        self._pulse.leave()
        self._stream.close()

    def _write(self, data: bytes) -> None:
        """All of it, or the connection is lost: half a frame can never be mended."""
        with self._writing:
            try:
                self._stream.write(data, None if self._patient else WRITE_TIMEOUT_S)
            except OSError as error:
                self._lose(str(error) or type(error).__name__)
            except KeyboardInterrupt:
                self._lose("interrupted")
                raise

    def _say_end(self, code: int) -> None:
        if not self._said_end:
            self._said_end = True
            self._write(encode_close(code))

    def _read(self, until: float | None) -> None:
        """Take in what comes next, by whoever holds `_reading`. Raises TimeoutError at that time."""
        wait_s = PULSE_S if until is None else max(0.0, min(PULSE_S, until - time.monotonic()))
        try:
            if self._first:
                data, self._first = self._first, b""
            else:
                data = self._stream.read(wait_s)
            if not data:
                self._lose("the connection ended without a goodbye")
                return
            self._heard_at, self._asked_at = time.monotonic(), None
            self._incoming.feed(data)
            while self._incoming.controls:
                self._obey(*self._incoming.controls.popleft())
        except TimeoutError:
            if until is not None and time.monotonic() >= until:
                raise
            self._ask_for_life()
        except (OSError, BrokenWebSocketError) as error:
            self._lose(str(error) or type(error).__name__)
        except KeyboardInterrupt:  # between taking bytes and keeping them
            self._lose("interrupted")
            raise

    def _obey(self, kind: int, payload: bytes) -> None:
        if kind == PING:
            self._write(encode(PONG, payload))
        elif kind == CLOSE:
            self._end = self._end or closing(payload)
            self._say_end(GOOD_END)

    def _ask_for_life(self) -> None:
        """Nothing came lately."""
        now = time.monotonic()
        if self._asked_at is None:
            if now - self._heard_at >= HEARTBEAT_S:
                self._asked_at = now
                self._write(encode(PING, b""))
        elif not self._patient and now - self._asked_at >= HEARTBEAT_S:
            self._lose(f"no sign of life for {now - self._heard_at:.0f} s")

    def _look_after(self) -> None:
        """In place of somebody who receives: answer the server, and notice when it has gone."""
        if not acquired(self._reading, 0):
            return
        try:
            while self._end is None and len(self._incoming.messages) < QUEUED_MESSAGES:
                self._read(time.monotonic())
        except TimeoutError:
            self._ask_for_life()
        finally:
            self._reading.release()


def connect_socket(url: str, path: str, headers: Mapping[str, str], *, patient: bool = False) -> WebSocket:
    """A WebSocket of the server at `url`. Raises what the server refuses it with, server_unreachable."""
    key = new_key()
    wishes = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key.decode(),
    }
    try:
        opened = Http(url, headers).upgrade(path, wishes, proxy=proxy_of(url), timeout_s=OPEN_TIMEOUT_S)
    except (OSError, h11.ProtocolError) as error:
        raise errors.unreachable(url, error) from error
    if isinstance(opened, Answer):
        raise errors.from_response(opened.status, opened.body)
    if opened.headers.get(b"sec-websocket-accept") != accepted(key):
        opened.stream.close()
        raise errors.unreachable(url, BrokenWebSocketError("what answers there speaks no WebSocket"))
    return WebSocket(opened, patient=patient)


def closed_socket(url: str, error: ClosedWebSocketError) -> SandptyError:
    """Why a WebSocket of that server was closed: the server's reason, or server_unreachable."""
    return errors.from_close(error.code, error.text) if error.code >= 4000 else errors.unreachable(url, error)
