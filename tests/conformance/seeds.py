"""The vendors' documents in data/, and the samples in them: JavaScript, and of 002 (Novita's) also Python.

000, 002 and 004 are Markdown: a sample is a fenced block, its common indentation taken off.
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
_SECTIONS = re.compile(r"^## (.+)$", re.M)


@dataclass(frozen=True)
class Sample:
    """One sample, as printed; `title` is the heading it stands under (003: its number)."""

    document: str
    title: str
    code: str
    language: str = "js"

    @property
    def name(self) -> str:
        """For test ids."""
        words = re.sub(r"[^a-z]+", "-", self.title.lower()).strip("-")
        return f"{self.document}-{words}" + ("" if self.language == "js" else f"-{self.language}")


def _text(document: str) -> str:
    return (DATA / f"{document}.txt").read_text(encoding="utf-8")


def fenced(document: str, language: str) -> list[Sample]:
    """Every fenced block of a language (as the fence names it) under its heading."""
    found = []
    for section in re.split(r"^(?=## )", _text(document), flags=re.M):
        title = _SECTIONS.match(section)
        for block in re.findall(rf"^ *```{language} [^\n]*\n(.*?)^ *```", section, re.M | re.S):
            found.append(Sample(document, title[1] if title else "", textwrap.dedent(block), language))
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
    """The JavaScript samples of every document, in order, and the Python samples of Novita's.

    (The Python samples of 000 do not match E2B's own SDK.)
    """
    return fenced("000", "js") + samples_001() + fenced("002", "js") + fenced("002", "python") + samples_003()
