"""A process of the test's, stopped at each of its system calls: whatever may happen between two of them then happens.

A race that is lost once in a thousand runs is a test that finds nothing; here the other side always comes in time.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_PTRACE_SYSCALL, _PTRACE_DETACH, _PTRACE_SEIZE, _PTRACE_INTERRUPT = 24, 17, 0x4206, 0x4207
_PTRACE_GET_SYSCALL_INFO = 0x420E
_TRACESYSGOOD = 1
_ENTRY = 1
_STOP_AT_CALL = signal.SIGTRAP | 0x80
_WALL = 0x40000000
_NUMBERS = {"x86_64": {"openat": 257, "kill": 62}, "aarch64": {"openat": 56, "kill": 129}}[platform.machine()]
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True)
class Call:
    """A system call about to be made."""

    pid: int
    number: int
    arguments: tuple[int, ...]

    def opens(self, name: str) -> bool:
        """Whether it is openat with exactly that path."""
        if self.number != _NUMBERS["openat"]:
            return False
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(self.arguments[1])
            return memory.read(len(name) + 1) == name.encode() + b"\0"

    @property
    def kills(self) -> bool:
        return self.number == _NUMBERS["kill"]


def _ptrace(request: int, pid: int, address: int = 0, data: object = None) -> int:
    result: int = _libc.ptrace(request, pid, address, data)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _calls(pid: int) -> Iterator[Call]:
    """Until it ends. It runs on when the next one is asked for."""
    info = ctypes.create_string_buffer(128)
    forwarded = 0
    while True:
        try:
            _, status = os.waitpid(pid, _WALL)
        except ChildProcessError:
            return
        if not os.WIFSTOPPED(status):
            return
        number, event = os.WSTOPSIG(status), status >> 16
        if number == _STOP_AT_CALL:
            _ptrace(_PTRACE_GET_SYSCALL_INFO, pid, len(info), ctypes.addressof(info))
            if info.raw[0] == _ENTRY:
                call, *arguments = struct.unpack_from("<7Q", info.raw, 24)
                yield Call(pid, call, tuple(arguments))
        forwarded = 0 if number == _STOP_AT_CALL or event else number
        _ptrace(_PTRACE_SYSCALL, pid, 0, forwarded)


@contextmanager
def at_calls(pid: int, deed: Callable[[Call], bool]) -> Iterator[None]:
    """`deed` is called with each system call that the process is about to make, until it says that this was all."""
    seized, failures = threading.Event(), list[BaseException]()

    def trace() -> None:
        try:
            _ptrace(_PTRACE_SEIZE, pid, 0, _TRACESYSGOOD)
            _ptrace(_PTRACE_INTERRUPT, pid)
            seized.set()
            for call in _calls(pid):
                if deed(call):
                    _ptrace(_PTRACE_DETACH, pid)
                    return
        except BaseException as error:  # told by whoever waits for the thread
            failures.append(error)
        finally:
            seized.set()

    thread = threading.Thread(target=trace, daemon=True)
    thread.start()
    seized.wait()
    yield
    thread.join(30)
    assert not thread.is_alive(), "the call never came"
    if failures:
        raise failures[0]
