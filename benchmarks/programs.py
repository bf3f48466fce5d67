"""The C programs, compiled at each run, and an OpenSSH server of our own on loopback."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROGRAM_TIMEOUT_S = 60.0
COMPILE_TIMEOUT_S = 120.0
SSHD_START_S = 10.0
RAW_CAT = ["/bin/sh", "-c", "stty raw -echo; echo READY; exec cat"]  # what is typed comes back, nothing else does
BASH = ["/usr/bin/env", "PS1=READY> ", "bash", "--norc", "--noprofile", "-i"]
SHELL_LINE_KEYS = 40  # keys per line: below the width of the terminal, where a shell begins to redraw


def cat_when_told(path: str) -> list[str]:
    """A program that says READY, waits for a newline, and prints a file."""
    return ["/bin/sh", "-c", f"stty -echo; echo READY; read line; exec cat {shlex.quote(path)}"]


def compiler() -> list[str]:
    """The machine's C compiler, else zig from the wheel that builds the agent."""
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    return [sys.executable, "-m", "ziglang", "cc"]


@dataclass
class Programs:
    """Paths of the compiled programs."""

    pty_reader: str
    ws_client: str


def compile_all(directory: Path) -> Programs:
    """Compile into `directory`. Raises CalledProcessError."""
    made = {}
    for name in ("pty_reader", "ws_client"):
        made[name] = str(directory / name)
        command = [*compiler(), "-O2", "-o", made[name], str(HERE / f"{name}.c")]
        if name == "pty_reader":
            command.append("-lutil")
        subprocess.run(command, check=True, timeout=COMPILE_TIMEOUT_S)
    return Programs(**made)


def output_of(command: Sequence[str]) -> str:
    """What a program prints. Raises RuntimeError with its last words when it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} {' '.join(command[1:4])}...: {done.stderr.strip()[-500:]}")
    return done.stdout


def microseconds(command: Sequence[str]) -> list[float]:
    """The samples of an echo run."""
    return [float(line) for line in output_of(command).split()]


def figures(command: Sequence[str]) -> dict[str, Any]:
    """The JSON object of a throughput run."""
    found: dict[str, Any] = json.loads(output_of(command))
    return found


@dataclass
class Sshd:
    """A running OpenSSH server and how to log in."""

    port: int
    directory: Path

    def command(self, remote: Sequence[str]) -> list[str]:
        """`ssh` with a terminal, running `remote`."""
        options = {
            "UserKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "no",
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
        }
        words = ["ssh", "-F", "none", "-tt", "-p", str(self.port), "-i", str(self.directory / "user_key")]
        for name, value in options.items():
            words += ["-o", f"{name}={value}"]
        return [*words, "127.0.0.1", shlex.join(remote)]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        return connection.recv(4) == b"SSH-"
    return False


@contextmanager
def sshd(parent: Path, home: Path) -> Iterator[Sshd]:
    """OpenSSH on a free loopback port with keys of its own. Raises FileNotFoundError when it is not installed."""
    from tests.waiting import until_sync

    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    program = shutil.which("sshd", path=path)
    if program is None or shutil.which("ssh") is None:
        raise FileNotFoundError("sshd or ssh")
    directory = Path(tempfile.mkdtemp(prefix="sshd-", dir=parent))
    for name in ("host_key", "user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True, timeout=20
        )
    (directory / "authorized_keys").write_bytes((directory / "user_key.pub").read_bytes())
    port = free_port()
    config = directory / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory}/host_key\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {directory}/authorized_keys\nStrictModes no\nPermitRootLogin yes\n"
        "PasswordAuthentication no\nPrintMotd no\nPrintLastLog no\nUseDNS no\n"
        f"SetEnv HOME={home}\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it separates its privileges
    with (directory / "sshd.log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=log)
        try:
            until_sync(lambda: _answers(port), SSHD_START_S, "sshd answers")
            yield Sshd(port, directory)
        finally:
            process.terminate()
            process.wait(10)
