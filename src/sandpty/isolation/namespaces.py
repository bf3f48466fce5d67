"""The supervisor's side of the nursery: namespaces as file descriptors, and launchers of the runtime."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandpty import descriptors
from sandpty.isolation import nursery
from sandpty.isolation.idmap import IdRange

_REQUEST = struct.Struct("<cIII")
_ANSWER_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Namespaces:
    """Two descriptors; `close` them once the sandbox runs (or will not)."""

    user: int
    network: int

    def close(self) -> None:
        for fd in (self.user, self.network):
            if fd >= 0:
                os.close(fd)
        self.user = self.network = -1


class Launcher:
    """A process that waits, in its control groups already, to become the runtime."""

    def __init__(self, pid: int, pidfd: int, order: socket.socket) -> None:
        self.pid = pid
        self.pidfd = pidfd  # readable once it, or the program that it became, has ended
        self._order = order

    @property
    def alive(self) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def launch(self, argv: Sequence[str], fd3: int) -> None:
        """Become `argv` with `fd3` as its descriptor 3. Raises OSError when the launcher is gone."""
        message = b"\0".join(os.fsencode(word) for word in argv)
        socket.send_fds(self._order, [message], [fd3])

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """One that was not used ends."""
        self._order.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Nursery:
    """Starts the helper process when first needed, and again when it died. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def make(self, ids: IdRange) -> Namespaces:
        """Raises OSError when the kernel (or what surrounds us) allows no such namespaces."""
        _, fds = self._asked(_REQUEST.pack(b"n", 0, ids.base, ids.count), 2)
        return Namespaces(*fds)

    def shift(self, base: int, ids: IdRange) -> int:
        """A user namespace for mounts: what `base` and following own on disk is of `ids`. Raises OSError."""
        _, fds = self._asked(_REQUEST.pack(b"u", base, ids.base, ids.count), 1)
        return fds[0]

    def launcher(self) -> Launcher:
        """Raises OSError."""
        message, fds = self._asked(_REQUEST.pack(b"l", 0, 0, 0), 1)
        order = socket.socket(fileno=fds[0])
        try:
            pid = int(message)
            return Launcher(pid, os.pidfd_open(pid), order)
        except BaseException:
            order.close()
            raise

    def _asked(self, request: bytes, count: int) -> tuple[bytes, list[int]]:
        with self._lock:
            try:
                return self._ask(request, count)
            except (BrokenPipeError, ConnectionError, TimeoutError):
                self._end()
                return self._ask(request, count)

    def _ask(self, request: bytes, count: int) -> tuple[bytes, list[int]]:
        control = self._control or self._start()
        control.send(request)
        # Not for the programs that we start: a launcher ends with the last holder of its socket.
        message, fds = descriptors.receive(control, 512, 2)
        if message[:1] == b"+" and len(fds) == count:
            return message[1:], fds
        for fd in fds:
            os.close(fd)
        if not message:
            raise ConnectionResetError("the nursery died")
        raise OSError(message[1:].decode("utf-8", "replace"))

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-I", "-S", str(Path(nursery.__file__))]
            self._process = subprocess.Popen(argv, stdin=theirs.fileno(), start_new_session=True)
        ours.settimeout(_ANSWER_TIMEOUT_S)
        self._control = ours
        return ours

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        with self._lock:
            self._end()
