"""A team's secrets, as the supervisor is asked for them. Their values go one way only: in."""

from __future__ import annotations

import msgspec

from sandpty.wire.verbs import Word


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """`version` counts its values. Times are unix seconds."""

    id: str
    name: str
    version: int
    metadata: dict[str, str]
    created_at: float
    updated_at: float


class SecretList(msgspec.Struct, frozen=True):
    secrets: list[Secret]


class SecretArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`reference`: an id or a name; of a new one, its name. metadata None: what it has."""

    owner: Word
    reference: str
    value: str = ""
    metadata: dict[str, str] | None = None

    def __repr__(self) -> str:  # logs and tracebacks show it
        return f"SecretArgs({self.owner!r}, {self.reference!r}, ...)"
