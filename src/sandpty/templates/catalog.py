"""Which templates there are, and what a name stands for at this moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sandpty.isolation.driver import Copy, Layer
from sandpty.templates.names import BASE, CODE_INTERPRETER
from sandpty.wire.errors import SandptyError
from sandpty.wire.templates import Defaults, Template
from sandpty.wire.verbs import Limits

_BUILT = (BASE, CODE_INTERPRETER)  # ours, as opposed to the quick one


@dataclass(frozen=True, slots=True)
class Ready:
    """A template that sandboxes can be made from.

    started: a program that runs, as the guest's user, in warm sandboxes of it before they are asked for.
    warm: whether some are kept ready. record: the id of the template's record, "" of ours.
    """

    name: str
    layers: tuple[Layer, ...]
    created_at: float = 0.0
    size_bytes: int = 0
    copies: tuple[Copy, ...] = ()  # of a snapshot, the newest first
    snapshot: str = ""  # whose they are
    limits: Limits | None = None  # of the sandbox that a snapshot is of
    started: tuple[str, ...] = ()
    defaults: Defaults = field(default_factory=Defaults)
    warm: bool = True
    record: str = ""


class Catalog:
    """Templates by name. Until one is built, another stands in for it: `base`, and for that `host-usr`."""

    def __init__(self, quick: Ready) -> None:
        self._quick = quick
        self._built: dict[str, Ready] = {}
        self._details: dict[str, str] = {}
        self.missed: Callable[[str], None] = lambda name: None  # told the name of who had to be stood in for

    @property
    def default(self) -> Ready:
        """What `base` means now."""
        return self._built.get(BASE, self._quick)

    def add(self, template: Ready) -> None:
        """From now on its name means this."""
        self._built[template.name] = template

    def has(self, name: str) -> bool:
        """Whether it is built."""
        return name in self._built

    def knows(self, name: str) -> bool:
        """Whether it is one of ours."""
        return name in self._built or name in _BUILT or name == self._quick.name

    def progress(self, name: str, detail: str) -> None:
        """How far the building of a template is, or why it failed."""
        self._details[name] = detail

    def resolve(self, name: str) -> Ready:
        """Raises no_such_template."""
        if name in self._built:
            return self._built[name]
        if name in _BUILT:
            self.missed(name)
            return self.default
        if name == self._quick.name:
            return self._quick
        raise SandptyError("no_such_template", f"template {name[:64]!r} does not exist")

    def list(self) -> list[Template]:
        """Ours are ready in any case: who stands in for one is said in `detail`."""
        shown = [self._shown(name, self._built.get(name)) for name in _BUILT]
        quick = self._quick
        return [
            *shown,
            _listed(quick.name, quick),
        ]

    def _shown(self, name: str, built: Ready | None) -> Template:
        template = built or self.default
        detail = f"{template.name} stands in for it: {self._details.get(name, 'not built yet')}" if not built else ""
        return _listed(name, template, detail)


def _listed(name: str, template: Ready, detail: str = "") -> Template:
    return Template(
        id=name,
        name=name,
        names=(name,),
        public=True,
        state="ready",
        detail=detail,
        created_at=template.created_at,
        updated_at=template.created_at,
        size_bytes=template.size_bytes,
    )
