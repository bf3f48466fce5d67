"""The hidden sandbox in which a build's steps run: made when a step needs it, kept as a layer when a step changed it.

It belongs to nobody who could ask for it (`build:` and the team), has the limits and the network policy that any
sandbox of the template has, and ends with the build's time at the latest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence

from sandpty import config
from sandpty.server.builds.log import Lines
from sandpty.server.builds.recipe import Situation
from sandpty.server.supervisor_client import SupervisorClient
from sandpty.terminal import attachment
from sandpty.terminal.attachment import Attachment
from sandpty.wire import verbs
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import USER, e2b_variables
from sandpty.wire.frames import NEVER_MS, Exit, Gap, Output, Start, StartFlags
from sandpty.wire.templates import Defaults, Files
from sandpty.wire.verbs import Limits, Sandbox, Snapshot

log = logging.getLogger(__name__)
OWNER_PREFIX = "build:"  # no team's id begins so


def owner_of(team: str) -> str:
    """Whom the sandboxes and layers of a team's builds belong to."""
    return OWNER_PREFIX + team


class Workshop:
    """Use as `async with`: leaving it ends the sandbox. Methods raise SandptyError."""

    def __init__(self, client: SupervisorClient, team: str, template: str, limits: Limits) -> None:
        self._client = client
        self._owner = owner_of(team)
        self._template = template
        self._limits = limits
        self._sandbox: Sandbox | None = None

    async def __aenter__(self) -> Workshop:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def kept(self, key: str) -> Files | None:
        """What an earlier build has left under this key."""
        try:
            layer = await self._client.call("layer", {"owner": self._owner, "key": key}, Snapshot)
        except SandptyError as error:
            if error.reason.name != "no_such_snapshot":
                raise
            return None
        return Files("snapshot", layer.id)

    async def enter(self, files: Files, defaults: Defaults | None = None) -> Sandbox:
        """The sandbox, made from these files if there is none. defaults: a start command among them runs from boot."""
        if self._sandbox is None:
            args = verbs.CreateArgs(
                template=self._template,
                files=files,
                defaults=defaults or Defaults(),
                end_at=time.time() + config.BUILD_TIMEOUT_S,
                limits=self._limits,
                owner=self._owner,
            )
            made = asyncio.ensure_future(self._client.call("create", args, Sandbox))
            try:
                self._sandbox = await asyncio.shield(made)
            except asyncio.CancelledError:
                made.add_done_callback(self._left_late)
                raise
        return self._sandbox

    def _left_late(self, made: asyncio.Future[Sandbox]) -> None:
        """The build was cancelled while its sandbox was being made."""
        if not made.cancelled() and made.exception() is None:
            self._sandbox = made.result()
            self._leaving = asyncio.ensure_future(self.leave())

    async def run(
        self,
        situation: Situation,
        argv: Sequence[str],
        lines: Lines,
        *,
        user: str = "",
        stdin: AsyncIterator[bytes] | None = None,
    ) -> Exit:
        """Run a program to its end; its output goes to `lines`. user: instead of the template's, in its directory."""
        sandbox = await self.enter(situation.files)
        defaults = situation.defaults
        start = Start(
            argv=tuple(argv),
            env=e2b_variables(sandbox.id, sandbox.template) | defaults.env,
            user=user or defaults.user or USER,
            cwd=defaults.workdir if not user else situation.directory,
            flags=StartFlags.STDIN if stdin is not None else StartFlags(0),
            window=config.ATTACH_WINDOW_BYTES,
            stall_ms=NEVER_MS,
        )
        async with await _started(sandbox, start) as attached:
            feeding = asyncio.create_task(_feed(attached, stdin)) if stdin is not None else None
            try:
                status = await follow(attached, lines)
            finally:
                if feeding is not None:
                    feeding.cancel()
                    await asyncio.gather(feeding, return_exceptions=True)
        lines.end()
        return status

    async def seal(self, key: str) -> Files:
        """Keep what is in the sandbox as a layer; the sandbox is over."""
        assert self._sandbox is not None
        sandbox, self._sandbox = self._sandbox, None
        args = verbs.SnapshotArgs(id=sandbox.id, layer=key)
        layer = await self._client.call("snapshot", args, Snapshot, timeout_s=config.LAYER_SEAL_TIMEOUT_S)
        return Files("snapshot", layer.id)

    async def leave(self) -> None:
        """End the sandbox, if there is one, and forget what was done in it."""
        if self._sandbox is not None:
            sandbox, self._sandbox = self._sandbox, None
            with contextlib.suppress(SandptyError):
                await asyncio.shield(self._client.call("kill", {"id": sandbox.id}, dict))


async def _started(sandbox: Sandbox, start: Start) -> Attachment:
    """Raises SandptyError, which names the program that is missing: steps need a shell, and an image may have none."""
    try:
        return await attachment.start(sandbox.socket, start)
    except SandptyError as error:
        if error.reason.name != "start_failed":
            raise
        raise SandptyError("start_failed", f"{start.argv[0]}: {error.message}") from error


async def follow(attached: Attachment, lines: Lines) -> Exit:
    """Read a process to its end."""
    while True:
        match event := await attached.receive():
            case Output():
                lines.feed(event.stream, event.data)
            case Gap():
                lines.feed(2, f"({event.end - event.start} bytes of output are lost)\n".encode())
            case Exit():
                return event
        attached.acknowledge()


async def _feed(attached: Attachment, pieces: AsyncIterator[bytes]) -> None:
    with contextlib.suppress(SandptyError):  # it has ended without reading all: its exit status says what there is to
        async for piece in pieces:
            await attached.send_input(piece)
        await attached.close_stdin()
