"""Layers of builds: what a step left behind, found again by a key that says everything that decides it.

A layer is a snapshot that no client sees. It stands in nobody's list; it goes when nobody has asked for it for a while
or when its owner's layers take too much room, and its bytes with the last template or sandbox that stands on them.
"""

from __future__ import annotations

import logging
import time

import msgspec

from sandpty import config
from sandpty.supervisor.snapshots import Kept, Snapshots
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Snapshot

log = logging.getLogger(__name__)


class LayerArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`key`: as it was made under, by the same owner."""

    owner: str
    key: str


class Layers:
    """The verb `layer`, and the removal of those that are in nobody's way to a faster build any more."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        snapshots.made_layer = self.make_room

    async def verb(self, raw: msgspec.Raw) -> Snapshot:
        """Raises no_such_snapshot."""
        args = msgspec.json.decode(raw, type=LayerArgs)
        for kept in self._of(args.owner):
            if kept.layer == args.key:
                self._snapshots.touch(kept)
                return kept.snapshot()
        raise SandptyError("no_such_snapshot", "no layer was made under this key")

    def _of(self, owner: str) -> list[Kept]:
        """Not deleted, the most lately used first."""
        mine = (kept for kept in self._snapshots.kept if kept.layer and kept.owner == owner and not kept.deleted)
        return sorted(mine, key=lambda kept: -kept.used_at)

    def make_room(self, owner: str) -> None:
        """Drop the owner's layers that are old or too many, and those that were made anew.

        Not at once: two builds of the same steps make the same layer, and each goes on with its own.
        """
        total, now, keys = 0, time.time(), set[str]()
        for number, kept in enumerate(self._of(owner)):
            total += kept.size_bytes
            unused_s = now - kept.used_at
            again = kept.layer in keys and unused_s > config.LAYER_HELD_S
            keys.add(kept.layer)
            too_many = number > 0 and (total > config.LAYERS_BYTES_MAX or number >= config.LAYERS_MAX)
            if again or too_many or unused_s > config.LAYER_UNUSED_S:
                self._snapshots.drop(kept.id)
