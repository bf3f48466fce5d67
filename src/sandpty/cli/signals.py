"""Signals as events of a loop, where the platform has them: Windows has Ctrl-C alone, as a KeyboardInterrupt."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")


@contextlib.contextmanager
def handled(names: tuple[str, ...], handler: Callable[[str], None]) -> Iterator[None]:
    """Call `handler` with the name of each signal that comes; those that this platform has not never come."""
    loop = asyncio.get_running_loop()
    added = []
    for name in names:
        number = getattr(signal, name, None)
        if number is not None:
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, handler, name)
                added.append(number)
    try:
        yield
    finally:
        for number in added:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def ending_signals() -> Iterator[asyncio.Future[str]]:
    """The first signal that asks a program to end."""
    asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_signal(name: str) -> None:
        if not asked.done():
            asked.set_result(name)

    with handled(ENDING, on_signal):
        yield asked
