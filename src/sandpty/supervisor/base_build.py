"""Builds `base` in the background when it is missing, and switches to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

from sandpty.supervisor.pool import Pool
from sandpty.templates import base
from sandpty.templates.catalog import Catalog

log = logging.getLogger(__name__)
LOG_EVERY_PERCENT = 10
_END_TIMEOUT_S = 10.0


async def follow_base(templates: Path, catalog: Catalog, pool: Pool) -> None:
    """Returns when `base` is in use or cannot be built (the catalog's `detail` says why)."""
    ready = base.ready(templates)
    if ready is None:
        log.info("template base is not built: host-usr serves until it is (it takes a minute or two)")
        catalog.base_progress("starting")
        reason = await _build(templates, catalog)
        ready = base.ready(templates)
        if ready is None:
            catalog.base_progress(f"the build failed: {reason}", failed=True)
            log.error("template base cannot be built: %s; host-usr goes on serving", reason)
            return
        log.info("template base is ready and serves from now on")
    catalog.base_ready(ready)
    pool.wake.set()


async def _build(templates: Path, catalog: Catalog) -> str:
    """Run the builder, a program of its own at low priority; returns its last line."""
    argv = [sys.executable, "-m", "sandpty.templates.build", "--templates-dir", str(templates), "--plain", "base"]
    for polite in (["ionice", "-c", "3"], ["nice", "-n", "10"]):
        if path := shutil.which(polite[0]):
            argv = [path, *polite[1:], *argv]
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return await _read(process, catalog)
    finally:
        await _end(process)


async def _read(process: asyncio.subprocess.Process, catalog: Catalog) -> str:
    assert process.stdout is not None
    last, said = "", -LOG_EVERY_PERCENT
    while line := await process.stdout.readline():
        last = line.decode("utf-8", "replace").strip()
        word, _, rest = last.partition(" ")
        percent, _, text = rest.partition(" ")
        if word == "progress" and percent.isdigit():
            catalog.base_progress(f"{percent} %, {text}")
            if int(percent) >= said + LOG_EVERY_PERCENT:
                said = int(percent)
                log.info("template base: %d %% %s", said, text)
    await process.wait()
    return last.removeprefix("sandpty: template base: ")


async def _end(process: asyncio.subprocess.Process) -> None:
    """The builder cleans up after itself when asked to end."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_END_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
