"""Wait for a condition with a deadline: what tests use instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

POLL_S = 0.01


async def until(condition: Callable[[], Any | Awaitable[Any]], timeout_s: float = 10.0, what: str = "") -> Any:
    """Return the condition's first truthy value; raise TimeoutError when there is none within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what or condition}")
        await asyncio.sleep(POLL_S)


def until_sync(condition: Callable[[], Any], timeout_s: float = 10.0, what: str = "") -> Any:
    """The same for code without an event loop."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what or condition}")
        time.sleep(POLL_S)
    return value
