"""From mmdebstrap's output to a percentage and a phase. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

# The share of the whole that each phase begins and ends at, as measured; and the word in mmdebstrap's output that opens
# it.
_PHASES = (
    ("running apt-get update", "reading package lists", 0, 5),
    ("downloading packages with apt", "downloading the essential packages", 5, 15),
    ("extracting archives", "unpacking the essential packages", 15, 22),
    ("installing essential packages", "installing the essential packages", 22, 45),
    ("installing remaining packages", "installing the other packages", 45, 95),
    ("cleaning package lists", "cleaning up", 95, 98),
)
_NEW = re.compile(r"(\d+) newly installed")
_STEP = re.compile(r"^(?:Get:\d+|Unpacking |Setting up |Selecting previously)")
_STEPS_PER_PACKAGE = {3: 2, 4: 4}  # by phase; downloads, selections, unpackings, set-ups
_ASSUMED_PACKAGES = 70


@dataclass(frozen=True, slots=True)
class Progress:
    percent: float
    text: str


Show = Callable[[Progress], None]


def ignored(_: Progress) -> None:
    """For who does not look."""


class Reader:
    """Feed it lines; it tells where the build is. The percentage never goes back."""

    def __init__(self) -> None:
        self._phase = 0
        self._steps = 0
        self._packages = _ASSUMED_PACKAGES
        self._percent = 0.0

    def feed(self, line: str) -> Progress:
        for number, (word, _, _, _) in enumerate(_PHASES):
            if number > self._phase and word in line:
                self._phase, self._steps = number, 0
        if match := _NEW.search(line):
            self._packages = max(1, int(match.group(1)))
        if _STEP.match(line):
            self._steps += 1
        _, text, start, end = _PHASES[self._phase]
        total = self._packages * _STEPS_PER_PACKAGE.get(self._phase, 1)
        now = start + (end - start) * min(1.0, self._steps / total)
        self._percent = max(self._percent, now)
        return Progress(self._percent, text)


def parse(line: str) -> Progress | None:
    """A builder's line `progress <percent> <text>`; None when it is something else."""
    word, _, rest = line.strip().partition(" ")
    percent, _, text = rest.partition(" ")
    return Progress(float(percent), text) if word == "progress" and percent.isdigit() else None
