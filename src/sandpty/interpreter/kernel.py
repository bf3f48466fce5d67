"""One kernel process: started, spoken to, interrupted, stopped for a while, ended with everything it started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import zmq.asyncio

from . import limits
from .channels import Channels, Message, new_connection
from .specs import Spec

_KEEPER = (sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py")))


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
        argv = [word.replace("{connection_file}", path) for word in spec.argv]
        try:
            # It starts the kernel below itself, and ends all of it when we close its standard input, or are gone.
            self._keeper = subprocess.Popen(
                _KEEPER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=cwd,
                env={**env, **spec.env, "PWD": cwd},
                start_new_session=True,
            )
        except OSError as error:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise KernelError(f"the kernel does not start: {error.strerror}") from error
        self.ended = asyncio.Event()
        self.paused = False
        self._pid = 0  # the kernel's, once its keeper has told it
        self._listeners: dict[str, Listener] = {}
        self._channels = Channels(context, connection)
        self._ask_keeper(argv)
        self._pidfd = os.pidfd_open(self._keeper.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)
        self._reading = [
            asyncio.create_task(self._read(self._channels.published)),
            asyncio.create_task(self._read(self._channels.shell)),
        ]

    @property
    def end_status(self) -> str:
        """How it ended, in words."""
        code = self._keeper.returncode  # it ends as the kernel did
        if code is None:
            return "it is gone"
        if code < 0:
            hint = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"killed by {signal.Signals(-code).name}{hint}"
        return f"exit status {code}"

    def _ask_keeper(self, argv: list[str]) -> None:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._keeper.stdin.write(json.dumps(argv).encode() + b"\n")
            self._keeper.stdin.flush()
        asyncio.get_running_loop().add_reader(self._keeper.stdout, self._on_pid)

    def _on_pid(self) -> None:
        assert self._keeper.stdout is not None
        self._pid = int(self._keeper.stdout.readline() or 0)
        self._close_stdout()

    def _close_stdout(self) -> None:
        assert self._keeper.stdout is not None
        if not self._keeper.stdout.closed:
            asyncio.get_running_loop().remove_reader(self._keeper.stdout)
            self._keeper.stdout.close()

    def _on_end(self) -> None:
        self._keeper.poll()
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
            if self._pid and not self.ended.is_set():
                os.killpg(self._pid, number)

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
        assert self._keeper.stdin is not None
        with contextlib.suppress(OSError):
            self._keeper.stdin.close()
        for last in (False,) * limits.KERNEL_END_TRIES + (True,):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.KERNEL_END_TIMEOUT_S):
                    await self.ended.wait()
                break
            # Code in the kernel may do anything to its keeper, which is the same user's.
            self._keeper.send_signal(signal.SIGKILL if last else signal.SIGCONT)
        for task in self._reading:
            task.cancel()
        self._channels.close()
        self._close_stdout()
        self._close_pidfd()
        shutil.rmtree(self._directory, ignore_errors=True)
