"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass

from sandpty import config
from sandpty.config import DataDir


@dataclass(frozen=True, slots=True)
class Settings:
    """`api_key` is the one key of this server; `domain` (host[:port]) is what E2B clients are told."""

    data_dir: DataDir
    api_key: str
    host: str = config.DEFAULT_HOST
    port: int = config.DEFAULT_PORT  # 0: any free port
    domain: str | None = None
