"""Samples of the vendors' documents, each as a program of its own, side by side."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.seeds import Sample
from tests.waiting import until

LATEST_S = 95.0  # for one that lasts until a terminal's default deadline of 60 s, on a small machine
STARTING_AT_ONCE = 4  # interpreters: more at a time would only delay each other past their samples' own deadlines
_STARTED_WITHIN_S = 15.0


@dataclass
class Run:
    """One sample in an interpreter of its own."""

    sample: Sample
    process: asyncio.subprocess.Process
    started: float
    output: bytearray
    reader: asyncio.Task[None]
    ended: float = 0.0

    @property
    def text(self) -> str:
        """What it printed so far, without escape sequences."""
        return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]|\x1b\][^\x07]*\x07", "", self.output.decode(errors="replace"))

    async def exit_code(self) -> int:
        """Wait for its end."""
        async with asyncio.timeout(LATEST_S):
            await self.reader
            return await self.process.wait()

    @property
    def lasted_s(self) -> float:
        """From its start to its end."""
        return self.ended - self.started

    async def end(self) -> None:
        """Whatever it does."""
        if self.process.returncode is None:
            self.process.kill()
        await self.reader
        await self.process.wait()


async def start(sample: Sample, directory: Path) -> Run:
    """Run a sample. JavaScript finds packages upwards from `directory`, Python in this interpreter."""
    suffix, interpreter = (".mjs", "node") if sample.language == "js" else (".py", sys.executable)
    script = directory / f"{sample.name}{suffix}"
    script.write_text(sample.code, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        interpreter,
        str(script),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = bytearray()
    run: Run

    async def read() -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(4096):
            output.extend(data)
        run.ended = time.monotonic()

    run = Run(sample, process, time.monotonic(), output, asyncio.create_task(read()))
    return run


async def start_all(samples: list[Sample], directory: Path, runs: dict[str, Run]) -> None:
    """Start every sample, a few at a time; each counts as started once it prints, or ends."""
    gate = asyncio.Semaphore(STARTING_AT_ONCE)

    async def one(sample: Sample) -> None:
        async with gate:
            run = runs[sample.name] = await start(sample, directory)
            try:
                await until(lambda: run.output or run.reader.done(), _STARTED_WITHIN_S)
            except TimeoutError:
                return  # some never print; the tests say what they should do

    await asyncio.gather(*(one(sample) for sample in samples))
