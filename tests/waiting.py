"""Wait for a condition with a deadline: what tests use instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any

POLL_S = 0.01
DEADLINE_S = 30.0  # of what takes a moment: a loaded machine takes many times as long, and a failure is rare
STILL_S = 0.5  # how long what stands still must stand: that nothing happens has no event of its own


async def until(condition: Callable[[], Any | Awaitable[Any]], timeout_s: float = DEADLINE_S, what: str = "") -> Any:
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


async def until_still(count: Callable[[], int], timeout_s: float = DEADLINE_S, what: str = "") -> int:
    """Return a count once it is not 0 and has not moved for STILL_S; raise TimeoutError when it moves on."""
    last, since = 0, time.monotonic()

    def still() -> bool:
        nonlocal last, since
        if (now := count()) != last:
            last, since = now, time.monotonic()
        return last != 0 and time.monotonic() - since > STILL_S

    await until(still, timeout_s, what)
    return last


@types.coroutine
def turn() -> Generator[None]:
    """Everything that is ready has its turn first. No time passes."""
    yield


async def pace(pause_s: float, why: str) -> None:
    """What a peer that is slow on purpose takes between two things; `why` says who. No test waits by it."""
    assert why
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=pause_s)


def until_sync(condition: Callable[[], Any], timeout_s: float = DEADLINE_S, what: str = "") -> Any:
    """The same for code without an event loop."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what or condition}")
        time.sleep(POLL_S)
    return value
