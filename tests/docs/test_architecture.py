"""ARCHITECTURE.md says how big the dialects and the core are: it must stay true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "sandpty"
STATED = dict(re.findall(r"^\| (\w[\w ]*) \| ([0-9,]+) \|$", (ROOT / "ARCHITECTURE.md").read_text(), re.M))
SLACK = 0.15  # a size that is further off says something else than it did


def lines(folder: Path) -> int:
    """Of all modules below."""
    return sum(len(path.read_text().splitlines()) for path in folder.rglob("*.py"))


def sizes() -> dict[str, int]:
    """Each dialect's, and the core's: what the dialects stand on."""
    dialects = {path.name: lines(path) for path in (SOURCE / "server" / "dialects").iterdir() if path.is_dir()}
    dialects.pop("__pycache__", None)
    server = lines(SOURCE / "server") - lines(SOURCE / "server" / "dialects")
    return {**dialects, "server without dialects": server, "terminal": lines(SOURCE / "terminal")}


@pytest.mark.parametrize(("name", "actual"), sizes().items(), ids=str)
def test_a_stated_size_is_true(name: str, actual: int) -> None:
    """Within 15 %; a dialect that the page does not name fails here."""
    assert name in STATED, f"ARCHITECTURE.md does not state the size of {name}: {round(actual, -2):,}"
    stated = int(STATED[name].replace(",", ""))
    assert abs(stated - actual) <= max(SLACK * actual, 100), f"{name}: {stated} is stated, it is {actual}"
