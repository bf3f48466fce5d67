"""After a restart: which sandboxes still live, and what has to be cleaned up."""

from __future__ import annotations

import contextlib
import logging
import os

from sandpty.config import DataDir
from sandpty.isolation.driver import Driver, Plan, Started
from sandpty.supervisor import state
from sandpty.supervisor.entry import Entry
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.supervisor.pool import Pool
from sandpty.wire.errors import SandptyError

log = logging.getLogger(__name__)


async def adopt_all(data: DataDir, driver: Driver, sandboxes: Sandboxes, pool: Pool) -> None:
    """Take over what an earlier supervisor left. What cannot be taken over is removed; nothing is left half made."""
    for directory in sorted(data.sandboxes.iterdir()):
        try:
            meta = state.read(directory)
        except OSError as error:  # it may be another time
            log.error("sandbox %s cannot be read and is left alone: %s", directory.name, error)
            continue
        if meta is None or meta.tier != driver.name or meta.id != directory.name:
            log.warning("removing %s: it is not a complete sandbox of this tier", directory.name)
            await _remove_remains(driver, sandboxes, directory.name, meta, directory)
            continue
        entry = sandboxes.entries[meta.id] = Entry(meta, directory)
        try:
            await _adopt(driver, sandboxes, pool, entry)
        except (OSError, SandptyError) as error:
            log.error("sandbox %s cannot be adopted: %s", meta.id, error)
    _remove_stray_sockets(data, sandboxes)
    sandboxes.trash.sweep()


async def _adopt(driver: Driver, sandboxes: Sandboxes, pool: Pool, entry: Entry) -> None:
    meta = entry.meta
    rebooted = meta.host_boot_id != state.host_boot_id()
    alive = await driver.adopt(entry.plan, meta.started) and not rebooted and meta.pid > 0
    if alive:
        try:
            sandboxes.follow(entry)
        except ProcessLookupError:
            alive = False
    if meta.phase == "stopped":
        # The pause may have been cut short between its word and its deed, a resume before its word.
        entry.unfollow()
        await driver.stop(entry.plan, Started(0, 0) if rebooted else meta.started)
        meta.pid = meta.start_time = 0
        log.info("kept %s (paused to disk)", meta.id)
    elif not alive:
        log.info("sandbox %s did not survive%s", meta.id, " the restart of the machine" if rebooted else "")
        await sandboxes.forget(entry)
    elif meta.phase == "creating":
        await sandboxes.discard(entry)
    elif meta.phase == "warm":
        pool.adopt(entry)
    else:
        await (driver.freeze if meta.phase == "frozen" else driver.thaw)(entry.plan)
        log.info("adopted %s pid=%d %s", meta.id, meta.pid, meta.phase)


async def _remove_remains(
    driver: Driver, sandboxes: Sandboxes, sandbox_id: str, meta: state.Meta | None, directory: object
) -> None:
    if meta is not None and meta.tier == driver.name:
        plan: Plan = meta.plan(sandboxes.directory_of(sandbox_id))
        await driver.stop(plan, meta.started)
    sandboxes.trash.take(sandboxes.directory_of(sandbox_id))


def _remove_stray_sockets(data: DataDir, sandboxes: Sandboxes) -> None:
    for path in data.agents.glob("*.sock"):
        if path.name.removesuffix(".sock") not in sandboxes.entries:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
