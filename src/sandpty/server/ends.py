"""Whether a sandbox has ended under a request that was using it."""

from __future__ import annotations

import asyncio

from sandpty import config
from sandpty.server.context import Context
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox


def still_runs(context: Context, sandbox: Sandbox) -> bool:
    try:
        context.registry.running(sandbox.id)
    except SandptyError:
        return False
    return True


async def wait_for_the_end(context: Context, sandbox: Sandbox) -> None:
    """After its agent went silent: give the supervisor a moment to say that the sandbox has ended.

    The agent dies first, the supervisor cleans up and tells us then.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + config.END_NOTICE_S
    while still_runs(context, sandbox) and loop.time() < ends_at:  # noqa: ASYNC110 - the registry's view has no event
        await asyncio.sleep(config.END_NOTICE_POLL_S)
