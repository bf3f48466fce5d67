"""A real server for tests: `sandpty serve` on a free port with a data directory of its own, and its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.waiting import until_sync

START_TIMEOUT_S = 60.0


def templates_dir() -> str:
    """Where `scripts/setup` put the base template; shared by all test servers, read-only to them."""
    return os.environ.get("SANDPTY_TEMPLATES_DIR", "/var/lib/sandpty/templates")


def sandpty(*args: str) -> list[str]:
    """The command line of our CLI in this interpreter."""
    return [sys.executable, "-m", "sandpty.cli.main", *args]


@dataclass
class RunningServer:
    """One data directory with its supervisor, and the server process in front of it, which tests may kill."""

    data_dir: Path
    args: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    url: str = ""
    port: int = 0

    @property
    def api_key(self) -> str:
        return (self.data_dir / "api_key").read_text().strip()

    @property
    def env(self) -> dict[str, str]:
        """What a vendor's SDK needs to reach this server."""
        return {
            "E2B_API_KEY": self.api_key,
            "E2B_API_URL": self.url,
            "E2B_SANDBOX_URL": self.url,
            "E2B_VOLUME_API_URL": self.url,
            "NOVITA_API_KEY": self.api_key,
            "NOVITA_API_URL": self.url,
            "NOVITA_SANDBOX_URL": self.url,
            "HYPERBROWSER_API_KEY": self.api_key,
            "HYPERBROWSER_BASE_URL": self.url.replace("127.0.0.1", "localhost"),
            "SANDPTY_URL": self.url,
            "SANDPTY_API_KEY": self.api_key,
            "SANDPTY_DATA_DIR": str(self.data_dir),
        }

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    @property
    def log(self) -> Path:
        return self.data_dir / "test-server.log"

    def supervisor_pid(self) -> int:
        return int((self.data_dir / "supervisor.pid").read_text())

    def start(self) -> None:
        """Start (again, on the same port) and wait until it answers."""
        command = sandpty("serve", "--data-dir", str(self.data_dir), "--port", str(self.port), *self.args)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until_sync(self._answers, START_TIMEOUT_S, f"the server answers; its log:\n{self.log.read_text()[-3000:]}")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"sandpty serve ended with {self.process.returncode}:\n{self.log.read_text()[-3000:]}")
        with suppress(OSError, ValueError, KeyError, httpx.HTTPError):
            self.url = json.loads((self.data_dir / "server.json").read_text())["url"]
            self.port = int(self.url.rsplit(":", 1)[1])
            return httpx.get(f"{self.url}/healthz", timeout=2).status_code == 200
        return False

    def kill(self, how: int = signal.SIGKILL) -> None:
        """End the server process only; supervisor and sandboxes live on."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(10)

    def stop(self) -> None:
        """End everything: sandboxes, supervisor, server, data directory."""
        self.kill(signal.SIGTERM)
        subprocess.run(
            sandpty("down", "--data-dir", str(self.data_dir)), stdin=subprocess.DEVNULL, check=False, timeout=60
        )
        shutil.rmtree(self.data_dir, ignore_errors=True)


@contextmanager
def running_server(*args: str) -> Iterator[RunningServer]:
    """`sandpty serve` with a new data directory. The directory's path is short: unix socket paths end at 107 bytes."""
    server = RunningServer(
        Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp")), ["--templates-dir", templates_dir(), *args]
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()
