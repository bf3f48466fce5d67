"""`python -m benchmarks.report results.json`: the tables of docs/benchmarks.md; with `--into FILE` written there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import columns, shown


def _heading(column: str) -> str:
    words = column.split("_")
    return " ".join(
        {"mb": "MB", "gb": "GB", "kb": "kB", "mib": "MiB", "kib": "KiB", "us": "µs", "cpu": "CPU"}.get(w, w)
        for w in words
    )


def _goal_words(goal: dict[str, Any]) -> list[str]:
    sign = "≥" if goal["at_least"] else "≤"
    unit = goal["unit"].replace("us", "µs")
    return [
        goal["what"],
        f"{shown(goal['value'])} {unit}",
        f"{sign} {shown(float(goal['limit']))} {unit}",
        shown(float(goal["ratio"])),
        "met" if goal["met"] else "**missed**",
    ]


def _cells(report: dict[str, Any]) -> list[list[str]]:
    names = columns(report["rows"])
    body = [[shown(row.get(name, "-")) for name in names] for row in report["rows"]]
    return [["" if name == "what" else _heading(name) for name in names], *body]


def _markdown(cells: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|---|" + "---:|" * (len(cells[0]) - 1))
    return "\n".join(lines)


BEGIN, END = "<!-- results -->", "<!-- end of results -->"
GOAL_HEADING = ["goal", "measured", "limit", "ratio", ""]


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]


def table(report: dict[str, Any]) -> str:
    """One benchmark for a terminal."""
    lines = [f"\n{report['title']} ({report['took_s']:.0f} s)"]
    if report["error"]:
        return "\n".join([*lines, f"  failed: {report['error']}"])
    lines += _aligned(_cells(report))
    if report["goals"]:
        lines += ["", *_aligned([GOAL_HEADING, *map(_goal_words, report["goals"])])]
    return "\n".join([*lines, *(f"  {note}" for note in report["notes"])]).replace("**", "")


def markdown(results: dict[str, Any]) -> str:
    """All benchmarks for a document."""
    facts = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    parts = [
        f"Made with `{results['command']}` at {results['made_at']}, isolation tier `{results['tier']}`.",
        f"Machine: {facts}.",
    ]
    for report in results["benchmarks"]:
        parts.append(f"### {report['title']}")
        if report["error"]:
            parts.append(f"Failed to run: {report['error']}")
            continue
        parts.append(_markdown(_cells(report)))
        if report["goals"]:
            parts.append(_markdown([GOAL_HEADING, *map(_goal_words, report["goals"])]))
        parts += [f"{note[0].upper()}{note[1:]}." if not note.endswith(".") else note for note in report["notes"]]
    return "\n\n".join(parts)


def put_into(document: Path, tables: str) -> None:
    """Replace what stands between the marks. Raises ValueError when the document has none."""
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has no {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}")


def main() -> None:
    """Print the tables, or put them into a document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, help="what `scripts/bench --json` wrote")
    parser.add_argument("--into", type=Path, metavar="FILE", help="replace the tables of this document")
    options = parser.parse_args()
    tables = markdown(json.loads(options.results.read_text()))
    if options.into:
        put_into(options.into, tables)
    else:
        print(tables)


if __name__ == "__main__":
    main()
