"""What every dialect is given."""

from __future__ import annotations

from dataclasses import dataclass

from sandpty.server.auth import Authenticator
from sandpty.server.registry import Registry
from sandpty.server.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    settings: Settings
    registry: Registry
    auth: Authenticator
