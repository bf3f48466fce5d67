"""Signals where the platform has them: as events of a loop (on Windows Ctrl-C is a KeyboardInterrupt), or caught."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")


@contextlib.contextmanager
def handled(names: tuple[str, ...], handler: Callable[[str], None]) -> Iterator[None]:
    """Call `handler` with the name of each signal that comes; those that this platform has not never come."""
    import asyncio

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
def caught(names: tuple[str, ...], handler: Callable[[str], None]) -> Iterator[None]:
    """The same without a loop: `handler` is called between two steps of the main thread, which goes on then."""
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = [
        (number, signal.signal(number, lambda number, _: handler(signal.Signals(number).name))) for number in numbers
    ]
    try:
        yield
    finally:
        for number, handled_before in before:
            signal.signal(number, signal.SIG_DFL if handled_before is None else handled_before)


@contextlib.contextmanager
def ending_signals() -> Iterator[asyncio.Future[str]]:
    """The first signal that asks a program to end."""
    import asyncio

    asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_signal(name: str) -> None:
        if not asked.done():
            asked.set_result(name)

    with handled(ENDING, on_signal):
        yield asked
