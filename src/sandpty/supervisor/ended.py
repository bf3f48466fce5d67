"""Sandboxes that have ended, as they were: a server that was restarted in the meantime still answers for them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec

from sandpty import config
from sandpty.supervisor.kept_lines import KeptLines
from sandpty.wire.verbs import FORGOTTEN_ANNOTATIONS, EndedSandbox, Sandbox


class Ended:
    """`<data>/ended.jsonl`. What a sandbox was told in confidence (its environment, its token) ends with it."""

    def __init__(self, directory: Path) -> None:
        self._lines = KeptLines(directory, "ended", config.ENDED_BYTES)

    def record(self, event: str, sandbox: Sandbox, reason: str) -> None:
        """Keep it, when the event is its end. Never raises."""
        if event != "ended":
            return
        kept = {name: value for name, value in sandbox.annotations.items() if name not in FORGOTTEN_ANNOTATIONS}
        was = msgspec.structs.replace(sandbox, annotations=kept, socket="")
        self._lines.append(msgspec.json.encode(EndedSandbox(sandbox=was, at=time.time())))

    async def verb(self, raw: msgspec.Raw) -> dict[str, list[EndedSandbox]]:
        """The newest, oldest first."""
        return {"ended": await asyncio.to_thread(self.read)}

    def read(self) -> list[EndedSandbox]:
        """As `verb`. So many as fit into one answer."""
        found: list[EndedSandbox] = []
        room = config.ENDED_BYTES
        for line in reversed(self._lines.read()[-config.ENDED_SANDBOXES_KEPT :]):
            room -= len(line)
            if room < 0:
                break
            try:
                found.append(msgspec.json.decode(line, type=EndedSandbox))
            except msgspec.MsgspecError:
                continue
        return found[::-1]
