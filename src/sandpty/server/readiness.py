"""A sandbox of a template with a ready command is handed out when that command has ended with 0."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable

from sandpty import config
from sandpty.server.guest_defaults import default_env
from sandpty.terminal import attachment, control
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import e2b_variables
from sandpty.wire.frames import Exit, Selector, Started
from sandpty.wire.template_commands import START_TAG, command_of
from sandpty.wire.verbs import Sandbox

_SLEEP = re.compile(r"\s*sleep\s+([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*")
_START_SOUGHT = 50  # how often it is looked for: its START was in the agent's queue before it ran


def has_to_start(sandbox: Sandbox) -> bool:
    """Whether there is anything to wait for."""
    return bool(sandbox.defaults.ready_cmd)


async def until_booted(sandbox: Sandbox) -> None:
    """As `until_ready`, for a sandbox of a template that was seen to become ready when it was built.

    A ready command that does nothing but sleep checks nothing, and is not slept to its end again. One that was seen to
    be ready while it waited for somebody is, unless its start command has failed since.
    """
    if sandbox.seen_ready and await _is_up(sandbox):
        return
    slept = _SLEEP.fullmatch(sandbox.defaults.ready_cmd)
    if slept is None:
        await until_ready(sandbox)
        return
    pause_s = min(float(slept[1]), config.READY_SLEEP_MAX_S)
    failing = asyncio.create_task(_failed_start(sandbox))
    try:
        done, _ = await asyncio.wait((failing,), timeout=pause_s)
        failed = failing.result() if done else None
        if failed is not None:
            raise SandptyError("not_ready", f"the start command ended with {told(failed)}")
        if done:  # it has ended well, or there is none
            await asyncio.sleep(0 if sandbox.defaults.start_cmd else pause_s)
    finally:
        failing.cancel()
        await asyncio.gather(failing, return_exceptions=True)


async def until_ready(
    sandbox: Sandbox, timeout_s: float = config.READY_TIMEOUT_S, tried: Callable[[Exit], None] = lambda status: None
) -> None:
    """Ask the ready command again and again. Raises not_ready when it is not within the time (seconds).

    A start command that fails is the end of it at once: then nothing will become ready. `tried` is told how each
    attempt ended.
    """
    asking = asyncio.create_task(_ask(sandbox, tried))
    failing = asyncio.create_task(_failed_start(sandbox))
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.wait((asking, failing), return_when=asyncio.FIRST_COMPLETED)
            if failing.done() and (failed := failing.result()) is not None:
                raise SandptyError("not_ready", f"the start command ended with {told(failed)}")
            await asking
    except TimeoutError:
        raise SandptyError("not_ready", f"the ready command did not end with 0 within {timeout_s:g} s") from None
    finally:
        for task in (asking, failing):
            task.cancel()
        await asyncio.gather(asking, failing, return_exceptions=True)


async def _ask(sandbox: Sandbox, tried: Callable[[Exit], None]) -> None:
    env = e2b_variables(sandbox.id, sandbox.template) | default_env(sandbox)
    start = command_of(sandbox.defaults, sandbox.defaults.ready_cmd, env)
    pause_s = config.READY_POLL_MIN_S
    while True:
        status = await _end_of(sandbox, await attachment.start_detached(sandbox.socket, start))
        tried(status)
        if status.value == 0 and not status.signalled:
            return
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, config.READY_POLL_MAX_S)


async def _end_of(sandbox: Sandbox, started: Started) -> Exit:
    selector = Selector.process(started.process)
    try:
        return await control.wait(sandbox.socket, selector)
    except asyncio.CancelledError:  # out of time: the attempt is over, too
        with contextlib.suppress(SandptyError):
            await control.signal(sandbox.socket, selector, 9)
        raise


async def _failed_start(sandbox: Sandbox) -> Exit | None:
    """How the start command failed; None once it has ended well, or when there is none. It may never end."""
    if not await start_is_there(sandbox):
        return None
    try:
        status = await control.wait(sandbox.socket, Selector.tagged(START_TAG))
    except SandptyError:
        return None  # whatever is wrong, the ready command finds it too
    return status if status.value != 0 or status.signalled else None


async def _is_up(sandbox: Sandbox) -> bool:
    """Whether the start command, if there is one, goes on or has ended well."""
    if not sandbox.defaults.start_cmd:
        return True
    status = (await control.stat(sandbox.socket, Selector.tagged(START_TAG))).exit
    return status is None or (status.value == 0 and not status.signalled)


async def start_is_there(sandbox: Sandbox) -> bool:
    """Wait until the start command was started; False when there is none."""
    if not sandbox.defaults.start_cmd:
        return False
    for _ in range(_START_SOUGHT):
        try:
            await control.stat(sandbox.socket, Selector.tagged(START_TAG))
            return True
        except SandptyError as error:
            if error.reason.name != "no_such_process":
                return False
        await asyncio.sleep(config.READY_POLL_MIN_S)
    return False


def told(status: Exit) -> str:
    """How a process ended, for a person."""
    return f"signal {status.value}" if status.signalled else f"exit code {status.value}"
