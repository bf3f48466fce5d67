"""The vendors' documents in data/, and the JavaScript samples in them.

000 is Markdown: a sample is a fenced `js` block, its common indentation taken off.
001 is a page as text: a sample starts at an `import` line and ends before the next line of prose. A line belongs to the
    sample while brackets are open, or while it is empty or looks like code.
003 is text whose line breaks were lost: a sample is one line that starts with `import`. The breaks are put back by a
    mechanical rule (`reflow`) that looks at no particular sample.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
_CODE = re.compile(r"(import|export|const|let|await|for|//|console\.)\b|//|[ })\]]")
_SECTIONS_000 = re.compile(r"^## (.+)$", re.M)


@dataclass(frozen=True)
class Sample:
    """One sample, as printed; `title` is the heading it stands under (003: its number)."""

    document: str
    title: str
    code: str

    @property
    def name(self) -> str:
        """For test ids."""
        return f"{self.document}-{re.sub(r'[^a-z]+', '-', self.title.lower()).strip('-')}"


def _text(document: str) -> str:
    return (DATA / f"{document}.txt").read_text(encoding="utf-8")


def samples_000() -> list[Sample]:
    """Every fenced JavaScript block under its heading."""
    found = []
    for section in re.split(r"^(?=## )", _text("000"), flags=re.M):
        title = _SECTIONS_000.match(section)
        for block in re.findall(r"^ *```js [^\n]*\n(.*?)^ *```", section, re.M | re.S):
            found.append(Sample("000", title[1] if title else "", textwrap.dedent(block)))
    return found


def samples_001() -> list[Sample]:
    """Every run of lines from an `import` to the end of its code, in the part about terminals."""
    terminal_part = _text("001").partition("\nSSH access\n")[0]
    found: list[Sample] = []
    title, code, depth = "", [], 0
    for line in [*terminal_part.splitlines(), "."]:
        if code and (depth > 0 or not line or _CODE.match(line)):
            code.append(line)
            depth += _opened(line)
            continue
        if code:
            found.append(Sample("001", title, "\n".join(code) + "\n"))
            code = []
        if line.startswith("import "):
            code, depth = [line], 0
        elif line and len(line) < 50 and not line.endswith("."):
            title = line
    return found


def _opened(line: str) -> int:
    code = re.sub(r"'[^']*'|//.*", "", line)
    return sum(code.count(bracket) for bracket in "([{") - sum(code.count(bracket) for bracket in ")]}")


def samples_003() -> list[Sample]:
    """Every line that starts with `import`, its line breaks put back."""
    lines = [line for line in _text("003").splitlines() if line.startswith("import ")]
    return [Sample("003", f"sample {'abcdefgh'[at]}", reflow(line)) for at, line in enumerate(lines)]


def reflow(line: str) -> str:
    """Put back the line breaks of a JavaScript sample that lost them.

    1. A statement begins after the end of another: after a quote, `)`, `}`, `]`, a word or a sentence, glued to
       `const`, `await`, `for` or `//` without a space.
    2. A comment ends where its text is followed by the next statement (rule 1), or by `})`.
    """
    broken = re.sub(r"(?<=[^\s(/])(?=(?:const|await|for) |for \()", "\n", line)
    broken = re.sub(r"(?<=[^\s:])(?=// )", "\n", broken)
    return re.sub(r"(// [^\n]*?)(\}\))", r"\1\n\2", broken) + "\n"


def all_samples() -> list[Sample]:
    """The JavaScript samples of every document, in order."""
    return samples_000() + samples_001() + samples_003()
