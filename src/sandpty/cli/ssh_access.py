"""What ssh needs to reach a server's gateway: a key of our own, a certificate for it, known_hosts, a configuration.

<state>/sandpty/ssh/<name>/   0700; every file 0600 and replaced as a whole, so that none ever holds a line twice
    id_ed25519, id_ed25519.pub, id_ed25519-cert.pub
    known_hosts               one line
    config                    one Host block: what ssh_config files include
    access.json               for whom the certificate is, and until when
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sandpty.cli.connection import Server
from sandpty.wire.errors import SandptyError

READY = "SANDPTY_SSH_READY"  # set to 1 by who has just renewed
RENEW_BEFORE_S = 15 * 60.0  # a certificate that is about to expire is renewed
_WILDCARDS = {"0.0.0.0", "::"}
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def state_dir() -> Path:
    """By the XDG rules."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "sandpty" / "ssh"


@dataclass(frozen=True, slots=True)
class Access:
    """Files of one server, under the name by which ssh knows it."""

    name: str
    directory: Path

    @property
    def identity(self) -> Path:
        return self.directory / "id_ed25519"

    @property
    def certificate(self) -> Path:
        return self.directory / "id_ed25519-cert.pub"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def config(self) -> Path:
        return self.directory / "config"


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Several ssh may begin at once, and each renews."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def access(server: Server, name: str, renewing: str, *, only_if_due: bool = False) -> Access:
    """Have everything there and of use for a while. `renewing`: the command that calls this, for ssh to run.

    Raises server_unreachable, unauthenticated, unsupported (no SSH there), bad_argument.
    """
    found = Access(name, state_dir() / name)
    owner = hashlib.sha256(f"{server.url} {server.api_key}".encode()).hexdigest()[:16]
    with _alone(found.directory):
        if only_if_due and _fresh(found, owner):
            return found
        answer = _ask(server, _public_key(found))
        write(found.certificate, answer["certificate"] + "\n")
        write(found.known_hosts, f"{name} {answer['host_key']}\n")
        write(found.config, block(found, _host(answer["host"], server.url), answer["port"], renewing))
        until = datetime.fromisoformat(answer["expires_at"]).timestamp()
        write(found.directory / "access.json", json.dumps({"owner": owner, "until": until}))
    return found


def _fresh(found: Access, owner: str) -> bool:
    try:
        kept = json.loads((found.directory / "access.json").read_text())
        files = (found.identity, found.certificate, found.known_hosts, found.config)
        return kept["owner"] == owner and kept["until"] > time.time() + RENEW_BEFORE_S and all(map(Path.is_file, files))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _ask(server: Server, public_key: str) -> dict[str, Any]:
    from sandpty.sdk import AsyncClient

    async def asked() -> dict[str, Any]:
        async with AsyncClient(server.url, server.api_key) as client:
            return await client.ssh_certificate(public_key)

    return asyncio.run(asked())


def _public_key(found: Access) -> str:
    """Of the key that is there; made when there is none."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = serialization.load_ssh_private_key(found.identity.read_bytes(), password=None)
    except (OSError, ValueError):
        key = Ed25519PrivateKey.generate()
        form = serialization.PrivateFormat.OpenSSH
        text = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        write(found.identity, text.decode())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    write(found.identity.with_suffix(".pub"), public + " sandpty\n")
    return public


def _host(listening: str, url: str) -> str:
    """Where a client connects to: what the gateway listens on, or, when that is everywhere, the server's own host."""
    reached = urlsplit(url).hostname or "127.0.0.1"
    if listening in _WILDCARDS:
        return reached
    if listening in _LOOPBACK and reached not in _LOOPBACK:
        raise SandptyError("unsupported", f"SSH of {url} is for its own machine only (sandpty serve --ssh-host)")
    return listening


def block(found: Access, host: str, port: int, renewing: str) -> str:
    """One Host block. The certificate is renewed by ssh itself, before it reads it."""
    lines = [
        f"Match originalhost {found.name} exec {quoted(renewing)}",
        f"Host {found.name}",
        f"    HostName {host}",
        f"    Port {port}",
        f"    HostKeyAlias {found.name}",
        f"    UserKnownHostsFile {quoted(str(found.known_hosts))}",
        "    StrictHostKeyChecking yes",
        "    UpdateHostKeys no",
        f"    IdentityFile {quoted(str(found.identity))}",
        f"    CertificateFile {quoted(str(found.certificate))}",
        "    IdentitiesOnly yes",
        "    PreferredAuthentications publickey",
        "    ProxyCommand none",
    ]
    return "\n".join(lines) + "\n"


def renewal(name: str, data_dir: Path | None, url: str | None) -> str:
    """The command that renews, as ssh runs it."""
    words = [sys.executable, "-m", "sandpty.cli.main", "ssh-config", "--renew", "--name", name]
    words += ["--data-dir", str(data_dir.absolute())] if data_dir is not None else []
    words += ["--url", url] if url is not None else []
    return f"test x${READY} = x1 || {shlex.join(words)}"


def quoted(text: str) -> str:
    """An argument of ssh_config(5): in double quotes, with %% for %. Raises bad_argument for what cannot be said."""
    if any(character in text for character in '"\\\n\r\0'):
        raise SandptyError("bad_argument", f"ssh's configuration cannot name {text!r}")
    return '"' + text.replace("%", "%%") + '"'


def write(path: Path, text: str) -> None:
    """Atomically, 0600."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SandptyError("no_space", f"{path} cannot be written: {error.strerror}") from error


def include(config: Path, what: Path) -> bool:
    """Make `config` include `what`, at its top, because after a Host line it would be a part of that. Whether it was
    changed: what is included already is left alone."""
    line = f"Include {quoted(str(what))}"
    real = config.resolve()
    try:
        before = real.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        before = ""
        real.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SandptyError("bad_argument", f"{config} cannot be read: {error.strerror}") from error
    if line in (each.strip() for each in before.splitlines()):
        return False
    write(real, f"{line}\n{before}")
    return True
