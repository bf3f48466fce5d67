"""Builds templates in the background when they are missing, and switches to them."""

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
from sandpty.templates import collecting, stacks
from sandpty.templates.catalog import Catalog
from sandpty.templates.names import BASE
from sandpty.templates.progress import parse

log = logging.getLogger(__name__)
LOG_EVERY_PERCENT = 10
RETRY_S = 600.0  # after a build that failed: what was wrong may be the network
_END_TIMEOUT_S = 10.0


class Building:
    """Builds what is missing: `base` at once, any other template when somebody asks for it. `run` it as a task."""

    def __init__(self, templates: Path, catalog: Catalog, pool: Pool) -> None:
        self._templates = templates
        self._catalog = catalog
        self._pool = pool
        self._missed: set[str] = set()
        self._tried_at: dict[str, float] = {}
        self._wake = asyncio.Event()
        catalog.missed = self._ask

    def _ask(self, name: str) -> None:
        if name not in self._missed:
            self._missed.add(name)
            self._wake.set()

    async def run(self) -> None:
        if not self._catalog.has(BASE):
            self._ask(BASE)
        while True:
            self._wake.clear()
            for name in sorted(self._missed):
                await self._provide(name)
            self._missed.clear()
            await self._wake.wait()

    async def _provide(self, name: str) -> None:
        template = stacks.ready(self._templates, name)
        now = asyncio.get_running_loop().time()
        if template is None and now >= self._tried_at.get(name, now - RETRY_S) + RETRY_S:
            stands_in = self._catalog.default.name
            log.info("template %s is not built: %s serves until it is (it takes a minute or two)", name, stands_in)
            self._catalog.progress(name, "starting")
            self._tried_at[name] = now
            reason = await _build(self._templates, self._catalog, name)
            template = stacks.ready(self._templates, name)
            if template is None:
                self._catalog.progress(name, f"the build failed: {reason}")
                log.error("template %s cannot be built: %s; %s goes on serving", name, reason, stands_in)
        if template is not None:
            log.info("template %s is ready and serves from now on", name)
            self._catalog.add(template)
            collecting.hold(self._templates, template)
            self._pool.wake.set()


async def _build(templates: Path, catalog: Catalog, name: str) -> str:
    """Run the builder, a program of its own at low priority; returns its last line."""
    argv = [sys.executable, "-m", "sandpty.templates.build", "--templates-dir", str(templates), "--plain", name]
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
        return await _read(process, catalog, name)
    finally:
        await _end(process)


async def _read(process: asyncio.subprocess.Process, catalog: Catalog, name: str) -> str:
    assert process.stdout is not None
    last, said = "", -LOG_EVERY_PERCENT
    while line := await process.stdout.readline():
        last = line.decode("utf-8", "replace").strip()
        if progress := parse(last):
            catalog.progress(name, f"{progress.percent:.0f} %, {progress.text}")
            if progress.percent >= said + LOG_EVERY_PERCENT:
                said = int(progress.percent)
                log.info("template %s: %d %% %s", name, said, progress.text)
    await process.wait()
    return last.removeprefix(f"sandpty: template {name}: ")


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
