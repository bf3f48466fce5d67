"""Contexts: a language, a working directory and a kernel that keeps the variables. One run at a time in each."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

import zmq.asyncio

from . import environments, limits, specs
from .http import ProblemError
from .kernel import Kernel, KernelError
from .runs import Last, Outbox, Run

_DENO = ("javascript", "typescript")  # one kernel of Deno's runs both


def _asked(code: str, *, silent: bool) -> dict[str, object]:
    """The content of an execute request. What is silent is no part of the history, and not counted."""
    return {
        "code": code,
        "silent": silent,
        "store_history": not silent,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": False,
    }


class Context:
    """A kernel is started when the first run needs it, and again when it died."""

    def __init__(self, zmq_context: zmq.asyncio.Context, spec: specs.Spec, language: str, cwd: str) -> None:
        self.id = str(uuid.uuid4())
        self.language = language
        self.cwd = cwd
        self.environment: dict[str, str] = {}
        self.lock = asyncio.Lock()
        self._zmq = zmq_context
        self._spec = spec
        self._kernel: Kernel | None = None
        self._told: dict[str, str] = {}  # the environment that the kernel knows

    def shown(self) -> dict[str, str]:
        return {"id": self.id, "language": self.language, "cwd": self.cwd}

    async def ready(self) -> Kernel:
        """The kernel, started if there is none. The lock is held. Raises KernelError."""
        if self._kernel is not None and self._kernel.ended.is_set():
            await self.end()
        if self._kernel is None:
            given = self.environment  # it may become another one while the kernel starts
            kernel = Kernel(self._zmq, self._spec, self.cwd, {**os.environ, **given})
            try:
                await kernel.wait_ready()
            except BaseException:
                await kernel.close()
                raise
            self._kernel, self._told = kernel, given
        return self._kernel

    async def end(self) -> None:
        """End the kernel and what it started; the next run has a new one."""
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            await kernel.close()

    async def run(self, code: str, envs: dict[str, str], outbox: Outbox) -> None:
        """Run code to its end. Cancelled: it is interrupted. The lock is held. What fails is said in the outbox."""
        try:
            kernel = await self.ready()
            outbox.kernel = kernel
            if (given := self.environment) != self._told:
                await self._silently(kernel, environments.setting(self.language, given, keep=True))
                self._told = given
            if envs:
                await self._silently(kernel, environments.setting(self.language, envs, keep=False))
            try:
                await self._execute(kernel, code, outbox)
            finally:
                if envs and not kernel.ended.is_set():
                    await asyncio.shield(self._silently(kernel, environments.restoring(self.language, envs)))
        except KernelError as error:
            outbox.put({"type": "error", "name": "KernelError", "value": str(error), "traceback": str(error)})

    async def _execute(self, kernel: Kernel, code: str, outbox: Outbox | None) -> None:
        run = Run(outbox, self.language)
        message_id = await kernel.request("execute_request", _asked(code, silent=outbox is None), run.heard)
        try:
            await self._done(kernel, run)
            if outbox is not None and self.language in _DENO:
                await self._overtaken(kernel, run)
        finally:
            kernel.forget(message_id)

    async def _done(self, kernel: Kernel, run: Run) -> None:
        """Cancelled, it interrupts the run."""
        try:
            await kernel.either(run.done)
        except asyncio.CancelledError:
            await self._interrupt(kernel, run)
            raise
        if not run.done.is_set():
            what = f"the kernel ended while the code ran: {kernel.end_status}"
            raise KernelError(f"{what}; the next run has a new kernel without variables")

    async def _overtaken(self, kernel: Kernel, run: Run) -> None:
        """Deno's kernel may say that it is idle before it says what the code printed, and what came of it.

        A word that it is made to print then leaves it after them. What comes until then is the run's.
        """
        last = Last(run)
        message_id = await kernel.request("execute_request", _asked(last.code, silent=True), last.heard)
        try:
            await kernel.either(last.passed, limits.OVERTAKEN_TIMEOUT_S)
            while kernel.paused:  # its client is slow, and what it says waits for that
                await kernel.either(last.passed, limits.OVERTAKEN_TIMEOUT_S)
        finally:
            kernel.forget(message_id)

    async def _interrupt(self, kernel: Kernel, run: Run) -> None:
        """The client is gone. A kernel that cannot be interrupted is ended when its language loses nothing by it."""
        kernel.interrupt()
        try:
            await asyncio.shield(kernel.either(run.done, limits.INTERRUPT_TIMEOUT_S))
        finally:
            if not run.done.is_set() and self.language in _DENO:
                await asyncio.shield(self.end())

    async def _silently(self, kernel: Kernel, code: str) -> None:
        if code:
            await self._execute(kernel, code, None)


class Contexts:
    """All contexts of the sandbox, and for each language the one that runs what names no context."""

    def __init__(self, home: str) -> None:
        self._zmq = zmq.asyncio.Context()
        self._home = home
        self._all: dict[str, Context] = {}
        self._defaults: dict[tuple[str, ...], str] = {}
        self.environment: dict[str, str] = {}

    def list(self) -> list[dict[str, str]]:
        return [context.shown() for context in self._all.values()]

    def create(self, language: str | None, cwd: str | None) -> Context:
        """Its kernel is not started yet. Raises ProblemError."""
        name = specs.normalized(language)
        spec = specs.find(name)
        if len(self._all) >= limits.CONTEXTS_MAX:
            raise ProblemError(429, f"there are {limits.CONTEXTS_MAX} contexts; remove one first")
        directory = cwd or self._home
        if not Path(directory).is_dir() or not os.access(directory, os.X_OK):
            raise ProblemError(400, f"the working directory {directory[:200]!r} does not exist or cannot be entered")
        context = Context(self._zmq, spec, name, os.path.abspath(directory))
        context.environment = self.environment
        self._all[context.id] = context
        return context

    def default(self, language: str | None) -> Context:
        """Raises ProblemError when no kernel runs the language."""
        name = specs.normalized(language)
        spec = specs.find(name)  # JavaScript and TypeScript share one
        context = self._all.get(self._defaults.get(spec.argv, ""))
        if context is None:
            context = self.create(name, None)
            self._defaults[spec.argv] = context.id
        return context

    def get(self, context_id: str) -> Context:
        """Raises ProblemError (404)."""
        context = self._all.get(context_id)
        if context is None:
            raise ProblemError(404, f"Context {context_id[:80]} not found")
        return context

    async def remove(self, context_id: str) -> None:
        context = self.get(context_id)
        del self._all[context_id]
        await context.end()

    def set_environment(self, values: dict[str, str]) -> None:
        """For every kernel, before its next run."""
        self.environment = values
        for context in self._all.values():
            context.environment = values

    async def close(self) -> None:
        for context in list(self._all.values()):
            await context.end()
        self._zmq.term()
