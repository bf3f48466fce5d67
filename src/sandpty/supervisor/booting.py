"""Starting a sandbox's agent: for the first time, or again on the files that are left of a pause."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence

from sandpty import config
from sandpty.isolation.driver import Driver
from sandpty.isolation.failures import failure
from sandpty.supervisor import state
from sandpty.supervisor.entry import Entry
from sandpty.supervisor.listening import listen
from sandpty.supervisor.parking import park, run_from_boot
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import FirstShell


class Booting:
    """`ended` is called with the entry when an agent that was started here ends."""

    def __init__(self, driver: Driver, server_uid: int, ended: Callable[[Entry], None]) -> None:
        self._driver = driver
        self._server_uid = server_uid
        self._ended = ended
        self._host_boot_id = state.host_boot_id()
        self.turn = asyncio.Semaphore(config.CREATES_IN_PARALLEL)  # to be held around `boot`

    async def boot(self, entry: Entry, shells: Sequence[FirstShell] = ()) -> None:
        """`shells`: to be started in advance, where sandboxes have accounts of their own."""
        meta = entry.meta
        meta.seen_ready = False  # of this boot
        # The agent will listen on it: made here, so that its path means nothing inside.
        listener = listen(meta.socket, self._server_uid, config.AGENT_BACKLOG)
        try:
            if self._driver.isolated:
                park(meta, shells)
                run_from_boot(meta)
            started = await self._driver.start(entry.plan, listener)
        finally:
            listener.close()
        meta.pid, meta.start_time, meta.host_boot_id = started.pid, started.start_time, self._host_boot_id
        try:
            entry.follow(self._ended)
        except ProcessLookupError:
            raise SandptyError("runtime_failed", "the agent ended at once") from None

    async def boot_again(self, entry: Entry, end_at: float) -> None:
        """On the files of an earlier boot, with a new boot id, until `end_at`. If it fails it is stopped, as before."""
        async with self.turn:
            if entry.meta.pid:  # the pause could not end it
                await self._driver.stop(entry.plan, entry.meta.started)
            entry.meta.boot_id = str(uuid.uuid4())
            try:
                await self.boot(entry)
                entry.change(phase="running", end_at=end_at)
            except Exception as error:
                entry.unfollow()
                await self._driver.stop(entry.plan, entry.meta.started)
                entry.meta.pid = entry.meta.start_time = 0
                if isinstance(error, OSError):
                    raise failure("the sandbox could not be made", error) from error
                raise
