"""Which kernels are installed here, and which one runs a language."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from .http import ProblemError

_DIRECTORIES = ("~/.local/share/jupyter/kernels", "/usr/local/share/jupyter/kernels", "/usr/share/jupyter/kernels")
_ALIASES = {"": "python", "python3": "python", "py": "python", "js": "javascript", "ts": "typescript", "sh": "bash"}
# Languages that another language's kernel runs too.
_RUN_BY = {"javascript": ("typescript",), "typescript": ("javascript",)}


@dataclass(frozen=True)
class Spec:
    """A kernel.json. transport: tcp unless it says that the kernel can do ipc, which no other user can reach."""

    language: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    transport: str = "tcp"


def normalized(language: str | None) -> str:
    """What people call it -> what kernels call it."""
    word = (language or "").strip().lower()
    return _ALIASES.get(word, word)


def installed() -> list[Spec]:
    """Every kernel of this machine, those of the user first."""
    found = []
    for directory in _DIRECTORIES:
        for path in sorted(Path(os.path.expanduser(directory)).glob("*/kernel.json")):
            try:
                value = json.loads(path.read_text("utf-8"))
                argv = tuple(str(word).replace("{resource_dir}", str(path.parent)) for word in value["argv"])
                transport = value.get("metadata", {}).get("transport", "tcp")
                env = {str(name): str(text) for name, text in value.get("env", {}).items()}
                found.append(Spec(str(value["language"]).lower(), argv, env, str(transport)))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # somebody's broken file
    return found


def find(language: str) -> Spec:
    """The kernel that runs `language`. Raises ProblemError (400) that names what there is."""
    kernels = installed()
    for wanted in (language, *_RUN_BY.get(language, ())):
        for spec in kernels:
            if spec.language == wanted:
                return spec
    languages = {spec.language for spec in kernels}
    for name, others in _RUN_BY.items():
        if languages & set(others):
            languages.add(name)
    have = ", ".join(sorted(languages)) or "none"
    raise ProblemError(400, f"no kernel for language {language[:40]!r} is installed in this sandbox; there are: {have}")
