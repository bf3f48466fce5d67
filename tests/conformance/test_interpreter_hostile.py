"""Code that misbehaves hurts its own sandbox only, and the interpreter goes on."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from e2b import SandboxException, TimeoutException
from e2b_code_interpreter import Sandbox

from tests.server_fixture import RunningServer
from tests.waiting import until_sync

DEADLINE_S = 60.0
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def code(sdk_env: dict[str, str]) -> Iterator[Sandbox]:
    """One sandbox for this file."""
    sandbox = Sandbox.create(timeout=600)
    yield sandbox
    sandbox.kill()


def works(sandbox: Sandbox) -> bool:
    """Whether a new run comes through."""
    try:
        return sandbox.run_code("6 * 7", timeout=20).text == "42"
    except (SandboxException, TimeoutException):
        return False


def resident_bytes(pid: int) -> int:
    """What a process of this machine holds in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def guest_bytes(sandbox: Sandbox, pattern: str) -> int:
    """Resident memory of the guest's processes whose command line matches."""
    done = sandbox.commands.run(
        f"for p in $(pgrep -f {pattern}); do cat /proc/$p/statm; done | awk '{{s += $2}} END {{print s}}'"
    )
    return int(done.stdout or 0) * 4096


@contextlib.contextmanager
def slow_client(server: RunningServer, sandbox: Sandbox, text: str) -> Iterator[socket.socket]:
    """A connection that asked to run code and takes only what the test reads."""
    body = json.dumps({"code": text}).encode()
    place = urlsplit(server.url)
    head = (
        f"POST /execute HTTP/1.1\r\nHost: {place.netloc}\r\nE2b-Sandbox-Id: {sandbox.sandbox_id}\r\n"
        f"E2b-Sandbox-Port: 49999\r\nX-Access-Token: {sandbox._envd_access_token}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=DEADLINE_S) as client:
        client.sendall(head.encode() + body)
        yield client


def test_a_flood_that_nobody_reads_stands_still_and_ends_with_its_client(code: Sandbox, server: RunningServer) -> None:
    """No process of ours grows with it; when the client goes the kernel is free again."""
    assert server.process is not None
    assert works(code)
    before = resident_bytes(server.process.pid)
    state = "for p in $(pgrep -f ipykernel_launcher); do cut -d' ' -f3 /proc/$p/stat; done"
    with slow_client(server, code, "while True: print('x' * 100_000)") as client:
        assert client.recv(12) == b"HTTP/1.1 200"
        until_sync(lambda: "T" in code.commands.run(state).stdout, DEADLINE_S, "the kernel is stopped")
        assert guest_bytes(code, "sandpty_interpreter$") < 150 * MIB
        assert resident_bytes(server.process.pid) - before < 64 * MIB
        # Who reads on finds more of it, in order and whole.
        client.setblocking(True)
        read = 0
        while read < 20 * MIB:
            read += len(client.recv(MIB))
    until_sync(lambda: works(code), DEADLINE_S, "the kernel is free again")


def test_nothing_of_a_flood_is_lost_for_a_slow_reader(code: Sandbox, server: RunningServer) -> None:
    """Every line arrives, however slowly it is read."""
    with slow_client(server, code, "for i in range(100_000): print(f'{i:0100d}')") as client:
        received = bytearray()
        pause_until = time.monotonic() + 1.0
        while time.monotonic() < pause_until:
            received += client.recv(1024)
        while b"\r\n0\r\n\r\n" not in received[-16:]:
            received += client.recv(MIB)
    assert _lines_of(bytes(received)) == list(range(100_000))


def _lines_of(answer: bytes) -> list[int]:
    """The numbers that were printed, out of a chunked answer."""
    body = answer.partition(b"\r\n\r\n")[2]
    whole = bytearray()
    while body:
        size, _, rest = body.partition(b"\r\n")
        whole += rest[: int(size, 16)]
        body = rest[int(size, 16) + 2 :]
    events = [json.loads(line) for line in whole.splitlines()]
    text = "".join(event["text"] for event in events if event["type"] == "stdout")
    return [int(line) for line in text.split()]


def test_a_gigantic_result_is_cut_or_ends_its_kernel(code: Sandbox) -> None:
    """The client gets a bounded answer, and the next run works."""
    execution = code.run_code("'x' * 60_000_000", timeout=DEADLINE_S)
    if execution.error is None:
        assert execution.text is not None
        assert "characters more" in execution.text[-40:]
        assert len(execution.text) < 40_000_000
    until_sync(lambda: works(code), DEADLINE_S, "it works again")


def test_memory_that_runs_out_ends_the_kernel_not_the_interpreter(code: Sandbox) -> None:
    """The run says that its kernel died."""
    execution = code.run_code("kept = bytearray(3 << 30)\nfor i in range(0, len(kept), 4096): kept[i] = 1", timeout=60)
    assert execution.error is not None
    assert execution.error.name in ("KernelError", "MemoryError")
    until_sync(lambda: works(code), DEADLINE_S, "it works again")


SLEEPERS = (
    "import os, signal\nwhile True:\n  try:\n    if os.fork() == 0: signal.pause()\n"
    "  except OSError: signal.sigtimedwait([], 0.1)"
)
# Each one leaves its session behind and makes more; not so many that other tests on this machine wait for them.
RUNAWAYS = (
    "import os, resource\n"
    "resource.setrlimit(resource.RLIMIT_NPROC, (150, 150))\n"
    "def run():\n"
    "  while True:\n"
    "    try:\n"
    "      if os.fork() == 0: os.setsid()\n"
    "    except OSError: pass\n"
    "if os.fork() == 0: run()\nrun()"
)


@pytest.mark.parametrize("bomb", [SLEEPERS, RUNAWAYS], ids=["that sleeps", "that runs"])
def test_a_fork_bomb_is_bounded_and_ends_with_its_context(code: Sandbox, sdk_env: dict[str, str], bomb: str) -> None:
    """Process ids of the sandbox run out, not the machine's: others run code meanwhile. A restart ends all of it."""
    sandbox = Sandbox.create(timeout=300)
    context = sandbox.create_code_context()
    with contextlib.suppress(TimeoutException):  # or it runs out of memory before
        sandbox.run_code(bomb, context=context, timeout=1)
    until_sync(lambda: works(code), DEADLINE_S, "another sandbox runs code")
    sandbox.restart_code_context(context.id)
    assert sandbox.run_code("6 * 7", context=context, timeout=DEADLINE_S).text == "42"
    assert int(sandbox.commands.run("ls /proc | grep -c '^[0-9]'").stdout) < 30
    assert sandbox.kill()


def test_a_restart_ends_what_root_was_asked_to_run(code: Sandbox) -> None:
    """Programs that were started with sudo, and what they started, end with the context too."""
    context = code.create_code_context()
    started = "import subprocess; subprocess.Popen(['sudo', 'sh', '-c', 'sleep 4711 & sleep 4711'])"
    assert code.run_code(started, context=context, timeout=DEADLINE_S).error is None
    sleepers = "pgrep -fc '^sleep 471[1]' || true"
    until_sync(lambda: code.commands.run(sleepers).stdout == "2\n", DEADLINE_S, "they run")
    code.restart_code_context(context.id)
    assert code.commands.run(sleepers).stdout == "0\n"
    code.remove_code_context(context.id)


def test_an_interpreter_that_is_killed_from_inside_is_started_again(code: Sandbox) -> None:
    """The run under way fails, and does not look complete; the next one works."""
    with pytest.raises(Exception):  # noqa: B017, PT011 - the SDK passes on what its transport says
        code.run_code(
            "import os, signal\nkeeper = open(f'/proc/{os.getppid()}/stat').read().split()\n"
            "os.kill(int(keeper[3]), signal.SIGKILL); signal.pause()",
            timeout=30,
        )
    until_sync(lambda: works(code), DEADLINE_S, "it works again")


def test_a_service_of_the_guests_own_on_the_port_cannot_harm(sdk_env: dict[str, str]) -> None:
    """What listens there instead of ours is answered for as any service of the guest's."""
    sandbox = Sandbox.create("base", timeout=120)
    served = (
        "import socket\ns = socket.create_server(('127.0.0.1', 49999))\nwhile True:\n  c, _ = s.accept()\n"
        "  c.recv(65536); c.sendall(b'nonsense' * 10000); c.close()\n"
    )
    sandbox.commands.run(f'python3 -c "{served}"', background=True)
    until_sync(lambda: sandbox.commands.run("grep -c :C34F /proc/net/tcp || true").stdout.strip() != "0", DEADLINE_S)
    with pytest.raises((SandboxException, TimeoutException)):
        sandbox.run_code("1", timeout=20)
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
    sandbox.kill()
