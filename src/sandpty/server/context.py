"""What every dialect is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from sandpty.server.auth import Authenticator
from sandpty.server.builds.builds import Builds
from sandpty.server.file_connections import FileConnections
from sandpty.server.guest_sockets import GuestSockets
from sandpty.server.metrics import Metrics
from sandpty.server.ports.heads import Header
from sandpty.server.registry import Registry
from sandpty.server.runtime_tokens import SignedTokens
from sandpty.server.settings import Settings
from sandpty.server.ssh_identity import SshIdentity
from sandpty.wire.verbs import Sandbox


@dataclass(frozen=True, slots=True)
class Context:
    """`port_starters`: start a sandbox's service on that port, called when a request finds that nothing listens there.

    `port_preparers`: called before each request to that port is sent; may refuse it (PortError). What it returns is
    added to the request's headers, instead of what a client said under these names.

    `ssh`: what the SSH gateway is known by; None: there is none.

    `stopping`: called, synchronously, when the server begins to stop; streams do not end by themselves."""

    settings: Settings
    registry: Registry
    auth: Authenticator
    files: FileConnections
    guest_sockets: GuestSockets
    metrics: Metrics
    tokens: SignedTokens
    builds: Builds
    ssh: SshIdentity | None = None
    port_starters: dict[int, Callable[[Sandbox], Awaitable[None]]] = field(default_factory=dict)
    port_preparers: dict[int, Callable[[web.Request, Sandbox], list[Header]]] = field(default_factory=dict)
    stopping: list[Callable[[], None]] = field(default_factory=list)
