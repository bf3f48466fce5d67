"""A process in the hand: callbacks or iteration for its output, input, its end. `pty` and `commands` give it out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType

from sandpty.sdk._async.client import AsyncClient
from sandpty.sdk._async.terminal import AsyncTerminal, TerminalEvent
from sandpty.sdk._awaiting import AsyncCallback, AsyncLock, AsyncWorker, async_call
from sandpty.sdk.characters import WholeCharacters
from sandpty.sdk.exceptions import CommandExitError, ProcessTimeoutError
from sandpty.sdk.values import CommandResult, WindowSize, exit_status
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import Exit, ExitReason, From, Gap, Output, Stream

_NAMES = {Stream.PTY: "pty", Stream.STDOUT: "stdout", Stream.STDERR: "stderr"}


class AsyncProcessHandle:
    """One process. Its output stays in its log until somebody reads it: a handle holds no connection before that.

    Read it in one of three ways: with callbacks given at the start (a worker reads in the background), with `wait`, or
    by iterating. All three survive lost connections. `gaps` lists (from, to) offsets of output that is really lost.
    """

    def __init__(
        self,
        client: AsyncClient,
        sandbox_id: str,
        process: int | str,
        *,
        pid: int,
        origin: From = From.OFFSET,
        timeout_s: float = 0,
        text: bool = False,
        terminal: AsyncTerminal | None = None,
    ) -> None:
        """`terminal`: an open one that shows the process from its first byte."""
        self._client = client
        self._sandbox_id = sandbox_id
        self._process = process
        self._timeout_s = timeout_s
        self._text = text
        self._origin, self._position = origin, 0
        self._terminal = terminal
        self._opening = AsyncLock()  # held while `_terminal` changes
        self._left = False  # disconnected: a worker that has not begun yet must not
        self._worker: AsyncWorker | None = None
        self._callbacks: list[tuple[str, AsyncCallback]] = []
        self._cutters = {name: WholeCharacters() for name in _NAMES.values()}
        self._said: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        self._exit: Exit | None = None
        self.pid = pid
        self.gaps: list[tuple[int, int]] = []

    # --- reading -----------------------------------------------------------------------------------------------------

    def listen(self, **callbacks: AsyncCallback | None) -> None:
        """Call `pty`, `stdout` and `stderr` with what is said from now on, in the background."""
        self._add(**callbacks)
        if self._callbacks and self._worker is None:
            self._left = False
            self._worker = AsyncWorker(self._listen, f"output of {self.pid}")

    async def _listen(self) -> None:
        async with self._opening:
            if self._left:  # before it had even begun
                return
            terminal = await self._open()
        await self._consume(terminal)

    def _add(self, **callbacks: AsyncCallback | None) -> None:
        self._callbacks += [(name, callback) for name, callback in callbacks.items() if callback is not None]

    async def _opened(self) -> AsyncTerminal:
        async with self._opening:
            return await self._open()

    async def _open(self) -> AsyncTerminal:
        if self._terminal is None:
            terminal = AsyncTerminal(
                self._client, self._sandbox_id, self._process, origin=self._origin, value=self._position
            )
            await terminal.open()
            self._terminal = terminal
        return self._terminal

    async def __aiter__(self) -> AsyncIterator[TerminalEvent]:
        """Events as they come: Output, Gap, Resized, and Exit as the last."""
        terminal = await self._opened()
        async for event in self._events(terminal):
            yield event

    async def _events(self, terminal: AsyncTerminal) -> AsyncIterator[TerminalEvent]:
        async for event in terminal:
            if isinstance(event, Gap):
                self.gaps.append((event.start, event.end))
            elif isinstance(event, Exit):
                self._exit = event
            yield event

    async def _consume(self, terminal: AsyncTerminal) -> None:
        async for event in self._events(terminal):
            if isinstance(event, Output):
                name = _NAMES[Stream(event.stream)]
                await self._tell(name, self._cutters[name].feed(event.data))
        for name, cutter in self._cutters.items():
            await self._tell(name, cutter.finish())

    async def _tell(self, name: str, data: bytes) -> None:
        if not data:
            return
        if name in self._said:
            self._said[name].append(data)
        for wanted, callback in self._callbacks:
            if wanted == name:
                await async_call(callback, data.decode("utf-8", "replace") if self._text else data)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def wait(
        self,
        on_pty: AsyncCallback | None = None,
        on_stdout: AsyncCallback | None = None,
        on_stderr: AsyncCallback | None = None,
    ) -> CommandResult:
        """Read to the end. Raises CommandExitError for a status that is not 0, ProcessTimeoutError at its timeout."""
        self._add(pty=on_pty, stdout=on_stdout, stderr=on_stderr)
        if self._worker is not None:
            await self._worker.join()
        elif self._exit is None:
            await self._consume(await self._opened())
        if self._exit is None:
            raise SandptyError("conflict", "this handle was disconnected; connect(pid) gives one that reads on")
        result = self._result(self._exit)
        if self._exit.reason is ExitReason.DEADLINE:
            raise ProcessTimeoutError(self._timeout_s)
        if result.exit_code != 0:
            raise CommandExitError(result.exit_code, result.stdout, result.stderr, result.error)
        return result

    def _result(self, end: Exit) -> CommandResult:
        error = f"signal {end.value}" if end.signalled else f"exit status {end.value}" if end.value else None
        stdout, stderr = (b"".join(self._said[name]).decode("utf-8", "replace") for name in ("stdout", "stderr"))
        return CommandResult(exit_code=exit_status(end), stdout=stdout, stderr=stderr, error=error)

    @property
    def exit_code(self) -> int | None:
        """None until the end was read."""
        return None if self._exit is None else exit_status(self._exit)

    async def kill(self) -> bool:
        """Kill it with all it started; False when it had ended."""
        return await kill(self._client, self._sandbox_id, self._process)

    async def disconnect(self) -> None:
        """Read no more. The process goes on, and `connect(pid)` continues where this left off."""
        async with self._opening:
            terminal, self._terminal = self._terminal, None
            self._left = True
        if terminal is not None:
            self._origin, self._position = From.OFFSET, terminal.position
            await terminal.close()
        worker, self._worker = self._worker, None
        if worker is not None and not worker.is_current:
            await worker.leave()

    async def __aenter__(self) -> AsyncProcessHandle:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()

    # --- input -------------------------------------------------------------------------------------------------------

    @property
    def reads(self) -> bool:
        """Whether it holds a connection, whose healing covers input too."""
        return self._terminal is not None

    async def send_stdin(self, data: bytes | str) -> None:
        """Type `data`; a text is sent as UTF-8."""
        await (await self._opened()).send_input(data.encode() if isinstance(data, str) else data)

    async def close_stdin(self) -> None:
        """End of input, after all that was sent. For a process with pipes."""
        await (await self._opened()).close_stdin()

    async def resize(self, *, cols: int, rows: int) -> None:
        """Of a terminal. Raises not_a_pty, bad_window_size."""
        await self._client.resize_process(self._sandbox_id, self._process, WindowSize(cols=cols, rows=rows))


async def kill(client: AsyncClient, sandbox_id: str, process: int | str) -> bool:
    """Kill a process with all it started; False when there is none, or it had ended."""
    try:
        await client.signal_process(sandbox_id, process, "KILL", target="tree")
    except SandptyError as error:
        if error.reason.name in ("exited", "no_such_process"):
            return False
        raise
    return True
