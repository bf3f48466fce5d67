"""Sequence numbers of process output: +1 for each event, the same for every stream of one process.

A log knows offsets only, and where one event ends and the next begins is a matter of when it was read. So the first
stream that comes to an offset decides, and the ledger of the process remembers it for the others. A server that was
restarted has no ledgers: it numbers from 1 again, and whoever asks for an earlier number is told that it is gone.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field

from sandpty import config
from sandpty.wire.errors import SandptyError


@dataclass(slots=True)
class Ledger:
    """`starts[i]`, `ends[i]`: the offsets of event number `first + i`. They ascend; a hole is output that was lost."""

    first: int = 1
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    lost_at: int = 0  # where a stream was that ended early ...
    lost_until: float = 0.0  # ... and until when (monotonic) it is expected back

    @property
    def next_number(self) -> int:
        return self.first + len(self.ends)

    @property
    def end(self) -> int:
        """The offset up to which events are numbered."""
        return self.ends[-1] if self.ends else 0

    def known(self, offset: int) -> tuple[int, int] | None:
        """(number, end) of the event that `offset` lies in, if it has been decided."""
        at = bisect_right(self.starts, offset) - 1
        if at >= 0 and offset < self.ends[at]:
            return self.first + at, self.ends[at]
        return None

    def add(self, start: int, end: int) -> int:
        """The number of a new event, which begins where the last one ended, or later.

        Raises output_lost for one before that: other streams have gone past it as lost.
        """
        if start < self.end:
            raise SandptyError("output_lost", "other streams of this process have lost this output")
        self.starts.append(start)
        self.ends.append(end)
        if len(self.ends) > config.HYPERBROWSER_EVENTS_NUMBERED:
            half = len(self.ends) // 2
            self.first += half
            del self.starts[:half], self.ends[:half]
        return self.next_number - 1

    def offset_of(self, number: int) -> int | None:
        """Where the event begins. A number from the future is the end; None: forgotten."""
        if number >= self.next_number:
            return self.end
        if number < self.first:
            return None
        return self.starts[number - self.first]

    def lose(self, offset: int) -> None:
        """A stream ended before its process: for a while what it may not have seen can be asked for again."""
        self.lost_at = offset
        self.lost_until = time.monotonic() + config.HYPERBROWSER_REATTACH_S

    def oldest_replayed(self, end: int) -> int:
        """The lowest offset that is given out again to who asks by number, when the log ends at `end`."""
        oldest = max(0, end - config.HYPERBROWSER_REPLAY_BYTES)
        if time.monotonic() < self.lost_until:
            return min(oldest, max(0, self.lost_at - config.HYPERBROWSER_PROCESS_LOG_BYTES // 2))
        return oldest


class Ledgers:
    """The ledgers of the processes that were read last."""

    def __init__(self) -> None:
        self._ledgers: OrderedDict[tuple[str, str], Ledger] = OrderedDict()

    def of(self, sandbox_id: str, process: str) -> Ledger:
        key = (sandbox_id, process)
        ledger = self._ledgers.setdefault(key, Ledger())
        self._ledgers.move_to_end(key)
        while len(self._ledgers) > config.HYPERBROWSER_LEDGERS_KEPT:
            self._ledgers.popitem(last=False)
        return ledger
