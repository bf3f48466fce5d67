"""`AsyncSandbox`, which is awaited."""

from __future__ import annotations

from typing import NoReturn

from sandpty.sdk._async.sandbox import AsyncSandboxBase
from sandpty.sdk.forwarding import PortForward
from sandpty.sdk.settings import LOCAL_HOST


class AsyncSandbox(AsyncSandboxBase):
    """A sandbox: `await AsyncSandbox.create()`, or `async with await AsyncSandbox.create() as sandbox:`.

    All that `Sandbox` has, awaited; `help(sandpty.Sandbox)` says what there is.
    """

    def __init__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("an asynchronous sandbox is made with `await AsyncSandbox.create()`")

    def forward_port(self, port: int, local_port: int = 0, *, host: str = LOCAL_HOST) -> PortForward:
        """What listens on that port in the sandbox, loopback included, as a port of this machine; 0: any free one.

        async with sandbox.forward_port(8000) as forward:
            ...  # http://127.0.0.1:{forward.port}/
        """
        return PortForward(self._client, self.info.id, port, local_port, host=host)
