"""Hostile and careless peers: garbage, lengths, half-open connections, crowds. The agent answers, closes and lives."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandpty.wire import frames
from sandpty.wire.file_frames import FileFrame
from sandpty.wire.frames import AgentError, AgentErrorCode, Attach, From, Selector, Start, Target
from tests.component.agent_peer import PIPES, PTY, Agent, Peer, PeerClosedError, built_agent, running_agent
from tests.waiting import until_sync

CONNECTIONS = 1024


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """One agent."""
    with Agent() as running:
        yield running


def memory_kib(pid: int) -> int:
    """Resident memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


def descriptors(pid: int) -> int:
    """Open descriptors."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def lives(agent: Agent) -> None:
    """It still answers."""
    with agent.peer() as peer:
        peer.list()


def no_children_after_kill(agent: Agent) -> bool:
    """Kill whatever runs now; True once nothing was left."""
    with agent.peer() as peer:
        for info in peer.list():
            peer.send(frames.encode_signal_process(Selector.process(info.process), 9, Target.TREE))
            peer.receive()
    return agent.children() == []


GARBAGE = {
    "zero length": b"\0\0\0\0\0",
    "huge length": b"\xff\xff\xff\xff\x01",
    "just too long": struct.pack("<IB", frames.MAX_FRAME_BYTES + 1, 0x10),
    "unknown type": frames.frame(0x77, b"x"),
    "an answer": frames.frame(frames.FrameType.OUTPUT, bytes(9) + b"x"),
    "short hello again": frames.frame(frames.FrameType.HELLO, b"\1"),
    "short start": frames.frame(frames.FrameType.START, b"\1\2\3"),
    "start with a lying string": frames.frame(frames.FrameType.START, bytes(21) + b"\xff\xff\xff\xff"),
    "start with a lying list": frames.frame(frames.FrameType.START, bytes(21) + bytes(12) + b"\xff\xff\xff\xff"),
    "start with more": frames.frame(frames.FrameType.START, bytes(21) + bytes(12) + bytes(8) + b"x"),
    "start with lying modes": frames.frame(frames.FrameType.START, b"\x09" + bytes(20) + b"\xff\xff\xff\xff"),
    "short attach": frames.frame(frames.FrameType.ATTACH, b"\0"),
    "attach with a lying tag": frames.frame(frames.FrameType.ATTACH, bytes(9) + b"\xff\xff\xff\x7f" + bytes(18)),
    "short stat": frames.frame(frames.FrameType.STAT),
    "long list": frames.frame(frames.FrameType.LIST, b"x"),
    "oversize stat": frames.frame(frames.FrameType.STAT, bytes(100_000)),
    "short input": frames.frame(frames.FrameType.INPUT_PROCESS, bytes(10)),
    "input with a lying tag": frames.frame(frames.FrameType.INPUT_PROCESS, bytes(9) + b"\xff\xff\0\0" + bytes(100_000)),
    "input without a process": frames.encode_input(b"x"),
    "resize without a process": frames.encode_resize(1, 1),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=list(GARBAGE))
def test_garbage_is_answered_with_an_error_and_the_connection_closes(agent: Agent, data: bytes) -> None:
    """`bad_frame`, before and after HELLO; a length is refused before its bytes are awaited."""
    for hello in (True, False):
        with agent.peer(hello=hello) as peer:
            peer.send(data)
            assert peer.receive().code == AgentErrorCode.BAD_FRAME  # type: ignore[union-attr]
            assert peer.closed()
    lives(agent)


@pytest.mark.parametrize("data", [frames.encode_list(), frames.encode_hello(), frames.frame(0x21, b"\1"), b"\0" * 5])
def test_garbage_on_an_attachment_closes_it_and_the_process_lives(agent: Agent, data: bytes) -> None:
    """Also a request of another kind of connection."""
    with agent.start("cat") as attachment:
        attachment.send(data)
        error = attachment.until(AgentError)
        assert error.code == AgentErrorCode.BAD_FRAME
        with agent.attach(attachment.selector) as again:
            again.type(b"fine\n")
            again.read_until(b"fine\r\nfine")


def test_a_half_frame_holds_up_nobody_and_a_claimed_length_costs_nothing() -> None:
    """200 peers claim 1 MiB each and send 10 bytes."""
    with running_agent() as agent:
        lives(agent)
        before = memory_kib(agent.pid)
        peers = [agent.peer() for _ in range(200)]
        for peer in peers:
            peer.send(struct.pack("<IB", 1024 * 1024, frames.FrameType.START) + b"x" * 10)
        lives(agent)
        assert memory_kib(agent.pid) - before < 200 * 12
        for peer in peers:
            peer.close()
        until_sync(lambda: descriptors(agent.pid) < 20)


def test_half_received_frames_are_bounded_in_sum() -> None:
    """`limit buffered_bytes` at 16 MiB."""
    with running_agent() as agent:
        peers = [agent.peer() for _ in range(60)]
        refused = 0
        for peer in peers:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                peer.send(struct.pack("<IB", 1024 * 1024, frames.FrameType.START) + b"x" * 900_000)
        lives(agent)
        for peer in peers:
            with contextlib.suppress(TimeoutError, PeerClosedError):
                error = peer.receive(0.01)
                assert isinstance(error, AgentError)
                assert (error.code, error.message) == (AgentErrorCode.LIMIT, "buffered_bytes")
                refused += 1
            peer.close()
        assert refused >= 20
        until_sync(lambda: memory_kib(agent.pid) < 2000)


def test_connections_over_the_limit_are_told_so_and_others_work_on() -> None:
    """`limit connections` at 1,024; when they go, others get in."""
    with running_agent() as agent, agent.start("cat") as attachment:
        crowd = []
        for _ in range(CONNECTIONS - 1):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(agent.path))
            crowd.append(connection)
        with agent.peer(hello=False) as late:
            error = late.receive()
            assert isinstance(error, AgentError)
            assert (error.code, error.message) == (AgentErrorCode.LIMIT, "connections")
        attachment.type(b"still\n")
        attachment.read_until(b"still\r\nstill")
        for connection in crowd:
            connection.close()
        until_sync(lambda: descriptors(agent.pid) < 20)
        lives(agent)


def test_a_peer_that_never_says_hello_is_let_go(agent: Agent) -> None:
    """After 10 s; here only that it costs one descriptor and next to no memory meanwhile."""
    before = memory_kib(agent.pid)
    silent = []
    for _ in range(100):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(agent.path))
        silent.append(connection)
    lives(agent)
    assert memory_kib(agent.pid) - before <= 200
    for connection in silent:
        connection.close()


def test_a_peer_that_asks_and_never_reads_answers_does_not_bloat_the_agent(agent: Agent) -> None:
    """Requests are not read while answers wait."""
    agent.run("true", env={"BIG": "x" * 100_000}, flags=PIPES)
    before = memory_kib(agent.pid)
    with agent.peer() as peer:
        peer.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                peer.socket.send(frames.encode_list() * 100)
        lives(agent)
        assert memory_kib(agent.pid) - before < 1000
    with agent.start("cat") as attachment:
        attachment.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                attachment.socket.send(frames.encode_ping(1) * 1000)
        lives(agent)
        assert memory_kib(agent.pid) - before < 1000


def test_a_peer_that_vanishes_at_any_moment_harms_nobody(agent: Agent) -> None:
    """Cut a whole conversation after every number of bytes."""
    data = (
        frames.encode_hello()
        + frames.encode_start(Start(("sh", "-c", "read x; echo $x"), {}, "root", flags=PTY, log_bytes=4096))
        + frames.encode_input(b"hello\n")
        + frames.encode_resize(90, 30)
        + frames.encode_ping(1)
    )
    for end in range(0, len(data), 3):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(agent.path))
        connection.sendall(data[:end])
        connection.close()
    lives(agent)
    until_sync(lambda: no_children_after_kill(agent))


def a_fifo(path: Path) -> None:
    """Its open would block."""
    os.mkfifo(path)


def a_device(path: Path) -> None:
    """It never ends."""
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero


def a_huge_file(path: Path) -> None:
    """Sparse, 1 TiB."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


