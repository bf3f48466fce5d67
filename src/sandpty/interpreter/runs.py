"""One run of code: what the kernel says of it becomes lines for the client, in order, with bounded memory."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from typing import Any

from . import limits
from .channels import Message
from .http import Connection
from .kernel import Kernel
from .results import line, result


class Outbox:
    """Lines on their way to a slow client. While too much is pending the kernel stands still."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lines: deque[bytes] = deque()
        self._pending = 0
        self._wake = asyncio.Event()
        self._closed = False
        self.kernel: Kernel | None = None

    def put(self, event: dict[str, Any]) -> None:
        data = line(event)
        self._lines.append(data)
        self._pending += len(data)
        self._wake.set()
        if self.kernel is not None and self._pending > limits.PENDING_BYTES_HIGH:
            self.kernel.pause()

    def close(self) -> None:
        """Nothing more comes; `run` returns when everything is sent."""
        self._closed = True
        self._wake.set()

    async def run(self) -> None:
        """Send what is put. Raises ConnectionError when the client is gone."""
        while True:
            while self._lines:
                batch = []
                size = 0
                while self._lines and size < limits.WRITE_BYTES:
                    batch.append(self._lines.popleft())
                    size += len(batch[-1])
                await self._connection.send(b"".join(batch))
                self._pending -= size
                if self.kernel is not None and self._pending < limits.PENDING_BYTES_LOW:
                    self.kernel.resume()
            if self._closed:
                return
            self._wake.clear()
            try:
                async with asyncio.timeout(limits.KEEPALIVE_S):
                    await self._wake.wait()
            except TimeoutError:
                await self._connection.send(line({"type": "keepalive"}))


class Run:
    """Follows one execute request. `done` is set when the kernel is through with it."""

    def __init__(self, outbox: Outbox | None, language: str = "python") -> None:
        self._outbox = outbox
        self._quotes = "'" if language == "python" else "'\""
        self._failed = False
        self._last_ns = 0
        self._replied = False
        self._idle = False
        self.done = asyncio.Event()

    def heard(self, message: Message) -> None:
        """A message of the kernel that belongs to this run."""
        if message.kind == "status" and message.content.get("execution_state") == "idle":
            self._idle = True
        elif message.kind == "execute_reply":
            self._replied = True
            self._reply(message.content)
        else:
            self.said(message.kind, message.content)
        if self._idle and self._replied:
            self.done.set()

    def said(self, kind: str, content: dict[str, Any]) -> None:
        """What the client hears of."""
        if self._outbox is None:
            return
        if kind == "stream" and content.get("name") in ("stdout", "stderr"):
            # Unix time in nanoseconds; never goes back within a run.
            self._last_ns = max(time.time_ns(), self._last_ns + 1)
            self._outbox.put({"type": content["name"], "text": content.get("text", ""), "timestamp": self._last_ns})
        elif kind in ("display_data", "execute_result") and isinstance(content.get("data"), dict):
            self._outbox.put(result(content["data"], main=kind == "execute_result", quotes=self._quotes))
        elif kind == "error":
            self._error(content)
        elif kind == "execute_input":
            count = content.get("execution_count")
            self._outbox.put({"type": "number_of_executions", "execution_count": count})

    def _reply(self, content: dict[str, Any]) -> None:
        status = content.get("status")
        if status == "error":
            self._error(content)
        elif status in ("aborted", "abort"):
            self._error({"ename": "KeyboardInterrupt", "evalue": "interrupted", "traceback": []})

    def _error(self, content: dict[str, Any]) -> None:
        """Kernels tell an error twice."""
        if self._failed or self._outbox is None:
            return
        self._failed = True
        trace = content.get("traceback") or []
        name, value = str(content.get("ename", "")), str(content.get("evalue", ""))
        text = "\n".join(map(str, trace)) if isinstance(trace, list) else str(trace)
        self._outbox.put(
            {"type": "error", "name": name, "value": value, "traceback": text or ": ".join(filter(None, (name, value)))}
        )


class Last:
    """Follows a request that prints a word, to know when all that was said before it has come. Then `passed` is set."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._word = uuid.uuid4().hex
        self._printed = self._idle = False
        self.passed = asyncio.Event()

    @property
    def code(self) -> str:
        """TypeScript for Deno. A result leaves the kernel when its event loop has gone round."""
        turn = "await new Promise((go) => setTimeout(go))"
        return f"{turn}; Deno[Deno.internal].core.print('{self._word}'); undefined"

    def heard(self, message: Message) -> None:
        """A message for this request. All but the word is the run's: the kernel names whoever asked last."""
        content = message.content
        if message.kind == "stream":
            before, found, after = str(content.get("text", "")).partition(self._word)
            self._printed = self._printed or bool(found)
            if before or after:
                self._run.said("stream", content | {"text": before + after})
        elif message.kind in ("execute_result", "display_data"):
            self._run.said(message.kind, content)
        elif message.kind == "error":  # the code has seen to it that nothing is printed any more
            self._printed = True
        elif message.kind == "status" and content.get("execution_state") == "idle":
            self._idle = True
        if self._printed and self._idle:
            self.passed.set()
