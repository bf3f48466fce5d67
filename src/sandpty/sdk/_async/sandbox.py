"""A sandbox and what is in it: `pty`, `commands`, `files`, `terminal`."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from sandpty.sdk._async.client import AsyncClient, OnTimeout
from sandpty.sdk._async.commands import AsyncCommands
from sandpty.sdk._async.files import AsyncFiles
from sandpty.sdk._async.handles import AsyncHandles
from sandpty.sdk._async.pty import AsyncPty
from sandpty.sdk._async.terminals import AsyncSandboxTerminals
from sandpty.sdk.values import SandboxInfo
from sandpty.wire.errors import SandptyError

TEMPLATE = "base"
TIMEOUT_S = 300.0


class AsyncSandboxBase:
    """What both flavours have. See `Sandbox` and `AsyncSandbox`."""

    pty: AsyncPty
    commands: AsyncCommands
    files: AsyncFiles
    terminal: AsyncSandboxTerminals

    def _adopt(self, client: AsyncClient, info: SandboxInfo) -> None:
        handles = AsyncHandles(client, info.id)
        self._client = client
        self.info = info
        self.pty = AsyncPty(client, info.id, handles)
        self.commands = AsyncCommands(client, info.id, handles)
        self.files = AsyncFiles(client, info.id)
        self.terminal = AsyncSandboxTerminals(client, info.id)

    @classmethod
    async def create(
        cls,
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
    ) -> Self:
        """A new sandbox. After `timeout` seconds it is killed or paused, as `on_timeout` says.

        `url` and `api_key` come from SANDPTY_URL and SANDPTY_API_KEY unless given. `request_timeout`: how many seconds
        the server may take to answer, in this and in every other call that says nothing else (75). Raises
        unauthenticated, server_unreachable, no_such_template, limit.
        """
        client = AsyncClient.from_environment(url, api_key, request_timeout_s=request_timeout)
        try:
            info = await client.create_sandbox(
                template or TEMPLATE,
                timeout_s=timeout,
                metadata=metadata,
                env=envs,
                internet=allow_internet_access,
                on_timeout=on_timeout,
                limits=limits,
            )
        except BaseException:
            await client.close()
            raise
        return cls._of(client, info)

    @classmethod
    async def connect(
        cls,
        sandbox_id: str,
        timeout: float | None = None,
        *,
        url: str | None = None,
        api_key: str | None = None,
        request_timeout: float | None = None,
    ) -> Self:
        """An existing sandbox; a paused one is resumed. `timeout` moves its end, if that makes it later.

        `url`, `api_key` and `request_timeout` as in `create`. Raises no_such_sandbox.
        """
        client = AsyncClient.from_environment(url, api_key, request_timeout_s=request_timeout)
        try:
            info = await client.get_sandbox(sandbox_id)
            if info.state == "paused":
                info = await client.resume_sandbox(sandbox_id, timeout_s=TIMEOUT_S if timeout is None else timeout)
            elif timeout is not None and info.left_s < timeout:
                info = await client.set_deadline(sandbox_id, timeout_s=timeout)
        except BaseException:
            await client.close()
            raise
        return cls._of(client, info)

    @classmethod
    def _of(cls, client: AsyncClient, info: SandboxInfo) -> Self:
        made = cls.__new__(cls)
        made._adopt(client, info)
        return made

    @property
    def sandbox_id(self) -> str:
        """What names it, for `connect` and on the command line."""
        return self.info.id

    @property
    def id(self) -> str:
        """The same."""
        return self.info.id

    async def get_info(self, *, request_timeout: float | None = None) -> SandboxInfo:
        """Ask again. Raises no_such_sandbox."""
        self.info = await self._client.within(request_timeout).get_sandbox(self.info.id)
        return self.info

    async def is_running(self, *, request_timeout: float | None = None) -> bool:
        """False also when it is paused, or gone."""
        try:
            return (await self.get_info(request_timeout=request_timeout)).state == "running"
        except SandptyError as error:
            if error.reason.name == "no_such_sandbox":
                return False
            raise

    async def set_timeout(self, timeout: float, *, request_timeout: float | None = None) -> None:
        """Its end, in seconds from now; sooner or later than it was."""
        self.info = await self._client.within(request_timeout).set_deadline(self.info.id, timeout_s=timeout)

    async def pause(self, *, memory: bool = True, request_timeout: float | None = None) -> None:
        """Stop it where it is; without `memory` only its files are kept. Raises already_paused."""
        self.info = await self._client.within(request_timeout).pause_sandbox(self.info.id, memory=memory)

    async def resume(self, timeout: float = TIMEOUT_S, *, request_timeout: float | None = None) -> None:
        """Go on. Raises conflict when it is running."""
        self.info = await self._client.within(request_timeout).resume_sandbox(self.info.id, timeout_s=timeout)

    async def kill(self, *, request_timeout: float | None = None) -> bool:
        """End it with all that is in it; False when it is gone already."""
        try:
            await self._client.within(request_timeout).kill_sandbox(self.info.id)
        except SandptyError as error:
            if error.reason.name == "no_such_sandbox":
                return False
            raise
        return True

    async def stop(self) -> bool:
        """The same as `kill`, as Hyperbrowser's SDK calls it."""
        return await self.kill()

    async def close(self) -> None:
        """Close this client's connections. The sandbox goes on."""
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kills it."""
        try:
            await self.kill()
        finally:
            await self.close()
