"""Where everything lives on the disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def default_data_dir() -> Path:
    """SANDPTY_DATA_DIR, else /var/lib/sandpty for root and ~/.local/share/sandpty for others."""
    if configured := os.environ.get("SANDPTY_DATA_DIR"):
        return Path(configured)
    if getattr(os, "geteuid", lambda: -1)() == 0:  # Windows, where a client may be, has no users of that kind
        return Path("/var/lib/sandpty")
    return Path.home() / ".local" / "share" / "sandpty"


@dataclass(frozen=True, slots=True)
class DataDir:
    """Where everything lives. Only `run/` is open to the server's account; the rest is root's alone."""

    root: Path

    @property
    def api_key(self) -> Path:
        return self.root / "api_key"

    @property
    def keys(self) -> Path:
        """Hashes of all API keys, and their teams."""
        return self.root / "keys.json"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "supervisor.sock"

    @property
    def guest_sockets(self) -> Path:
        """Where the server asks for sockets inside sandboxes."""
        return self.run / "sockets.sock"

    @property
    def tls(self) -> Path:
        """Which certificate the server uses; absent without TLS."""
        return self.root / "tls.json"

    @property
    def agents(self) -> Path:
        """Agent sockets, `<sandbox id>.sock`."""
        return self.run / "agents"

    @property
    def server_lock(self) -> Path:
        return self.root / "server.lock"

    @property
    def runtime_secret(self) -> Path:
        """What runtime tokens are signed with; read before root is given up."""
        return self.root / "runtime_secret"

    @property
    def secrets(self) -> Path:
        """Teams' secrets, which the server cannot read."""
        return self.root / "secrets.json"

    @property
    def ssh_host_key(self) -> Path:
        """The SSH gateway's private key, in OpenSSH's format; read before root is given up."""
        return self.root / "ssh_host_key"

    @property
    def server_info(self) -> Path:
        """JSON of the running server: url, pid."""
        return self.root / "server.json"

    @property
    def supervisor_lock(self) -> Path:
        return self.root / "supervisor.lock"

    @property
    def supervisor_log(self) -> Path:
        return self.root / "supervisor.log"

    @property
    def supervisor_pid(self) -> Path:
        return self.root / "supervisor.pid"

    @property
    def templates(self) -> Path:
        return self.root / "templates"

    @property
    def builds(self) -> Path:
        """Uploaded files and logs of builds: the server's own, which it may write."""
        return self.root / "builds"

    @property
    def template_records(self) -> Path:
        """One JSON file for each template that was built or imported."""
        return self.root / "template_records"

    @property
    def images(self) -> Path:
        """The trees of imported images, by id."""
        return self.root / "images"

    @property
    def registries(self) -> Path:
        """The operator's word on registries: mirrors, plain HTTP (containers-registries.conf)."""
        return self.root / "registries.conf"

    @property
    def registry_auth(self) -> Path:
        """The operator's credentials for registries (containers-auth.json, as `docker login` writes it)."""
        return self.root / "registries-auth.json"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def sandboxes(self) -> Path:
        return self.root / "sandboxes"
