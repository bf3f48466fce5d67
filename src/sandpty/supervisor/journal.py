"""What became of sandboxes, kept on disk: one line of JSON per event, in two files of bounded size.

It outlives sandboxes, servers and supervisors. Nothing of it is kept in memory: whoever asks has the files read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from pathlib import Path

import msgspec

from sandpty import config
from sandpty.wire import verbs
from sandpty.wire.verbs import HistoryArgs, HistoryEntry, Sandbox

log = logging.getLogger(__name__)
# What the supervisor says of a change, as it begins -> what is kept of it. Other changes are nobody's history.
_KINDS: dict[str, verbs.HistoryKind] = {"": "created", "paused": "paused", "resumed": "resumed"}


class Journal:
    """`<data>/journal.jsonl`, and `journal.old.jsonl` before it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "journal.jsonl"
        self._old = directory / "journal.old.jsonl"
        self._failing = False

    def record(self, event: str, sandbox: Sandbox, reason: str) -> None:
        """Keep an event. A disk that is full costs history, not sandboxes: it never raises."""
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
        try:
            self._append(msgspec.json.encode(entry) + b"\n")
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning("the journal cannot be written: %s", error)
            self._failing = True

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size > config.JOURNAL_BYTES:
                os.replace(self._path, self._old)
                os.close(descriptor)
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    async def verb(self, raw: msgspec.Raw) -> verbs.History:
        """The entries asked for, oldest first; of more than the limit, the newest."""
        args = msgspec.json.decode(raw, type=HistoryArgs)
        return await asyncio.to_thread(self.read, args)

    def read(self, args: HistoryArgs) -> verbs.History:
        """As `verb`. Lines that are torn (a power cut) are skipped."""
        needle = (args.sandbox or args.owner).encode()  # most lines are others': not worth decoding
        decoder = msgspec.json.Decoder(HistoryEntry)
        found: list[HistoryEntry] = []
        for path in (self._old, self._path):
            try:
                lines = path.read_bytes().splitlines()
            except FileNotFoundError:
                continue
            for line in lines:
                if needle not in line:
                    continue
                try:
                    entry = decoder.decode(line)
                except msgspec.MsgspecError:
                    continue
                if _fits(entry, args):
                    found.append(entry)
        return verbs.History(entries=found[-min(args.limit, config.HISTORY_ENTRIES_MAX) :])


def _fits(entry: HistoryEntry, args: HistoryArgs) -> bool:
    return (
        entry.owner == args.owner
        and args.sandbox in ("", entry.sandbox)
        and args.since <= entry.at
        and (not args.until or entry.at <= args.until)
    )
