"""One build, from its base to a template that sandboxes can be made from."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import msgspec

from sandpty import config
from sandpty.server import readiness
from sandpty.server.builds.bases import Bases
from sandpty.server.builds.log import BuildLog, Lines
from sandpty.server.builds.recipe import BASE_STEP, FINAL_STEP, Recipe, Situation, Step, layer_key
from sandpty.server.builds.steps import StepError, Steps, explain
from sandpty.server.builds.workshop import Workshop, follow
from sandpty.terminal import attachment
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import Attach, Exit, From, Selector
from sandpty.wire.template_commands import START_TAG
from sandpty.wire.templates import Files
from sandpty.wire.verbs import Sandbox

T = TypeVar("T")


class BuildError(Exception):
    """The build failed at `step`; the message is for a person."""

    def __init__(self, step: str, message: str) -> None:
        super().__init__(message)
        self.step = step


class Building:
    """`run` it once. `tried`: situations whose start command was seen to become ready."""

    def __init__(
        self,
        recipe: Recipe,
        log: BuildLog,
        *,
        bases: Bases,
        workshop: Workshop,
        steps: Steps,
        tried: Callable[[Situation], bool],
    ) -> None:
        self._recipe = recipe
        self._log = log
        self._bases = bases
        self._workshop = workshop
        self._steps = steps
        self._tried = tried
        self._forced = recipe.force

    async def run(self) -> Situation:
        """What sandboxes of the template start with. Raises BuildError."""
        try:
            async with asyncio.timeout(config.BUILD_TIMEOUT_S), self._workshop:
                self._log.add(f"FROM {self._recipe.base.image or self._recipe.base.template}", step=BASE_STEP)
                situation = await _at(BASE_STEP, self._bases.situation(self._recipe.base, self._log))
                for number, step in enumerate(self._recipe.steps, 1):
                    situation = await self._step(situation, number, step)
                await self._workshop.leave()
                situation = self._with_commands(situation)
                await _at(FINAL_STEP, self._finish(situation))
                return situation
        except TimeoutError:
            raise BuildError("", f"the build took longer than {config.BUILD_TIMEOUT_S:g} s") from None

    # --- steps ---

    async def _step(self, situation: Situation, number: int, step: Step) -> Situation:
        name, place = str(number), f"[{number}/{len(self._recipe.steps)}]"
        self._forced = self._forced or step.force
        key = layer_key(situation, step)
        if (files := await self._kept(key)) is not None:
            self._log.add(f"CACHED {place} {step.text}", step=name)
            await self._workshop.leave()  # it stands on the layer before
            return situation.after(step).with_files(files)
        self._log.add(f"{place} {step.text}", step=name)
        lines = Lines(self._log, name, f"{place} ")
        try:
            after = await self._steps.do(situation, step, lines)
        except (StepError, SandptyError) as error:
            lines.end()
            raise BuildError(
                name, f"step {number} of {len(self._recipe.steps)} failed: {step.text}\n{explain(error)}"
            ) from error
        if not self._steps.changed:
            return after  # so far there is nothing to keep; the sandbox goes on for the next step
        return after.with_files(await _at(name, self._workshop.seal(key)))

    async def _kept(self, key: str) -> Files | None:
        return None if self._forced else await self._workshop.kept(key)

    # --- the end ---

    def _with_commands(self, situation: Situation) -> Situation:
        """A start command of the template below goes on holding unless this one has its own."""
        recipe = self._recipe
        if not (recipe.start_cmd or recipe.ready_cmd):
            return situation
        commands = {"start_cmd": recipe.start_cmd, "ready_cmd": recipe.ready_cmd}
        return replace(situation, defaults=msgspec.structs.replace(situation.defaults, **commands))

    async def _finish(self, situation: Situation) -> None:
        """See that a sandbox of it starts, and becomes ready. Raises StepError, SandptyError."""
        defaults = situation.defaults
        if not (defaults.start_cmd or defaults.ready_cmd):
            return
        if not self._forced and self._tried(situation):
            self._log.add("CACHED start command", step=FINAL_STEP)
            return
        self._log.add(f"start command: {defaults.start_cmd or '(none)'}", step=FINAL_STEP)
        sandbox = await self._workshop.enter(situation.files, defaults)
        lines = Lines(self._log, FINAL_STEP, "[start] ")
        following = asyncio.create_task(_follow_start(sandbox, lines))
        try:
            await self._until_ready(sandbox, following)
        except SandptyError as error:
            await asyncio.wait([following], timeout=config.START_SEEN_S)
            said = "\n".join(lines.tail)
            raise StepError(f"{error.message}; its last output:\n{said}" if said else error.message) from error
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            lines.end()

    async def _until_ready(self, sandbox: Sandbox, following: asyncio.Task[Exit | None]) -> None:
        if sandbox.defaults.ready_cmd:
            self._log.add(f"ready command: {sandbox.defaults.ready_cmd}", step=FINAL_STEP)
            await readiness.until_ready(sandbox, config.BUILD_READY_TIMEOUT_S, self._tell_tried)
            return
        done, _ = await asyncio.wait([following], timeout=config.START_SEEN_S)
        status = following.result() if done else None
        if status is not None and (status.value or status.signalled):
            raise SandptyError("not_ready", f"the start command ended with {readiness.told(status)}")

    def _tell_tried(self, status: Exit) -> None:
        well = status.value == 0 and not status.signalled
        self._log.add(
            "ready" if well else f"not ready yet: {readiness.told(status)}", "info" if well else "debug", FINAL_STEP
        )


async def _follow_start(sandbox: Sandbox, lines: Lines) -> Exit | None:
    """What the start command says, from its first byte on; how it ends, if it does."""
    with contextlib.suppress(SandptyError):
        if not await readiness.start_is_there(sandbox):
            return None
        request = Attach(Selector.tagged(START_TAG), may_write=False, origin=From.OFFSET, value=0)
        async with await attachment.attach(sandbox.socket, request) as attached:
            return await follow(attached, lines)
    return None


async def _at(step: str, doing: Awaitable[T]) -> T:
    """Whatever fails in it is that step's. Raises BuildError."""
    try:
        return await doing
    except (StepError, SandptyError) as error:
        raise BuildError(step, explain(error)) from error
