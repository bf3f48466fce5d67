"""Dockerfiles as steps of a template's build. Pure: what is copied is found by build_context.py."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field

from sandpty.wire.errors import SandptyError

_CONTINUED = re.compile(r"\\[ \t]*$")
_OPTION = re.compile(r"--([a-z-]+)=(\S+)\s+")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_UNUSED = frozenset(("LABEL", "EXPOSE", "MAINTAINER", "STOPSIGNAL", "HEALTHCHECK", "VOLUME", "SHELL", "ONBUILD"))


@dataclass(frozen=True, slots=True)
class Instruction:
    """A step as E2B's build API has it. args: of COPY source, target, owner, mode."""

    kind: str
    args: tuple[str, ...]


@dataclass(slots=True)
class Dockerfile:
    """What a Dockerfile says. start_cmd: its ENTRYPOINT and CMD. notices: what of it means nothing here."""

    image: str = ""
    steps: list[Instruction] = field(default_factory=list)
    start_cmd: str = ""
    notices: list[str] = field(default_factory=list)


def parse(text: str) -> Dockerfile:
    """One stage, without here-documents. Raises SandptyError bad_argument, with the line."""
    reader = _Reader()
    for number, word, rest in _instructions(text):
        try:
            reader.take(word, rest)
        except ValueError as error:
            raise SandptyError("bad_argument", f"Dockerfile, line {number}: {error}") from error
    if not reader.found.image:
        raise SandptyError("bad_argument", "the Dockerfile has no FROM")
    return reader.finished()


def _instructions(text: str) -> list[tuple[int, str, str]]:
    """Line numbers, words in capitals, what follows them; comments are gone and continued lines one."""
    found: list[tuple[int, str, str]] = []
    begun, begun_at = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (begun and not line.strip()):
            continue
        begun_at = begun_at or number
        begun += _CONTINUED.sub("", line)
        if _CONTINUED.search(line):
            continue
        if begun.strip():
            word, _, rest = begun.strip().partition(" ")
            found.append((begun_at, word.upper(), rest.strip()))
        begun, begun_at = "", 0
    if begun.strip():
        word, _, rest = begun.strip().partition(" ")
        found.append((begun_at, word.upper(), rest.strip()))
    return found


class _Reader:
    """Takes one instruction after the other. Raises ValueError."""

    def __init__(self) -> None:
        self.found = Dockerfile()
        self._arguments: dict[str, str] = {}
        self._program = ""
        self._command = ""
        self._set: set[str] = set()

    def take(self, word: str, rest: str) -> None:
        if word in _UNUSED:
            self.found.notices.append(f"{word} means nothing here")
        elif word not in ("FROM", "ARG") and not self.found.image:
            raise ValueError("FROM comes first")
        elif (method := getattr(self, f"_{word.lower()}", None)) is None:
            raise ValueError(f"{word[:32]!r} is not an instruction that is known")
        elif rest.startswith("<<") or (word in ("RUN", "COPY") and re.search(r"<<-?[\"']?\w+", rest)):
            raise ValueError("here-documents cannot be read: use && or a script")
        else:
            method(rest)

    def finished(self) -> Dockerfile:
        """Its sandboxes belong to `user`, as E2B's, unless it says another."""
        found = self.found
        if "USER" not in self._set:
            found.steps.append(Instruction("USER", ("user",)))
        if "WORKDIR" not in self._set:
            found.steps.append(Instruction("WORKDIR", ("/home/user",)))
        found.start_cmd = " ".join(part for part in (self._program, self._command) if part)
        return found

    def _from(self, rest: str) -> None:
        if self.found.image:
            raise ValueError("more than one FROM: templates have one stage")
        words = [word for word in rest.split() if not word.startswith("--")]
        self.found.image = self._filled(words[0]) if words else ""
        # What a Dockerfile takes for granted.
        self.found.steps += [Instruction("USER", ("root",)), Instruction("WORKDIR", ("/",))]

    def _arg(self, rest: str) -> None:
        name, _, value = rest.partition("=")
        self._arguments[name.strip()] = shlex.split(value)[0] if value.strip() else ""

    def _run(self, rest: str) -> None:
        _, rest = _options(rest, ())
        exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in self._arguments.items())
        self.found.steps.append(Instruction("RUN", (exports + _line(rest),)))

    def _copy(self, rest: str) -> None:
        options, rest = _options(rest, ("chown", "chmod"))
        words = json.loads(rest) if rest.startswith("[") else shlex.split(rest)
        if len(words) < 2:
            raise ValueError("COPY needs a source and a target")
        *sources, target = map(self._filled, words)
        if len(sources) > 1 and not target.endswith("/"):
            target += "/"
        for source in sources:
            if "://" in source:
                raise ValueError("files of the network cannot be added: RUN curl")
            args = (source, target, options.get("chown", "root"), options.get("chmod", ""))
            self.found.steps.append(Instruction("COPY", args))

    _add = _copy

    def _env(self, rest: str) -> None:
        pairs = shlex.split(rest)
        if "=" not in (pairs[0] if pairs else "="):
            name, space, value = rest.partition(" ")
            if not space:
                raise ValueError("ENV needs NAME=value")
            pairs = [f"{name}={value.strip()}"]
        args = [part for pair in pairs for part in pair.split("=", 1)]
        if not args or len(args) % 2:
            raise ValueError("ENV needs NAME=value")
        self.found.steps.append(Instruction("ENV", tuple(args)))

    def _workdir(self, rest: str) -> None:
        self._one("WORKDIR", rest)

    def _user(self, rest: str) -> None:
        self._one("USER", rest)

    def _one(self, kind: str, rest: str) -> None:
        self._set.add(kind)
        self.found.steps.append(Instruction(kind, (self._filled(rest.strip("\"'")),)))

    def _cmd(self, rest: str) -> None:
        self._command = _line(rest)

    def _entrypoint(self, rest: str) -> None:
        self._program = _line(rest)

    def _filled(self, text: str) -> str:
        """With the values of ARG."""
        return _VARIABLE.sub(lambda match: self._arguments.get(match[1] or match[2], match[0]), text)


def _options(rest: str, known: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """Raises ValueError for one that would change what is done."""
    options: dict[str, str] = {}
    while match := _OPTION.match(rest):
        if match[1] not in known:
            raise ValueError(f"--{match[1]} cannot be used here")
        options[match[1]] = match[2]
        rest = rest[match.end() :]
    return options, rest


def _line(rest: str) -> str:
    """A command line, also of one that is written as a list."""
    if not rest.startswith("["):
        return rest
    words = json.loads(rest)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("not a list of words")
    return shlex.join(words)
