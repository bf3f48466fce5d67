"""What became of sandboxes, kept on disk: one line of JSON per event.

It outlives sandboxes, servers and supervisors. Nothing of it is kept in memory: whoever asks has the files read.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from pathlib import Path

import msgspec

from sandpty import config
from sandpty.supervisor.kept_lines import KeptLines
from sandpty.wire import verbs
from sandpty.wire.verbs import HistoryArgs, HistoryEntry, Sandbox

# What the supervisor says of a change, as it begins -> what is kept of it. Other changes are nobody's history.
_KINDS: dict[str, verbs.HistoryKind] = {"": "created", "paused": "paused", "resumed": "resumed"}


class Journal:
    """`<data>/journal.jsonl`."""

    def __init__(self, directory: Path) -> None:
        self._lines = KeptLines(directory, "journal", config.JOURNAL_BYTES)

    def record(self, event: str, sandbox: Sandbox, reason: str) -> None:
        """Keep an event. Never raises."""
        kind: verbs.HistoryKind | None = "ended" if event == "ended" else _KINDS.get(reason.partition(" ")[0])
        if kind is None:
            return
        entry = HistoryEntry(
            id=secrets.token_hex(8),
            at=time.time(),
            kind=kind,
            reason=reason,
            sandbox=sandbox.id,
            owner=sandbox.owner,
            template=sandbox.template,
        )
        self._lines.append(msgspec.json.encode(entry))

    async def verb(self, raw: msgspec.Raw) -> verbs.History:
        """The entries asked for, oldest first; of more than the limit, the newest."""
        args = msgspec.json.decode(raw, type=HistoryArgs)
        return await asyncio.to_thread(self.read, args)

    def read(self, args: HistoryArgs) -> verbs.History:
        """As `verb`. Lines that are torn (a power cut) are skipped."""
        needle = (args.sandbox or args.owner).encode()  # most lines are others': not worth decoding
        decoder = msgspec.json.Decoder(HistoryEntry)
        found: deque[HistoryEntry] = deque(maxlen=max(0, min(args.limit, config.HISTORY_ENTRIES_MAX)))
        for line in self._lines.read():
            if needle not in line:
                continue
            try:
                entry = decoder.decode(line)
            except msgspec.MsgspecError:
                continue
            if _fits(entry, args):
                found.append(entry)
        return verbs.History(entries=list(found))


def _fits(entry: HistoryEntry, args: HistoryArgs) -> bool:
    return (
        entry.owner == args.owner
        and args.sandbox in ("", entry.sandbox)
        and args.since <= entry.at
        and (not args.until or entry.at <= args.until)
    )
