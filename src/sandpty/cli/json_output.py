"""`--json`: what every command prints for programs. The shapes stand in docs/reference/cli.md and stay as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from sandpty.wire.errors import SandptyError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(command: _Command) -> _Command:
    """Adds --json, as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, of the shape that the reference gives.")(
        command
    )


def print_json(value: Any) -> None:
    """Dataclasses are objects; an error is `{"error": {"reason", "message", "hint"}}`."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def error_json(error: SandptyError) -> dict[str, Any]:
    """As the server answers it."""
    return {"error": {"reason": error.reason.name, "message": error.message, "hint": error.reason.hint}}


def _plain(value: object) -> Any:
    if isinstance(value, SandptyError):
        return error_json(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON shape")
