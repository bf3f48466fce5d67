"""A real agent as a subprocess and a small blocking peer that speaks frames with it, for tests.

Frames go through sandpty.wire.frames, so every test also holds the Python codec against the C one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Self, TypeVar

from sandpty.wire import frames
from sandpty.wire.frames import (
    AgentError,
    Attach,
    Attached,
    Exit,
    From,
    FromAgent,
    Gap,
    Output,
    ProcessInfo,
    Selector,
    Start,
    Started,
    StartFlags,
)

TIMEOUT_S = 10.0
RECEIVE_BYTES = 256 * 1024  # a peer takes this much at once, before it has looked at any of it
T = TypeVar("T")
PTY = StartFlags.PTY
PIPES = StartFlags(0)


SHELL = ("/bin/bash", "--norc", "--noprofile")
NOBODY = 65534


BUILD = Path(__file__).resolve().parents[2] / "agent" / "build.py"


def load_build(path: Path = BUILD) -> ModuleType:
    """agent/build.py, which is no part of any package."""
    spec = importlib.util.spec_from_file_location("agent_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def built_agent(sanitized: bool = False) -> Path:
    """The agent of these sources, compiled when older. SANDPTY_TEST_SANITIZED=1: the sanitizer build everywhere."""
    build = load_build()
    if sanitized or os.environ.get("SANDPTY_TEST_SANITIZED"):
        return Path(build.build_sanitized(build.REPOSITORY / ".cache" / "agent"))
    return Path(build.build(arches=[build.machine_arch()])[0])


class PeerClosedError(Exception):
    """The agent closed the connection."""


class Peer:
    """One connection to an agent. Every wait ends after `timeout_s` with TimeoutError."""

    def __init__(self, path: Path, hello: bool = True, timeout_s: float = TIMEOUT_S) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A full backlog makes a connect with Python's timeout fail at once; the kernel's own timeout waits.
        timeout = struct.pack("ll", int(timeout_s), 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        self.socket.connect(str(path))
        self.socket.settimeout(timeout_s)
        self.reader = frames.FrameReader()
        self.waiting: list[FromAgent] = []
        self.timeout_s = timeout_s
        if hello:
            self.send(frames.encode_hello())
            self.expect(frames.Hello)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, timeout_s: float | None = None) -> FromAgent:
        """The next frame. Raises PeerClosedError, TimeoutError."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        while not self.waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no frame from the agent")
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(RECEIVE_BYTES)
            except ConnectionResetError:
                data = b""
            if not data:
                raise PeerClosedError
            self.waiting += [frames.decode(kind, payload) for kind, payload in self.reader.feed(data)]
        return self.waiting.pop(0)

    def expect(self, kind: type[T], timeout_s: float | None = None) -> T:
        """The next frame, which must be a `kind`."""
        value = self.receive(timeout_s)
        assert isinstance(value, kind), f"expected {kind.__name__}, got {value!r}"
        return value

    def until(self, kind: type[T], timeout_s: float | None = None) -> T:
        """The next frame that is a `kind`; others before it are thrown away."""
        while True:
            value = self.receive(timeout_s)
            if isinstance(value, kind):
                return value

    def request(self, data: bytes, kind: type[T]) -> T:
        """Send a request and return its answer, which must be a `kind`."""
        self.send(data)
        return self.expect(kind)

    def error(self, data: bytes = b"") -> AgentError:
        """Send `data` and return the ERROR it is answered with."""
        return self.request(data, AgentError)

    def closed(self) -> bool:
        """True once the agent has closed this connection and nothing more came."""
        try:
            value = self.receive()
        except PeerClosedError:
            return True
        raise AssertionError(f"unexpected {value!r}")

    def list(self) -> list[ProcessInfo]:
        self.send(frames.encode_list())
        found: list[ProcessInfo] = []
        while isinstance(value := self.receive(), ProcessInfo):
            found.append(value)
        assert isinstance(value, frames.Done), value
        return found


@dataclass
class Seen:
    """What an attachment was given; checks laws 2 and 3 while it collects."""

    start: int
    offset: int = field(init=False)
    streams: dict[int, bytearray] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    frames: int = 0
    exit: Exit | None = None

    def __post_init__(self) -> None:
        self.offset = self.start

    @property
    def data(self) -> bytes:
        return b"".join(self.streams.values())

    def add(self, value: FromAgent) -> None:
        assert self.exit is None, "EXIT is last"
        if isinstance(value, Output):
            assert value.offset == self.offset, f"output at {value.offset}, expected {self.offset}"
            self.offset += len(value.data)
            self.frames += 1
            self.streams.setdefault(value.stream, bytearray()).extend(value.data)
        elif isinstance(value, Gap):
            assert value.start == self.offset
            assert value.end > value.start
            self.gaps.append(value)
            self.offset = value.end
        elif isinstance(value, Exit):
            assert value.end == self.offset, f"exit names {value.end}, output ended at {self.offset}"
            self.exit = value


