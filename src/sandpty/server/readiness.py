"""A sandbox of a template with a ready command is handed out when that command has ended with 0."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from sandpty import config
from sandpty.server.guest_defaults import default_env
from sandpty.terminal import attachment, control
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import e2b_variables
from sandpty.wire.frames import Exit, Selector, Started
from sandpty.wire.template_commands import START_TAG, command_of
from sandpty.wire.verbs import Sandbox

log = logging.getLogger(__name__)


def has_to_start(sandbox: Sandbox) -> bool:
    """Whether there is anything to wait for."""
    return bool(sandbox.defaults.ready_cmd)


async def until_ready(
    sandbox: Sandbox, timeout_s: float = config.READY_TIMEOUT_S, tried: Callable[[Exit], None] = lambda status: None
) -> None:
    """Ask the ready command again and again. Raises not_ready when it is not within the time.

    The time of a start command that failed is not waited for: then nothing will become ready. `tried` is told how each
    attempt ended.
    """
    env = e2b_variables(sandbox.id, sandbox.template) | default_env(sandbox)
    start = command_of(sandbox.defaults, sandbox.defaults.ready_cmd, env)
    try:
        async with asyncio.timeout(timeout_s):
            pause_s = config.READY_POLL_MIN_S
            while True:
                status = await _end_of(sandbox, await attachment.start_detached(sandbox.socket, start))
                tried(status)
                if status.value == 0 and not status.signalled:
                    return
                if (failed := await _failed_start(sandbox)) is not None:
                    raise SandptyError("not_ready", f"the start command ended with {told(failed)}")
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, config.READY_POLL_MAX_S)
    except TimeoutError:
        raise SandptyError("not_ready", f"the ready command did not end with 0 within {timeout_s:g} s") from None


async def _end_of(sandbox: Sandbox, started: Started) -> Exit:
    selector = Selector.process(started.process)
    try:
        return await control.wait(sandbox.socket, selector)
    except asyncio.CancelledError:  # out of time: the attempt is over, too
        with contextlib.suppress(SandptyError):
            await control.signal(sandbox.socket, selector, 9)
        raise


async def _failed_start(sandbox: Sandbox) -> Exit | None:
    """How the start command failed, if it has."""
    if not sandbox.defaults.start_cmd:
        return None
    try:
        info = await control.stat(sandbox.socket, Selector.tagged(START_TAG))
    except SandptyError:
        return None
    status = info.exit
    return status if status is not None and (status.value != 0 or status.signalled) else None


def told(status: Exit) -> str:
    """How a process ended, for a person."""
    return f"signal {status.value}" if status.signalled else f"exit code {status.value}"
