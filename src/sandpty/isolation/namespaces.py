"""The supervisor's side of the nursery: user and network namespaces as file descriptors."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from sandpty.isolation import nursery
from sandpty.isolation.idmap import IdRange

_REQUEST = struct.Struct("<II")
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


class Nursery:
    """Starts the helper process when first needed, and again when it died. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def make(self, ids: IdRange) -> Namespaces:
        """Raises OSError when the kernel (or what surrounds us) allows no such namespaces."""
        with self._lock:
            try:
                return self._ask(ids)
            except (BrokenPipeError, ConnectionError, TimeoutError):
                self._end()
                return self._ask(ids)

    def _ask(self, ids: IdRange) -> Namespaces:
        control = self._control or self._start()
        control.send(_REQUEST.pack(ids.base, ids.count))
        message, fds, _, _ = socket.recv_fds(control, 512, 2)
        if message == b"+" and len(fds) == 2:
            return Namespaces(*fds)
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