def a_directory(path: Path) -> None:
    """Not a file."""
    path.mkdir()


def nothing(path: Path) -> None:
    """The file is missing."""
    assert not path.exists()


def a_loop(path: Path) -> None:
    """A symbolic link to itself."""
    path.symlink_to(path.name)


def binary_rubbish(path: Path) -> None:
    """Lines no account file has."""
    path.write_bytes(
        random.Random(1).randbytes(100_000) + b"\n::::::\n:\nroot:x\nroot:x:zero:0::/:\n" + b"root:" * 1000
    )


@pytest.mark.parametrize("make", [a_fifo, a_device, a_huge_file, a_directory, nothing, a_loop, binary_rubbish])
@pytest.mark.parametrize("name", ["passwd", "group"])
def test_a_guest_cannot_hang_or_crash_the_agent_with_its_account_files(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    """Only regular files of sane size are read, and no open blocks. A bad group file costs only the groups."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("other:x:1:1::/:\nroot:x:0:0:root:/:/bin/sh\n")
    (tmp_path / "etc" / name).unlink(missing_ok=True)
    make(tmp_path / "etc" / name)
    with running_agent(root=tmp_path) as agent:
        if name == "passwd":
            assert agent.start_error("/agent", flags=PIPES | 2).code == AgentErrorCode.NO_SUCH_USER
        else:
            assert agent.run("/agent", flags=PIPES | 2)[0].value == 2  # the agent itself is the only program there
        lives(agent)


def test_processes_over_the_limit_are_refused() -> None:
    """`limit processes` at 512 running."""
    with running_agent() as agent:
        flags = PIPES | frames.StartFlags.REPLY_ONLY | frames.StartFlags.STDIN
        start = frames.encode_hello() + frames.encode_start(Start(("cat",), {}, "root", flags=flags, log_bytes=4096))
        for _ in range(512):
            with agent.peer(hello=False) as peer:
                peer.send(start)
                peer.until(frames.Started)
        error = agent.start_error("cat")
        assert (error.code, error.message) == (AgentErrorCode.LIMIT, "processes")
        assert agent.stop() == 0


# --- the sanitizer build under random frames -------------------------------------------------------------------------

FUZZ_S = float(os.environ.get("SANDPTY_FUZZ_S", "5"))


def seeds() -> list[bytes]:
    """Well-formed frames, the raw material."""
    one = Selector.tagged("t")
    commands = (("sh", "-c", "seq 200"), ("cat",), ("nosuch",), ("sh", "-c", "read x; echo $x >&2; exit 3"))
    starts = [
        frames.encode_start(Start(argv, {"A": "1"}, "root", tag="t", flags=flags, log_bytes=size, deadline_ms=400))
        for argv in commands
        for flags in (PTY, PIPES, PIPES | 2, PTY | 4)
        for size in (4096, 65536)
    ]
    attaches = [frames.encode_attach(Attach(one, origin=origin, value=3, window=100)) for origin in From]
    return [
        *starts,
        *attaches,
        frames.encode_hello(),
        frames.encode_input(b"hello\n"),
        frames.encode_input(b"x" * 70_000, 0),
        frames.encode_resize(100, 30),
        frames.encode_signal(15, Target.TREE),
        frames.encode_close_stdin(),
        frames.encode_ack(100),
        frames.encode_ping(1),
        frames.encode_list(),
        frames.encode_stat(one),
        frames.encode_wait(one, 20),
        frames.encode_signal_process(Selector.tagged("t"), 9, Target.TREE),
        frames.encode_resize_process(one, 20, 20),
        frames.encode_input_process(one, 2, b"typed\n"),
        frames.encode_close_stdin_process(one),
    ]


def mutated(random_: random.Random, data: bytes) -> bytes:
    """Sometimes as it is, sometimes with other bytes, length, order or end. Never SHUTDOWN, never another's pid."""
    choice = random_.random()
    if choice < 0.6:
        return data
    raw = bytearray(data)
    if choice < 0.85:
        for _ in range(random_.randint(1, 4)):
            raw[random_.randrange(len(raw))] = random_.choice((0, 1, 2, 0x7F, 0x80, 0xFF, random_.randrange(256)))
    elif choice < 0.93:
        del raw[random_.randrange(len(raw)) :]
    else:
        raw[4:4] = random_.randbytes(random_.randint(1, 20))
    if len(raw) > 4 and raw[4] == frames.FrameType.SHUTDOWN:
        raw[4] = frames.FrameType.PING
    return bytes(raw)


def harmless(data: bytes) -> bool:
    """A mutated START or target must not hurt the machine the test runs on: only our own commands are started."""
    if b"\x3f" in data[4:5] or len(data) < 5:
        return True
    if data[4] == FileFrame.FILES:  # files have a fuzzer of their own, in a root of their own
        return False
    if data[4] != frames.FrameType.START:
        return True
    return any(word in data for word in (b"seq 200", b"cat", b"nosuch", b"read x"))


def test_random_frames_do_not_break_the_sanitizer_build() -> None:
    """A seeded fuzzer for a few seconds: no crash, no undefined behaviour, no bad memory access, no leak."""
    random_ = random.Random(int(os.environ.get("SANDPTY_FUZZ_SEED", "20240501")))
    material = seeds()
    conversations = 0
    with Agent(built_agent(sanitized=True)) as agent:
        deadline = time.monotonic() + FUZZ_S
        while time.monotonic() < deadline and agent.process.poll() is None:
            conversations += 1
            with contextlib.suppress(OSError, PeerClosedError):
                peer = Peer(agent.path, hello=False, timeout_s=2)
                parts = [mutated(random_, random_.choice(material)) for _ in range(random_.randint(0, 12))]
                data = frames.encode_hello() + b"".join(part for part in parts if harmless(part))
                peer.socket.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    peer.socket.send(data)
                if random_.random() < 0.5:
                    with contextlib.suppress(BlockingIOError):
                        peer.socket.recv(random_.choice((1, 1000, 100_000)))
                peer.close()
        assert agent.process.poll() is None, agent.said()
        until_sync(lambda: no_children_after_kill(agent))
        until_sync(lambda: descriptors(agent.pid) < 20)
        lives(agent)
        assert agent.stop() == 0, agent.report
        assert agent.report == ""
    assert conversations > 50


def test_the_sanitizer_build_survives_a_whole_conversation() -> None:
    """Terminal, pipes, flood, stuck viewer, kill: the paths the fuzzer rarely finishes."""
    with Agent(built_agent(sanitized=True)) as agent:
        with agent.start("sh", "-c", "seq 100000", stall_ms=100, log_bytes=100_000) as fast:
            stuck = agent.attach(fast.selector)
            fast.read_exit()
            stuck.read_exit()
            stuck.close()
        with agent.start("sh", "-c", "cat; echo e >&2", flags=PIPES | 2) as pipes:
            pipes.type(b"x" * 300_000)
            pipes.send(frames.encode_close_stdin())
            pipes.read_exit()
        with agent.attach(fast.selector, From.SCREEN) as screen:
            screen.read_exit()
        with agent.start("sh", "-c", "setsid sleep 1000 & sleep 1000") as tree, agent.peer() as peer:
            peer.request(frames.encode_signal_process(tree.selector, 9, Target.TREE), frames.Done)
            assert len(peer.list()) == 3
        for _ in range(140):
            agent.run("true", flags=PIPES)
        assert agent.stop() == 0, agent.report
        assert agent.report == ""
