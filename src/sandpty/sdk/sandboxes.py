"""The two flavours by the names that programs use: `Sandbox` blocks, `AsyncSandbox` is awaited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from sandpty.sdk._async.sandbox import AsyncSandboxBase
from sandpty.sdk._sync.sandbox import SandboxBase


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
