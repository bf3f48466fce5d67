"""Run a helper program from the event loop without forking this process.

posix_spawn is a vfork: its cost does not grow with our memory (labs: fork of a 500 MB parent takes 27 ms). The end is
awaited through a pidfd, so no thread and no SIGCHLD handler is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def spawn(
    argv: Sequence[str],
    *,
    fd3: int | None = None,
    output: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Start `argv` (argv[0] an absolute path); returns its pid, which the caller must reap.

    stdin is empty, stdout and stderr go to `output` (appended) or nowhere; `fd3` becomes its descriptor 3.
    """
    sink = str(output) if output else os.devnull
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, sink, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    if fd3 is not None:
        actions.append((os.POSIX_SPAWN_DUP2, fd3, 3))
    # The supervisor ignores SIGPIPE and may block others; a child must start like from a shell.
    return os.posix_spawn(
        argv[0],
        list(argv),
        dict(ENVIRONMENT if env is None else env),
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    )


async def readable(fd: int, timeout_s: float) -> bool:
    """Wait until `fd` (a pidfd: its process has ended) is readable; False when it is not within `timeout_s`."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        async with asyncio.timeout(timeout_s):
            await ready
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True


def _reap(pid: int) -> int:
    """The wait status of a child that has ended or was just killed: no waiting to speak of."""
    return os.waitpid(pid, 0)[1]


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    fd3: int | None = None,
    output: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run `argv` to its end and return its exit status (128 + signal when a signal ended it).

    Raises TimeoutError after killing it. On cancellation it is killed and reaped too.
    """
    pid = spawn(argv, fd3=fd3, output=output, env=env)
    try:
        pidfd = os.pidfd_open(pid)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        _reap(pid)
        raise
    ended = False
    try:
        ended = await readable(pidfd, timeout_s)
    finally:
        if not ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        status = _reap(pid)
        os.close(pidfd)
    if not ended:
        raise TimeoutError(f"{Path(argv[0]).name} did not end within {timeout_s:g} s")
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
