"""What every dialect is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sandpty.server.auth import Authenticator
from sandpty.server.file_connections import FileConnections
from sandpty.server.guest_sockets import GuestSockets
from sandpty.server.metrics import Metrics
from sandpty.server.registry import Registry
from sandpty.server.runtime_tokens import SignedTokens
from sandpty.server.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """`stopping`: called, synchronously, when the server begins to stop; streams do not end by themselves."""

    settings: Settings
    registry: Registry
    auth: Authenticator
    files: FileConnections
    guest_sockets: GuestSockets
    metrics: Metrics
    tokens: SignedTokens
    stopping: list[Callable[[], None]] = field(default_factory=list)