class Attachment(Peer):
    """A connection that is an attachment. `seen` holds what came so far."""

    attached: Attached
    seen: Seen
    acknowledge = False

    def begin(self) -> Attached:
        self.attached = self.expect(Attached)
        self.seen = Seen(self.attached.start)
        return self.attached

    def receive(self, timeout_s: float | None = None) -> FromAgent:
        value = super().receive(timeout_s)
        if hasattr(self, "seen"):
            self.seen.add(value)
            if self.acknowledge and isinstance(value, Output | Gap):
                with contextlib.suppress(BrokenPipeError):
                    self.send(frames.encode_ack(self.seen.offset))
        return value

    def read_until(self, text: bytes, timeout_s: float = TIMEOUT_S) -> bytes:
        """Read on until `text` was in the output; the whole output so far."""
        deadline = time.monotonic() + timeout_s
        tail = self.seen.data
        while text not in tail:
            value = self.receive(deadline - time.monotonic())
            if isinstance(value, Output):
                tail = tail[-len(text) :] + value.data
        return self.seen.data

    def read_exit(self, timeout_s: float = 30.0) -> Exit:
        """Read to the end."""
        if self.seen.exit is None:
            self.until(Exit, timeout_s)
        assert self.seen.exit is not None
        return self.seen.exit

    def type(self, data: bytes) -> None:
        self.send(frames.encode_input(data))

    @property
    def selector(self) -> Selector:
        return Selector.process(self.attached.process)


class Agent:
    """A running agent outside any namespace. Use as a context manager.

    prepared: a shell script that becomes the agent; its first argument is the listener's descriptor.
    """

    def __init__(
        self, binary: Path | None = None, user: int | None = None, root: Path | None = None, prepared: str = ""
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
        self.path = self.directory / "agent.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen(128)
        self.stderr = (self.directory / "stderr").open("w+b")
        program = binary or built_agent()
        if user is not None:  # it need not be able to read where the package lies
            program = Path(shutil.copy(program, self.directory / "agent"))
            self.directory.chmod(0o755)
            program.chmod(0o755)
        command = [str(program)]
        if root is not None:
            shutil.copy(load_build().build(arches=[load_build().machine_arch()])[0], root / "agent")  # the static one
            command = ["chroot", str(root), "/agent"]
        if prepared:
            command = ["sh", "-c", prepared, "sh"]
        number = listener.fileno()
        self.process = subprocess.Popen(
            [*command, str(number)],
            pass_fds=[number],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.stderr,
            # Leaks are counted by tests; the sanitizer's own check needs ptrace, which the agent forbids itself.
            env={"ASAN_OPTIONS": "detect_leaks=0", "PATH": os.environ["PATH"]},
            user=user,
            group=user,
            extra_groups=[] if user is not None else None,
            start_new_session=True,
        )
        listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> int:
        """Ask it to end everything, make sure it has; its exit status. May be repeated."""
        if self.stderr.closed:
            return self.process.returncode
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.report = self.said()
        self.stderr.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        return self.process.returncode

    def said(self) -> str:
        """What it wrote to stderr (a sanitizer's report). After stop(): in `report`."""
        return (self.directory / "stderr").read_text(errors="replace")

    def peer(self, **options: object) -> Peer:
        return Peer(self.path, **options)  # type: ignore[arg-type]

    def start(self, *argv: str, acknowledge: bool = False, **options: object) -> Attachment:
        """Start a process (default: as root, with a PTY) and attach to it."""
        attachment = Attachment(self.path)
        attachment.acknowledge = acknowledge
        settings: dict[str, object] = {"user": "root", "env": {}, "flags": PTY} | options
        attachment.send(frames.encode_start(Start(argv=argv, **settings)))  # type: ignore[arg-type]
        attachment.expect(Started)
        attachment.begin()
        return attachment

    def start_error(self, *argv: str, **options: object) -> AgentError:
        with self.peer() as peer:
            settings: dict[str, object] = {"user": "root", "env": {}, "flags": PTY} | options
            error = peer.error(frames.encode_start(Start(argv=argv, **settings)))  # type: ignore[arg-type]
            assert peer.closed()
            return error

    def attach(self, selector: Selector, origin: From = From.OFFSET, value: int = 0, **options: object) -> Attachment:
        acknowledge = bool(options.pop("acknowledge", False))
        attachment = Attachment(self.path)
        attachment.acknowledge = acknowledge
        attachment.send(frames.encode_attach(Attach(selector, origin=origin, value=value, **options)))  # type: ignore[arg-type]
        attachment.begin()
        return attachment

    def run(self, *argv: str, **options: object) -> tuple[Exit, bytes]:
        """Start, read to the end: exit and output."""
        with self.start(*argv, **options) as attachment:
            return attachment.read_exit(), attachment.seen.data

    def children(self) -> list[int]:
        """Pids below the agent, reapers included."""
        return descendants(self.pid)


def foreground(shell: int) -> list[str]:
    """Names of the programs in the foreground group of a shell's terminal; empty while that is the shell itself."""

    def fields(pid: str) -> list[str]:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return []

    group = fields(str(shell))[5]
    if group == str(shell):
        return []
    members = [
        entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and fields(entry.name)[2:3] == [group]
    ]
    return [(member / "comm").read_text().strip() for member in members]


def descendants(root: int) -> list[int]:
    """Live and dead pids whose parents lead to `root`."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {root}
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return sorted(found - {root})


@contextlib.contextmanager
def running_agent(**options: object) -> Iterator[Agent]:
    """An agent for the time of a test."""
    with Agent(**options) as agent:  # type: ignore[arg-type]
        yield agent
