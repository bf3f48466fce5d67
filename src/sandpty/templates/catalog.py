"""Which templates there are, and what a name stands for at this moment."""

from __future__ import annotations

from dataclasses import dataclass

from sandpty.isolation.driver import Copy, Layer
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Limits, Template

BASE = "base"
BASE_ALIASES = ("code-interpreter-v1",)
HOST_USR = "host-usr"


@dataclass(frozen=True, slots=True)
class Ready:
    """A template that sandboxes can be made from."""

    name: str
    layers: tuple[Layer, ...]
    created_at: float = 0.0
    size_bytes: int = 0
    copies: tuple[Copy, ...] = ()  # of a snapshot, the newest first
    limits: Limits | None = None  # of the sandbox that a snapshot is of


class Catalog:
    """Templates by name. Until `base` is ready, `host-usr` stands in for it."""

    def __init__(self, quick: Ready) -> None:
        self._quick = quick
        self._base: Ready | None = None
        self._base_detail = "not built yet"
        self._base_failed = False

    @property
    def default(self) -> Ready:
        """What `base` means now."""
        return self._base or self._quick

    def base_ready(self, base: Ready) -> None:
        self._base = base

    def base_progress(self, detail: str, *, failed: bool = False) -> None:
        self._base_detail, self._base_failed = detail, failed

    def resolve(self, name: str) -> Ready:
        """Raises no_such_template."""
        if name == BASE or name in BASE_ALIASES:
            return self.default
        if name == self._quick.name:
            return self._quick
        raise SandptyError("no_such_template", f"template {name[:64]!r} does not exist")

    def list(self) -> list[Template]:
        """`base` is ready in any case: who stands in for it is said in `detail`."""
        quick, base = self._quick, self._base
        detail = "" if base is not None else f"{quick.name} stands in for it: {self._base_detail}"
        shown = base or quick
        return [
            Template(
                name=BASE,
                aliases=BASE_ALIASES,
                state="ready",
                detail=detail,
                created_at=shown.created_at,
                size_bytes=shown.size_bytes,
            ),
            Template(name=quick.name, state="ready", created_at=quick.created_at, size_bytes=quick.size_bytes),
        ]
