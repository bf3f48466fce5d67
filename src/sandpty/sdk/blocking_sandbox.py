"""`Sandbox`, which blocks. Its asynchronous sister is loaded by who wants her."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sandpty.sdk._sync.client import OnTimeout
from sandpty.sdk._sync.sandbox import TIMEOUT_S, SandboxBase
from sandpty.sdk.settings import LOCAL_HOST

if TYPE_CHECKING:
    from sandpty.sdk.forwarding import BlockingPortForward


class Sandbox(SandboxBase):
    """A sandbox. `Sandbox()` makes one, as `Sandbox.create()` does; `with Sandbox() as sandbox:` also kills it.

    sandbox = Sandbox()
    terminal = sandbox.pty.create(cols=80, rows=24, on_data=lambda data: print(data.decode(), end=""))
    sandbox.pty.send_stdin(terminal.pid, b"echo hello\\n")

    pty        terminals: create, connect, send_stdin, resize, kill
    commands   programs with pipes: run, connect, list, send_stdin, close_stdin, kill
    files      read, write, write_files, list, scan, exists, get_info, make_dir, make_symlink, rename, copy, change,
               remove, watch_dir
    terminal   terminals as Hyperbrowser's SDK has them: create, get
    info       what was last heard of it (SandboxInfo)

    Every call takes `request_timeout`: how many seconds the server may be silent. `timeout` is always how long what is
    started may live: the sandbox, the terminal, the command, the watch.
    """

    def __init__(
        self,
        template: str | None = None,
        timeout: float = TIMEOUT_S,
        metadata: Mapping[str, str] | None = None,
        envs: Mapping[str, str] | None = None,
        *,
        allow_internet_access: bool = True,
        on_timeout: OnTimeout = "kill",
        limits: Mapping[str, float] | None = None,
        url: str | None = None,
        api_key: str | None = None,
        request_timeout: float | None = None,
    ) -> None:
        """As `create`."""
        made = SandboxBase.create(
            template,
            timeout,
            metadata,
            envs,
            allow_internet_access=allow_internet_access,
            on_timeout=on_timeout,
            limits=limits,
            url=url,
            api_key=api_key,
            request_timeout=request_timeout,
        )
        self._adopt(made._client, made.info)

    def forward_port(self, port: int, local_port: int = 0, *, host: str = LOCAL_HOST) -> BlockingPortForward:
        """What listens on that port in the sandbox, loopback included, as a port of this machine; 0: any free one.

        with sandbox.forward_port(8000) as forward:
            ...  # http://127.0.0.1:{forward.port}/
        """
        # It is carried by an event loop, in a thread: loaded when it is wanted.
        from sandpty.sdk._async.client import AsyncClient
        from sandpty.sdk.forwarding import BlockingPortForward, PortForward

        client = AsyncClient(self._client.url, self._client._api_key)  # each connection is its own: nothing to close
        return BlockingPortForward(PortForward(client, self.info.id, port, local_port, host=host))
