"""What a benchmark says: rows of figures, and goals that a figure meets or misses."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


def p50(samples: Sequence[float]) -> float:
    """The median."""
    return statistics.median(samples)


def p99(samples: Sequence[float]) -> float:
    """The nearest-rank 99th percentile; of fewer than 100 samples the largest."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, round(len(ordered) * 0.99))]


@dataclass
class Goal:
    """`value` must be at most `limit`, or with `at_least` no smaller. `ratio` under 1 is met, with that much room."""

    what: str
    value: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure keeps the promise."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def ratio(self) -> float:
        """The figure as a part of the limit (or the limit of the figure); 1 and less is met."""
        if self.at_least:
            return self.limit / self.value if self.value > 0 else float("inf")
        return self.value / self.limit


@dataclass
class Report:
    """One benchmark's outcome: a table (`rows`, keyed by column), goals, remarks; or the error that ended it."""

    name: str
    title: str
    rows: list[dict[str, str | float]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""
    took_s: float = 0.0

    def row(self, what: str, **values: str | float) -> None:
        """Add a line. Column names carry their unit: `p50_ms=3.1` is shown as "p50 ms"."""
        self.rows.append({"what": what, **values})

    def goal(self, what: str, value: float, limit: float, unit: str, *, at_least: bool = False) -> None:
        """Add a goal."""
        self.goals.append(Goal(what, value, limit, unit, at_least))

    def as_json(self) -> dict[str, Any]:
        """With what the goals say of themselves."""
        goals = [{**asdict(goal), "met": goal.met, "ratio": goal.ratio} for goal in self.goals]
        return {**asdict(self), "goals": goals}


def shown(value: object) -> str:
    """A figure with three digits that count, a text as it is."""
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Every column of the rows, in order of appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))
