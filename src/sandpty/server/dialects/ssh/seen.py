"""How far each person has seen each terminal, for the next time. A convenience: a server that was started again asks
the agent, which knows how far anybody has.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from sandpty import config


@dataclass(frozen=True, slots=True)
class Viewer:
    """Whose view of what. `boot`: of the sandbox; its processes are counted anew when it starts again."""

    key: str
    boot: str
    process: int


class Seen:
    """The newest SSH_SEEN_KEPT."""

    def __init__(self) -> None:
        self._offsets: OrderedDict[Viewer, int] = OrderedDict()

    def get(self, viewer: Viewer) -> int | None:
        return self._offsets.get(viewer)

    def remember(self, viewer: Viewer, offset: int) -> None:
        self._offsets[viewer] = offset
        self._offsets.move_to_end(viewer)
        while len(self._offsets) > config.SSH_SEEN_KEPT:
            self._offsets.popitem(last=False)
