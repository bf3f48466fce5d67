"""After a restart: which sandboxes still live, and what has to be cleaned up."""

from __future__ import annotations

import contextlib
import logging
import os

from sandpty.config import DataDir
from sandpty.isolation import process_table
from sandpty.isolation.driver import Driver, Started, TierRefusedError
from sandpty.supervisor import state
from sandpty.supervisor.entry import Entry
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.supervisor.pool import Pool
from sandpty.wire.errors import SandptyError

log = logging.getLogger(__name__)


def refuse_beside_others(data: DataDir, driver: Driver) -> None:
    """Raises TierRefusedError while sandboxes of another tier run: only that tier can end or pause them in time."""
    running: dict[str, int] = {}
    for directory in data.sandboxes.iterdir():
        with contextlib.suppress(OSError):
            meta = state.read(directory)
            if meta is not None and meta.tier != driver.name and _runs(meta):
                running[meta.tier] = running.get(meta.tier, 0) + 1
    for tier, count in running.items():
        raise TierRefusedError(
            f"sandboxes of the isolation `{tier}` still run here ({count}): start with `--isolation {tier}`, and "
            f"pause them to disk or end them (`sandpty down`) before you change it"
        )


def _runs(meta: state.Meta) -> bool:
    return meta.pid > 0 and meta.host_boot_id == state.host_boot_id() and process_table.is_alive(meta.started)


async def adopt_all(data: DataDir, driver: Driver, sandboxes: Sandboxes, pool: Pool) -> None:
    """Take over what an earlier supervisor left. What is half made is removed; what is of another tier is kept."""
    for directory in sorted(data.sandboxes.iterdir()):
        try:
            meta = state.read(directory)
        except OSError as error:  # it may be another time
            log.error("sandbox %s cannot be read and is left alone: %s", directory.name, error)
            sandboxes.left_alone.add(directory.name)
            continue
        if meta is None or meta.id != directory.name:
            log.warning("removing %s: it is not a complete sandbox", directory.name)
            sandboxes.trash.take(directory)
            continue
        if meta.tier != driver.name and meta.phase != "stopped":
            # What it stands on goes: its own tier would remove it.
            log.warning("sandbox %s (%s) did not survive, and is left for its own tier", meta.id, meta.tier)
            continue
        entry = sandboxes.entries[meta.id] = Entry(meta, directory)
        if meta.tier != driver.name:
            meta.pid = meta.start_time = 0
            log.info("kept %s (paused to disk; it needs --isolation %s)", meta.id, meta.tier)
            continue
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
        await sandboxes.forget(entry, "host_restart" if rebooted else "failed")
    elif meta.phase == "creating":
        await sandboxes.discard(entry)
    elif meta.phase == "warm":
        pool.adopt(entry)
    else:
        await (driver.freeze if meta.phase == "frozen" else driver.thaw)(entry.plan)
        log.info("adopted %s pid=%d %s", meta.id, meta.pid, meta.phase)


def _remove_stray_sockets(data: DataDir, sandboxes: Sandboxes) -> None:
    for path in data.agents.glob("*.sock"):
        if path.name.removesuffix(".sock") not in sandboxes.entries:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
