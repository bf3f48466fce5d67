"""`sandbox.terminal`: terminals as Hyperbrowser's SDK has them, on the same log: a cursor is an offset."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from types import TracebackType

from sandpty.sdk._async.client import AsyncClient
from sandpty.sdk._async.terminal import AsyncTerminal
from sandpty.sdk._awaiting import async_sleep
from sandpty.sdk.characters import WholeCharacters
from sandpty.sdk.terminal_values import (
    SandboxTerminalCreateParams,
    SandboxTerminalExitEvent,
    SandboxTerminalOutputEvent,
    SandboxTerminalStatus,
    TerminalChunk,
    status_of,
)
from sandpty.sdk.values import ProcessInfo, WindowSize
from sandpty.wire.frames import Exit, From, Gap, Output

COLS, ROWS = 80, 24
KILL_WAIT_MS = 5000
FIRST_OUTPUT_MS = 1000  # after the start
FIRST_OUTPUT_POLL_S = 0.02


class AsyncSandboxTerminals:
    """Terminals of one sandbox, named by the id that the server gave them."""

    def __init__(self, client: AsyncClient, sandbox_id: str) -> None:
        self._client = client
        self._sandbox_id = sandbox_id

    async def create(self, params: SandboxTerminalCreateParams) -> AsyncSandboxTerminalHandle:
        """Run `command` with `args` in a terminal. Raises start_failed, bad_cwd, bad_window_size."""
        argv = [params.command, *(params.args or ())]
        if params.use_shell:
            argv = ["/bin/sh", "-c", params.command]
        started = await self._client.start_process(
            self._sandbox_id,
            argv,
            env=params.env,
            cwd=params.cwd or "",
            pty=WindowSize(cols=params.cols or COLS, rows=params.rows or ROWS),
            deadline_s=(params.timeout_ms or 0) / 1000,
        )
        return await self.get(str(started.process))

    async def get(self, terminal_id: str, include_output: bool = False) -> AsyncSandboxTerminalHandle:
        """The terminal with that id, running or ended. Raises no_such_process."""
        handle = AsyncSandboxTerminalHandle(self._client, self._sandbox_id, terminal_id)
        return await handle.refresh(include_output)


class AsyncSandboxTerminalHandle:
    """One terminal. `current` is what was last heard of it."""

    def __init__(self, client: AsyncClient, sandbox_id: str, terminal_id: str) -> None:
        self._client = client
        self._sandbox_id = sandbox_id
        self.id = terminal_id
        self.current: SandboxTerminalStatus

    async def refresh(self, include_output: bool = False) -> AsyncSandboxTerminalHandle:
        """Ask again."""
        found = await self._client.get_process(self._sandbox_id, self.id)
        if include_output and found.log_end == 0:
            found = await self._first_output(found)
        output = await self._output(found.log_end) if include_output else None
        self.current = status_of(self.id, found, output)
        return self

    async def _first_output(self, found: ProcessInfo) -> ProcessInfo:
        """A terminal that has just been created is given a moment to say something, so that it is not asked in vain."""
        until_ms = status_of(self.id, found, None).started_at + FIRST_OUTPUT_MS
        while found.running and found.log_end == 0 and _now_ms() < until_ms:
            await async_sleep(FIRST_OUTPUT_POLL_S)
            found = await self._client.get_process(self._sandbox_id, self.id)
        return found

    async def _output(self, end: int) -> list[TerminalChunk]:
        """What the log holds now."""
        chunks: list[TerminalChunk] = []
        if end == 0:
            return chunks
        async with self._client.attach(self._sandbox_id, self.id, origin=From.OFFSET, read_only=True) as attachment:
            cutter = WholeCharacters()
            while attachment.position < end and attachment.exit is None:
                event = await attachment.receive()
                if isinstance(event, Output) and (data := cutter.feed(event.data)):
                    chunks.append(TerminalChunk(seq=attachment.position, raw=data, timestamp=_now_ms()))
            if rest := cutter.finish():
                chunks.append(TerminalChunk(seq=attachment.position, raw=rest, timestamp=_now_ms()))
        return chunks

    async def wait(self, timeout_ms: int | None = None, include_output: bool = False) -> SandboxTerminalStatus:
        """Its status once it has ended. Raises timeout after `timeout_ms`; None waits for ever."""
        timeout_s = None if timeout_ms is None else timeout_ms / 1000
        await self._client.wait_exit(self._sandbox_id, self.id, timeout_s=timeout_s)
        return (await self.refresh(include_output)).current

    async def signal(self, signal: str | None = None) -> SandboxTerminalStatus:
        """Send it (`TERM`, `SIGINT`, ...; none: `KILL`) to the program that was started, and all it started."""
        await self._client.signal_process(self._sandbox_id, self.id, signal or "KILL", target="tree")
        return (await self.refresh()).current

    async def kill(self, signal: str | None = None, *, timeout_ms: int | None = None) -> SandboxTerminalStatus:
        """Send a signal and wait for the end. Raises timeout."""
        await self.signal(signal)
        return await self.wait(KILL_WAIT_MS if timeout_ms is None else timeout_ms)

    async def resize(self, rows: int, cols: int) -> SandboxTerminalStatus:
        """Rows first, as Hyperbrowser has it."""
        await self._client.resize_process(self._sandbox_id, self.id, WindowSize(cols=cols, rows=rows))
        return (await self.refresh()).current

    async def attach(self, cursor: int | None = None) -> AsyncSandboxTerminalConnection:
        """A connection that reads from offset `cursor` (the `seq` of the last event seen), or all that is kept."""
        terminal = AsyncTerminal(self._client, self._sandbox_id, self.id, origin=From.OFFSET, value=cursor or 0)
        await terminal.open()
        return AsyncSandboxTerminalConnection(self, terminal)


class AsyncSandboxTerminalConnection:
    """Input and output of one terminal; it heals itself. Closing it does not end the terminal."""

    def __init__(self, handle: AsyncSandboxTerminalHandle, terminal: AsyncTerminal) -> None:
        self._handle = handle
        self._terminal = terminal
        self.gaps: list[tuple[int, int]] = []

    async def events(self) -> AsyncIterator[SandboxTerminalOutputEvent | SandboxTerminalExitEvent]:
        """Output with whole characters, then the exit."""
        cutter = WholeCharacters()
        async for event in self._terminal:
            if isinstance(event, Output):
                if data := cutter.feed(event.data):
                    yield SandboxTerminalOutputEvent(seq=self._terminal.position, raw=data, timestamp=_now_ms())
            elif isinstance(event, Gap):
                self.gaps.append((event.start, event.end))
            elif isinstance(event, Exit):
                if rest := cutter.finish():
                    yield SandboxTerminalOutputEvent(seq=self._terminal.position, raw=rest, timestamp=_now_ms())
                yield SandboxTerminalExitEvent(status=(await self._handle.refresh()).current)

    async def write(self, data: str | bytes | bytearray) -> None:
        """Type it; a text as UTF-8."""
        await self._terminal.send_input(data.encode() if isinstance(data, str) else bytes(data))

    async def resize(self, rows: int, cols: int) -> None:
        """Takes its place among what is written."""
        await self._terminal.resize(WindowSize(cols=cols, rows=rows))

    async def close(self) -> None:
        """What was written before is typed."""
        await self._terminal.close()

    async def __aenter__(self) -> AsyncSandboxTerminalConnection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _now_ms() -> int:
    return int(time.time() * 1000)
