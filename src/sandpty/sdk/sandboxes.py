"""The two flavours by the names that programs use: `Sandbox` blocks, `AsyncSandbox` is awaited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from sandpty.sdk._async.sandbox import AsyncSandboxBase
from sandpty.sdk._sync.sandbox import SandboxBase
from sandpty.sdk.forwarding import LOCAL_HOST, PortForward


class Sandbox(SandboxBase):
    """A sandbox. `Sandbox()` makes one, as `Sandbox.create()` does; `with Sandbox() as sandbox:` also kills it.

    sandbox = Sandbox()
    terminal = sandbox.pty.create(cols=80, rows=24, on_data=lambda data: print(data.decode(), end=""))
    sandbox.pty.send_stdin(terminal.pid, b"echo hello\\n")
    """

    def __init__(
        self,
        template: str | None = None,
        timeout: float = 300.0,
        metadata: Mapping[str, str] | None = None,
        envs: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        made = SandboxBase.create(template, timeout, metadata, envs, **options)
        self._adopt(made._client, made.info)


class AsyncSandbox(AsyncSandboxBase):
    """A sandbox: `await AsyncSandbox.create()`, or `async with await AsyncSandbox.create() as sandbox:`."""

    def __init__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("an asynchronous sandbox is made with `await AsyncSandbox.create()`")

    def forward_port(self, port: int, local_port: int = 0, *, host: str = LOCAL_HOST) -> PortForward:
        """What listens on that port in the sandbox, loopback included, as a port of this machine; 0: any free one.

        async with sandbox.forward_port(8000) as forward:
            ...  # http://127.0.0.1:{forward.port}/
        """
        return PortForward(self._client, self.info.id, port, local_port, host=host)
