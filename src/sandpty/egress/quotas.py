"""How many of something each sandbox may have at once, so that whoever takes all it can leaves some to the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Share:
    """What all sandboxes may still have beside what is their own."""

    def __init__(self, left: int) -> None:
        self.left = left


class Quota:
    """One sandbox's: `own` whatever others take, and of the share no more than is left of it; `most` in all."""

    def __init__(self, own: int, most: int, share: Share) -> None:
        self._own = own
        self._most = most
        self._share = share
        self._shared = 0
        self.taken = 0

    @property
    def full(self) -> bool:
        if self.taken - self._shared < self._own:
            return False
        return self._shared >= min(self._most - self._own, self._share.left)

    @contextmanager
    def taking(self) -> Iterator[None]:
        """One more. Whether there may be is the caller's to ask."""
        shared = int(self.taken - self._shared >= self._own)
        self.taken += 1
        self._shared += shared
        self._share.left -= shared
        try:
            yield
        finally:
            self.taken -= 1
            self._shared -= shared
            self._share.left += shared
