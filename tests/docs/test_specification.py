"""SPECIFICATION.md names the test that holds each promise: they must be there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPECIFICATION = (ROOT / "SPECIFICATION.md").read_text()
NAMED = sorted(set(re.findall(r"([a-z_0-9]+/test_\w+\.py)(?:::(\w+))?", SPECIFICATION)))


def functions_of(path: Path) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a test file by name."""
    tree = ast.parse(path.read_text())
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda value: value)
def test_every_test_that_holds_a_promise_exists(file: str, name: str) -> None:
    """A promise whose test was renamed or removed is no longer held."""
    path = ROOT / "tests" / file
    assert path.is_file()
    if name:
        assert name in functions_of(path)


def test_every_promise_names_what_holds_it() -> None:
    """Each row ends in a test, a benchmark or the word pending."""
    rows = [line for line in SPECIFICATION.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert rows
    for row in rows:
        held_by = row.rstrip(" |").rsplit(" | ", 1)[1]
        assert re.search(r"test_\w+\.py|benchmark `[\w-]+`|pending", held_by), row


def test_every_benchmark_that_is_named_exists() -> None:
    """`scripts/bench --only NAME` knows every name of the page."""
    from benchmarks.run import BENCHMARKS

    named = set(re.findall(r"benchmark `([\w-]+)`", SPECIFICATION))
    assert named <= set(BENCHMARKS), named - set(BENCHMARKS)


def test_every_test_says_what_it_promises() -> None:
    """A test without a docstring is a check that nobody can read."""
    silent = [
        f"{path.relative_to(ROOT)}::{name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for name, node in functions_of(path).items()
        if name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert not silent
