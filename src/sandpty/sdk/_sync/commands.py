# Generated from sdk/_async by scripts/generate-sync: change it there.
"""`sandbox.commands`: programs with pipes, as E2B's SDK has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, overload

from sandpty.sdk._blocking import Callback
from sandpty.sdk._sync.client import Client
from sandpty.sdk._sync.handle import ProcessHandle, kill
from sandpty.sdk._sync.handles import Handles
from sandpty.sdk.values import CommandInfo, CommandResult
from sandpty.wire.frames import From

COMMAND_SHELL = ("/bin/bash", "-l", "-c")
COMMAND_TIMEOUT_S = 60.0
COMMAND_LOG_BYTES = 16 * 1024 * 1024  # what a command may say before its caller comes to read it


class Commands:
    """Commands of one sandbox, named by the guest's pid."""

    def __init__(self, client: Client, sandbox_id: str, handles: Handles) -> None:
        self._client = client
        self._sandbox_id = sandbox_id
        self._handles = handles

    @overload
    def run(
        self,
        cmd: str,
        background: Literal[False] = False,
        *,
        envs: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        on_stdout: Callback | None = None,
        on_stderr: Callback | None = None,
        stdin: bool = False,
        timeout: float | None = COMMAND_TIMEOUT_S,
        request_timeout: float | None = None,
    ) -> CommandResult: ...

    @overload
    def run(
        self,
        cmd: str,
        background: Literal[True],
        *,
        envs: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        on_stdout: Callback | None = None,
        on_stderr: Callback | None = None,
        stdin: bool = False,
        timeout: float | None = COMMAND_TIMEOUT_S,
        request_timeout: float | None = None,
    ) -> ProcessHandle: ...

    def run(
        self,
        cmd: str,
        background: bool = False,
        *,
        envs: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        on_stdout: Callback | None = None,
        on_stderr: Callback | None = None,
        stdin: bool = False,
        timeout: float | None = COMMAND_TIMEOUT_S,
        request_timeout: float | None = None,
    ) -> CommandResult | ProcessHandle:
        """Run a line of bash. Waits for its end, or with `background` gives a handle at once.

        `on_stdout` and `on_stderr` are called with text. `timeout`: the seconds after which it is killed with all it
        started, 0 or None for none. `request_timeout`: how many seconds the server may take to answer that it runs.
        `stdin` True leaves it a pipe to write to. Raises CommandExitError for another status than 0,
        ProcessTimeoutError, no_such_user, bad_cwd.
        """
        handle = self._handles.start(
            [*COMMAND_SHELL, cmd],
            at_once=not background or bool(on_stdout or on_stderr),
            text=True,
            timeout_s=timeout or 0,
            request_timeout=request_timeout,
            env=envs,
            user=user or "",
            cwd=cwd or "",
            stdin=stdin,
            log_bytes=COMMAND_LOG_BYTES,
        )
        if not background:
            return handle.wait(on_stdout=on_stdout, on_stderr=on_stderr)
        handle.listen(stdout=on_stdout, stderr=on_stderr)
        return handle

    def connect(
        self,
        pid: int,
        *,
        on_stdout: Callback | None = None,
        on_stderr: Callback | None = None,
        request_timeout: float | None = None,
    ) -> ProcessHandle:
        """Come back to a command: from what no reader was given yet. Raises no_such_process."""
        found = self._client.within(request_timeout).get_process(self._sandbox_id, f"pid:{pid}")
        handle = ProcessHandle(self._client, self._sandbox_id, found.process, pid=pid, origin=From.CONTINUE, text=True)
        self._handles.add(handle)
        handle.listen(stdout=on_stdout, stderr=on_stderr)
        return handle

    def list(self, *, request_timeout: float | None = None) -> list[CommandInfo]:
        """Everything that runs, terminals included, oldest first."""
        found = self._client.within(request_timeout).list_processes(self._sandbox_id)
        return [
            CommandInfo(
                pid=each.pid,
                tag=each.tag or None,
                cmd=each.argv[0] if each.argv else "",
                args=list(each.argv[1:]),
                envs=dict(each.env),
                cwd=each.cwd or None,
            )
            for each in found
            if each.running
        ]

    def kill(self, pid: int, *, request_timeout: float | None = None) -> bool:
        """Kill a command with all it started; False when there is none."""
        return kill(self._client.within(request_timeout), self._sandbox_id, f"pid:{pid}")

    def send_stdin(self, pid: int, data: bytes | str, *, request_timeout: float | None = None) -> None:
        """Write to its stdin. Raises no_such_process, stdin_closed."""
        self._handles.send_input(pid, data, request_timeout)

    def close_stdin(self, pid: int, *, request_timeout: float | None = None) -> None:
        """End of input, after all that was sent. Raises no_such_process."""
        self._handles.close_stdin(pid, request_timeout)
