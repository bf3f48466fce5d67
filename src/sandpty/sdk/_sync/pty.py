# Generated from sdk/_async by scripts/generate-sync: change it there.
"""`sandbox.pty`: terminals as E2B's and Novita's SDKs have them, which lose nothing."""

from __future__ import annotations

from collections.abc import Mapping

from sandpty.sdk._blocking import Callback
from sandpty.sdk._sync.client import Client
from sandpty.sdk._sync.handle import ProcessHandle, kill
from sandpty.sdk._sync.handles import Handles
from sandpty.sdk.values import PtySize, WindowSize
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import LOGIN_SHELL
from sandpty.wire.frames import From

PROCESS_TIMEOUT_S = 60.0


class Pty:
    """Terminals of one sandbox, named by the guest's pid."""

    def __init__(self, client: Client, sandbox_id: str, handles: Handles) -> None:
        self._client = client
        self._sandbox_id = sandbox_id
        self._handles = handles

    def create(
        self,
        size: PtySize | None = None,
        on_data: Callback | None = None,
        *,
        cols: int | None = None,
        rows: int | None = None,
        user: str | None = None,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        timeout: float | None = PROCESS_TIMEOUT_S,
        request_timeout: float | None = None,
    ) -> ProcessHandle:
        """A login shell in a terminal of `size`, or of `cols` and `rows` (80 x 24).

        `on_data` is called in the background with bytes that hold whole UTF-8 characters when the output does.
        `timeout`: the seconds after which the shell is killed with all it started, 0 or None for none.
        `request_timeout`: how many seconds the server may take to answer. Raises no_such_user, bad_cwd,
        bad_window_size.
        """
        window = _size(size, cols, rows, WindowSize(cols=80, rows=24))
        handle = self._handles.start(
            LOGIN_SHELL,
            at_once=on_data is not None,
            timeout_s=timeout or 0,
            request_timeout=request_timeout,
            env=envs,
            user=user or "",
            cwd=cwd or "",
            pty=window,
        )
        handle.listen(pty=on_data)
        return handle

    def connect(
        self, pid: int, on_data: Callback | None = None, *, request_timeout: float | None = None
    ) -> ProcessHandle:
        """Come back to a terminal: from what no reader was given yet. Raises no_such_process."""
        found = self._client.within(request_timeout).get_process(self._sandbox_id, f"pid:{pid}")
        handle = ProcessHandle(self._client, self._sandbox_id, found.process, pid=pid, origin=From.CONTINUE)
        self._handles.add(handle)
        handle.listen(pty=on_data)
        return handle

    def send_stdin(self, pid: int, data: bytes | str, *, request_timeout: float | None = None) -> None:
        """Type `data`. Raises no_such_process, exited."""
        self._handles.send_input(pid, data, request_timeout)

    def resize(
        self,
        pid: int,
        size: PtySize | None = None,
        *,
        cols: int | None = None,
        rows: int | None = None,
        request_timeout: float | None = None,
    ) -> None:
        """Set the window size, as `PtySize(rows, cols)` or by name. Raises no_such_process, bad_window_size."""
        window = _size(size, cols, rows, None)
        self._client.within(request_timeout).resize_process(self._sandbox_id, f"pid:{pid}", window)

    def kill(self, pid: int, *, request_timeout: float | None = None) -> bool:
        """Kill a terminal's shell with all it started; False when there is none."""
        return kill(self._client.within(request_timeout), self._sandbox_id, f"pid:{pid}")


def _size(size: PtySize | None, cols: int | None, rows: int | None, default: WindowSize | None) -> WindowSize:
    if size is not None:
        return WindowSize(cols=size.cols, rows=size.rows)
    if cols is not None and rows is not None:
        return WindowSize(cols=cols, rows=rows)
    if default is None or cols is not None or rows is not None:
        raise SandptyError("bad_window_size", "give cols= and rows=, or size=PtySize(rows, cols)")
    return default
