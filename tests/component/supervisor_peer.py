"""A supervisor for tests: starts a real one on a short temporary directory, asks it, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from sandpty.config import DataDir
from sandpty.isolation.agent_call import output_of
from sandpty.isolation.idmap import tag_of
from sandpty.supervisor import watch
from sandpty.wire import verbs
from sandpty.wire.errors import SandptyError
from tests.waiting import until

SERVER_UID = 61_980
TEMPLATES = Path(tempfile.gettempdir()) / f"sp-templates-{os.getpid()}"
COMMAND_TIMEOUT_S = 20.0
atexit.register(shutil.rmtree, TEMPLATES, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie (whom only its new parent can remove)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def group(pid: int, controller: str) -> Path:
    """The process's control group of a version 1 controller."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    path = next(line.split(":")[2] for line in lines if line.split(":")[1] == controller)
    return Path("/sys/fs/cgroup") / controller / path.lstrip("/")


def program(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def fds(pid: int) -> int:
    """How many descriptors a process holds."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def number(path: Path) -> int:
    """The number in a file."""
    return int(path.read_text())


class Peer:
    """One connection to a supervisor. Use as `async with`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.events: list[dict[str, Any]] = []

    async def __aenter__(self) -> Peer:
        self._reader, self._writer = await asyncio.open_unix_connection(str(self._path))
        self._task = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()

    async def _listen(self) -> None:
        messages = verbs.MessageReader()
        try:
            while data := await self._reader.read(65536):
                for body in messages.feed(data):
                    message = json.loads(body)
                    if message.get("id") is not None:
                        self._answers.pop(message["id"]).set_result(message)
                    else:
                        self.events.append(message)
        except ConnectionError:
            pass
        for answer in self._answers.values():
            answer.set_exception(ConnectionResetError("the supervisor closed the connection"))

    async def call(self, verb: str, **args: Any) -> Any:
        """The answer as plain data; raises SandptyError as a server would."""
        self._next += 1
        answer = self._answers[self._next] = asyncio.get_running_loop().create_future()
        self._writer.write(verbs.pack(verbs.Request(self._next, verb, msgspec.Raw(msgspec.json.encode(args)))))
        async with asyncio.timeout(60):
            message = await answer
        if "error" in message:
            raise SandptyError(message["error"]["reason"], message["error"]["message"])
        return message["ok"]

    async def create(self, template: str = "host-usr", timeout_s: float = 300.0, **args: Any) -> dict[str, Any]:
        sandbox: dict[str, Any] = await self.call("create", template=template, end_at=time.time() + timeout_s, **args)
        return sandbox

    async def ids(self) -> set[str]:
        return {sandbox["id"] for sandbox in (await self.call("list"))["sandboxes"]}

    async def ended(self, sandbox_id: str, timeout_s: float = 10.0) -> str:
        """Wait for the event and return its reason."""

        def reason() -> str | None:
            for event in self.events:
                if event["event"] == "ended" and event["sandbox"]["id"] == sandbox_id:
                    return str(event["reason"])
            return None

        return str(await until(reason, timeout_s, f"ended event of {sandbox_id}"))


async def run(sandbox: dict[str, Any], script: str, user: str = "root", timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """What a shell script says in the sandbox; AssertionError when it fails."""
    code, text = await attempt(sandbox, script, user, timeout_s)
    assert code == 0, f"{script!r} gives {code}: {text}"
    return text


async def attempt(
    sandbox: dict[str, Any], script: str, user: str = "root", timeout_s: float = COMMAND_TIMEOUT_S
) -> tuple[int, str]:
    """Exit code and output of a shell script in the sandbox."""
    return await output_of(sandbox["socket"], ["bash", "-c", script], user=user, timeout_s=timeout_s)


class Supervised:
    """A data directory with a supervisor. `argv_prefix` of the environment is inherited."""

    def __init__(self, isolation: str = "crun", pool: int = 0) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
        self.data = DataDir(self.path)
        self.isolation = isolation
        self.pool = pool
        self.tag = tag_of(self.path.resolve())

    def start(self) -> bool:
        return watch.start(
            self.path, self.isolation, SERVER_UID, pool=self.pool, templates_dir=TEMPLATES, build_base=False
        )

    def peer(self) -> Peer:
        return Peer(self.data.supervisor_socket)

    @property
    def supervisor_pid(self) -> int:
        return int(self.data.supervisor_pid.read_text())

    @property
    def watcher_pid(self) -> int:
        return int((self.path / "supervisor-watch.pid").read_text())

    async def answering(self, other_than: int) -> None:
        """Wait until another supervisor answers."""

        async def answers() -> bool:
            try:
                async with self.peer() as peer:
                    return bool((await peer.call("hello"))["pid"] != other_than)
            except (OSError, ValueError):
                return False

        await until(answers, 30, "a supervisor that answers")

    def log(self) -> str:
        return self.data.supervisor_log.read_text(errors="replace")

    async def stop(self) -> None:
        """End everything; also what a failed test left half alive."""
        with contextlib.suppress(OSError, SandptyError, TimeoutError, RuntimeError):
            if not self.running():
                self.start()
            await self.answering(0)  # one that was killed may be on its way back; its socket is there still
            async with self.peer() as peer:
                await peer.call("shutdown", kill=True)
        await until(lambda: not self.running(), 20, "the supervisor's end")
        shutil.rmtree(self.path, ignore_errors=True)

    def running(self) -> bool:
        for path in (self.data.supervisor_pid, self.path / "supervisor-watch.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(path.read_text()), 0)
                return True
        return False

    def kill_supervisor(self) -> int:
        pid = self.supervisor_pid
        os.kill(pid, signal.SIGKILL)
        return pid

    def traces(self) -> list[str]:
        """What is on the host because of this data directory: interfaces, tables, groups, mounts, processes."""
        found = [name for name in os.listdir("/sys/class/net") if name.startswith(f"sp{self.tag}")]
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
        found += [line for line in tables.splitlines() if self.tag in line]
        found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/sandpty-{self.tag}")]
        found += [str(path) for path in Path("/run").glob(f"sandpty-{self.tag}")]
        found += [line for line in Path("/proc/mounts").read_text().splitlines() if str(self.path) in line]
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                found += [text for text in [backing.read_text()] if str(self.path) in text]
        return found


@contextlib.asynccontextmanager
async def supervised(isolation: str = "crun", pool: int = 0) -> AsyncIterator[Supervised]:
    """A running supervisor, ended and removed afterwards."""
    under_test = Supervised(isolation, pool)
    try:
        assert under_test.start()
        yield under_test
    finally:
        await under_test.stop()
