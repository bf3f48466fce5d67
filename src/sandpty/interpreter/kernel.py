"""One kernel process: started, spoken to, interrupted, stopped for a while, ended with everything it started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import zmq.asyncio

from . import limits
from .channels import Channels, Message, new_connection
from .specs import Spec

MARK = "SANDPTY_KERNEL"  # in the environment of all that a kernel starts
_OOM_SCORE = "300"  # when memory runs out, the kernel goes before us


class KernelError(Exception):
    """The kernel did not start, or died; the message is for people."""


Listener = Callable[[Message], None]


class Kernel:
    """A running kernel. `ended` is set when its process is gone."""

    def __init__(self, context: zmq.asyncio.Context, spec: Spec, cwd: str, env: dict[str, str]) -> None:
        self._spec = spec
        self._directory = tempfile.mkdtemp(prefix=".kernel-")
        connection = new_connection(spec.transport, self._directory)
        path = os.path.join(self._directory, "connection.json")
        with open(path, "w", encoding="ascii") as file:
            json.dump(connection, file)
        self._mark = os.path.basename(self._directory)
        argv = [word.replace("{connection_file}", path) for word in spec.argv]
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=cwd,
                env={**env, **spec.env, MARK: self._mark, "PWD": cwd},
                start_new_session=True,
            )
        except OSError as error:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise KernelError(f"the kernel does not start: {error.strerror}") from error
        with contextlib.suppress(OSError):
            Path(f"/proc/{self._process.pid}/oom_score_adj").write_text(_OOM_SCORE)
        self.ended = asyncio.Event()
        self.paused = False
        self._listeners: dict[str, Listener] = {}
        self._channels = Channels(context, connection)
        self._pidfd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)
        self._reading = [
            asyncio.create_task(self._read(self._channels.published)),
            asyncio.create_task(self._read(self._channels.shell)),
        ]

    @property
    def end_status(self) -> str:
        """How it ended, in words."""
        code = self._process.returncode
        if code is None:
            return "it is gone"
        if code < 0:
            hint = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"killed by {signal.Signals(-code).name}{hint}"
        return f"exit status {code}"

    def _on_end(self) -> None:
        self._process.poll()
        self._close_pidfd()
        self.ended.set()

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    async def _read(self, socket: object) -> None:
        while True:
            message = await self._channels.receive(socket)
            if message is not None and (listener := self._listeners.get(message.parent)):
                listener(message)

    # --- requests ---

    async def wait_ready(self) -> None:
        """Returns when it answers and what it publishes arrives. Raises KernelError."""
        heard = asyncio.Event()
        asked: list[str] = []

        def listen(message: Message) -> None:
            if message.kind == "status":
                heard.set()

        deadline = time.monotonic() + limits.KERNEL_START_TIMEOUT_S
        try:
            while not heard.is_set():
                if self.ended.is_set():
                    raise KernelError(f"the kernel ended while it started: {self.end_status}")
                if time.monotonic() > deadline:
                    raise KernelError(f"the kernel did not start within {limits.KERNEL_START_TIMEOUT_S:g} s")
                asked.append(await self.request("kernel_info_request", {}, listen))
                await self.either(heard, limits.PROBE_INTERVAL_S)
        finally:
            for message_id in asked:
                self._listeners.pop(message_id, None)

    async def either(self, event: asyncio.Event, timeout_s: float | None = None) -> None:
        """Returns when `event` is set, the kernel ended, or time is up."""
        waits = [asyncio.create_task(event.wait()), asyncio.create_task(self.ended.wait())]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()

    async def request(self, kind: str, content: dict[str, object], listener: Listener) -> str:
        """Send to the shell channel; what belongs to it goes to `listener` until `forget`. Returns its id."""
        message_id = await self._channels.send(self._channels.shell, kind, dict(content))
        self._listeners[message_id] = listener
        return message_id

    def forget(self, message_id: str) -> None:
        self._listeners.pop(message_id, None)

    # --- signals ---

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not self.ended.is_set():
                os.killpg(self._process.pid, number)

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self.resume()
        self._signal(signal.SIGINT)

    def pause(self) -> None:
        """It runs no further until `resume`: who reads what it says is too slow."""
        if not self.paused:
            self.paused = True
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self._signal(signal.SIGCONT)

    async def close(self) -> None:
        """End it and everything it started."""
        while True:
            self._kill_all()
            try:
                async with asyncio.timeout(limits.KERNEL_END_TIMEOUT_S):
                    await self.ended.wait()
                break
            except TimeoutError:
                continue
        self._kill_all()
        for task in self._reading:
            task.cancel()
        self._channels.close()
        self._close_pidfd()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _kill_all(self) -> None:
        """Everything that carries the kernel's mark, in rounds, because a fork bomb grows meanwhile."""
        mark = f"{MARK}={self._mark}".encode()
        for _ in range(20):
            found = 0
            for name in os.listdir("/proc"):
                if not name.isdigit():
                    continue
                with contextlib.suppress(OSError):
                    if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                        found += 1
                        os.kill(int(name), signal.SIGKILL)
            if not found:
                break
        self._signal(signal.SIGKILL)
