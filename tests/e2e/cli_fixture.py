"""What tests of the command line share: a server, a sandbox in it, and the way to call commands."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.server_fixture import RunningServer, sandpty


@dataclass(frozen=True)
class Cli:
    """Commands against one server, with a home directory of their own."""

    server: RunningServer
    home: Path

    @property
    def env(self) -> dict[str, str]:
        """No key and no address but those of the data directory."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("E2B_", "SANDPTY_"))}
        return {**kept, "XDG_STATE_HOME": str(self.home / "state"), "SANDPTY_DATA_DIR": str(self.server.data_dir)}

    def run(
        self, *words: str, stdin: str | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command, to its end."""
        return subprocess.run(
            sandpty(*words),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def out(self, *words: str, stdin: str | None = None) -> str:
        """What a command prints; it must end well."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def line(self, *words: str) -> str:
        """A command as one types it."""
        return shlex.join(sandpty(*words))

    def sandboxes(self) -> list[str]:
        """The IDs that `ls` shows."""
        return [each["id"] for each in json.loads(self.out("ls", "--json"))]

    @contextmanager
    def sandbox(self, *options: str) -> Iterator[str]:
        """A sandbox's ID; it is ended at the end."""
        made = self.out("create", *options)
        try:
            yield made
        finally:
            self.run("kill", made)
