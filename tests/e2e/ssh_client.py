"""OpenSSH's own programs against a server of ours, with a home directory of their own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.server_fixture import RunningServer, sandpty

TIMEOUT_S = 60.0
QUIET = ("-o", "LogLevel=ERROR")


@dataclass(frozen=True)
class Client:
    """ssh, scp and sftp that know the server as `sandpty`, by what `sandpty ssh-config` has written."""

    server: RunningServer
    home: Path
    config: Path
    port: int
    agent: Path | None = None  # of the person

    @property
    def env(self) -> dict[str, str]:
        """No key and no address but those of the data directory; nothing of this machine's ssh."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("E2B_", "SANDPTY_", "SSH_", "LC_", "LANG"))
        }
        own = {"HOME": str(self.home), "XDG_STATE_HOME": str(self.home), "SANDPTY_DATA_DIR": str(self.server.data_dir)}
        if self.agent is not None:
            own["SSH_AUTH_SOCK"] = str(self.agent)
        return {**kept, **own, "SANDPTY_SSH_READY": "1"}  # the certificate is new; it need not be looked at each time

    def command(self, *words: str, program: str = "ssh") -> list[str]:
        """A command line of one of OpenSSH's programs."""
        quiet = () if any(word.startswith("LogLevel=") for word in words) else QUIET
        return [program, "-F", str(self.config), *quiet, *words]

    def line(self, *words: str) -> str:
        """As one types it."""
        return shlex.join(self.command(*words))

    def run(self, *words: str, stdin: bytes | None = None, program: str = "ssh") -> subprocess.CompletedProcess[bytes]:
        """To its end."""
        return subprocess.run(
            self.command(*words, program=program),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            env=self.env,
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
        )

    def out(self, *words: str, stdin: bytes | None = None, program: str = "ssh") -> bytes:
        """What it prints; it must end well."""
        done = self.run(*words, stdin=stdin, program=program)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    @contextmanager
    def running(self, *words: str, program: str = "ssh") -> Iterator[subprocess.Popen[bytes]]:
        """While something else is done; ended at the end."""
        process = subprocess.Popen(
            self.command(*words, program=program),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate(timeout=TIMEOUT_S)

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of ours."""
        return subprocess.run(
            sandpty(*words),
            stdin=subprocess.DEVNULL,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )

    def with_password(self, password: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        """ssh with nothing but a password, which a program types."""
        asks = self.home / "askpass"
        asks.write_text(f"#!{sys.executable}\nprint({password!r})\n")
        asks.chmod(0o700)
        options = ("-o", "PreferredAuthentications=password", "-o", "NumberOfPasswordPrompts=1")
        env = {**self.env, "SSH_ASKPASS": str(asks), "SSH_ASKPASS_REQUIRE": "force"}
        return subprocess.run(
            ["ssh", *options, "-F", str(self.config), *words],
            stdin=subprocess.DEVNULL,
            env=env,
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
        )


def client_of(server: RunningServer, home: Path) -> Client:
    """What `sandpty ssh-config --write` makes of an empty home directory."""
    config = home / "ssh_config"
    made = Client(server, home, config, 0)
    done = made.cli("ssh-config", "--write", "--into", str(config))
    assert done.returncode == 0, done.stderr
    shown = made.cli("ssh-config").stdout
    port = int(next(line.split()[1] for line in shown.splitlines() if line.split()[0] == "Port"))
    return Client(server, home, config, port)
