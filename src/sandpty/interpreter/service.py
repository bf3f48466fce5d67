"""What E2B's code interpreter SDKs ask for: /execute, /contexts. Source: e2b_code_interpreter 2.11.5, its client."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json

from . import environments, limits
from .contexts import Context, Contexts
from .http import Connection, ProblemError, Request
from .kernel import KernelError
from .runs import Outbox


class Service:
    """Routes requests; `handle` is the server's handler."""

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts

    async def handle(self, request: Request, connection: Connection) -> None:
        if (given := request.headers.get(limits.ENVIRONMENT_HEADER)) is not None:
            self._contexts.set_environment(_given_environment(given))
        words = [word for word in request.path.split("/") if word]
        match request.method, words:
            case "POST", ["execute"]:
                await self._execute(request, connection)
            case "GET", ["contexts"]:
                await connection.answer(200, self._contexts.list())
            case "POST", ["contexts"]:
                await self._create(request, connection)
            case "DELETE", ["contexts", context_id]:
                await self._contexts.remove(context_id)
                await connection.answer(204)
            case "POST", ["contexts", context_id, "restart"]:
                await self._restart(self._contexts.get(context_id), connection)
            case "GET", ["health"]:
                await connection.answer(200, {"contexts": len(self._contexts.list())})
            case _:
                raise ProblemError(404, f"{request.method} {request.path[:200]} is not served here")

    async def _create(self, request: Request, connection: Connection) -> None:
        value = request.json()
        context = self._contexts.create(_text(value, "language"), _text(value, "cwd"))
        try:
            async with context.lock:
                await context.ready()
        except BaseException as error:
            await self._contexts.remove(context.id)
            if isinstance(error, KernelError):
                raise ProblemError(500, str(error)) from error
            raise
        await connection.answer(201, context.shown())

    async def _restart(self, context: Context, connection: Connection) -> None:
        # Not behind the lock: what runs there is to end.
        await context.end()
        async with context.lock:
            try:
                await context.ready()
            except KernelError as error:
                raise ProblemError(500, str(error)) from error
        await connection.answer(200, context.shown())

    async def _execute(self, request: Request, connection: Connection) -> None:
        value = request.json()
        code, context_id = _text(value, "code"), _text(value, "context_id")
        language = _text(value, "language")
        if code is None:
            raise ProblemError(400, "code is missing")
        if context_id and language:
            raise ProblemError(400, "only one of context_id and language can be given")
        envs = _environment(value.get("env_vars"))
        context = self._contexts.get(context_id) if context_id else self._contexts.default(language)
        await connection.start_lines()
        outbox = Outbox(connection)
        async with connection.watched():
            await _run(context, code, envs, outbox=outbox, connection=connection)
        await connection.end_lines()


async def _run(context: Context, code: str, envs: dict[str, str], *, outbox: Outbox, connection: Connection) -> None:
    """Run it while the client listens; interrupt it when the client hangs up. Raises ConnectionError then."""

    async def work() -> None:
        async with context.lock:
            await context.run(code, envs, outbox)

    working = asyncio.create_task(work())
    sending = asyncio.create_task(outbox.run())
    leaving = asyncio.create_task(connection.gone.wait())
    try:
        await asyncio.wait([working, sending, leaving], return_when=asyncio.FIRST_COMPLETED)
        if leaving.done() or not working.done():
            raise ConnectionResetError("the client is gone")
        await working
        outbox.close()
        await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            raise ConnectionResetError("the client is gone")
        await sending
    finally:
        if outbox.kernel is not None:
            outbox.kernel.resume()
        for task in (sending, leaving, working):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await task


def _text(value: dict[str, object], name: str) -> str | None:
    text = value.get(name)
    if text is not None and not isinstance(text, str):
        raise ProblemError(400, f"{name} is not a string")
    return text


def _given_environment(text: str) -> dict[str, str]:
    try:
        return _environment(json.loads(base64.b64decode(text, validate=True)))
    except ValueError:
        raise ProblemError(400, "the environment's header is malformed") from None


def _environment(value: object) -> dict[str, str]:
    try:
        return environments.checked(value) if value is not None else {}
    except ValueError as error:
        raise ProblemError(400, str(error)) from None
