"""`sandpty-interpreter`: serve until told to end. The Python kernel is started at once: the first run is quick."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys

from . import limits
from .contexts import Contexts
from .http import Server
from .kernel import KernelError
from .service import Service

_ALREADY_SERVED = 3  # exit status: somebody listens there, probably another one of us


async def _warm(contexts: Contexts) -> None:
    context = contexts.default("python")
    async with context.lock:
        with contextlib.suppress(KernelError):  # the first run will say so
            await context.ready()


async def serve(home: str) -> int:
    """Returns the exit status."""
    contexts = Contexts(home)
    try:
        server = await Server(Service(contexts).handle).start(limits.HOST, limits.PORT)
    except OSError as error:
        print(f"sandpty-interpreter: port {limits.PORT}: {error.strerror}", file=sys.stderr)
        return _ALREADY_SERVED if error.errno == errno.EADDRINUSE else 1
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    warming = asyncio.create_task(_warm(contexts))
    await ending.wait()
    server.close()
    warming.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await warming
    await contexts.close()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(serve(os.path.expanduser("~"))))
