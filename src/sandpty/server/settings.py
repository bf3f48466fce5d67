"""What a server is started with."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from sandpty import config
from sandpty.config import DataDir


@dataclass(frozen=True, slots=True)
class Settings:
    """`api_key` is the first key of this server; `domain` (host[:port]) is what E2B clients are told.

    `runtime_secret` signs runtime tokens; `ssh_host_key` is the SSH gateway's, in OpenSSH's format; `ssh_agents`:
    whether its clients may have their agents forwarded.
    """

    data_dir: DataDir
    api_key: str
    host: str = config.DEFAULT_HOST
    port: int = config.DEFAULT_PORT  # 0: any free port
    domain: str | None = None
    runtime_secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    ssh_host_key: str = field(default="", repr=False)
    ssh_agents: bool = True
