"""Where certificates and keys are, and which of them the server is to use. Everything secret is root's alone.

<data>/tls.json            what `sandpty serve` was asked for: files of the user's, or a domain of the local authority
<data>/ca/<domain>/        the local authority of a domain: ca.pem for everybody, ca.key 0600; leaf.pem, leaf.key 0600
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from sandpty import config
from sandpty.config import DataDir
from sandpty.wire.errors import SandptyError

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})+")


@dataclass(frozen=True, slots=True)
class Choice:
    """`cert` and `key`: paths of PEM files; or `domain`: of the local authority."""

    cert: str = ""
    key: str = ""
    domain: str = ""


def choose(data: DataDir, choice: Choice | None) -> None:
    """Keep what the server is to use; None: no TLS."""
    if choice is None:
        data.tls.unlink(missing_ok=True)
    else:
        write(data.tls, json.dumps(asdict(choice)).encode(), 0o600)


def chosen(data: DataDir) -> Choice:
    """Raises conflict when the server was started without TLS."""
    try:
        return Choice(**json.loads(data.tls.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise SandptyError("conflict", "this server was started without TLS") from None


def write(path: Path, content: bytes, mode: int) -> None:
    """Atomically, and never readable for a moment to more than `mode` says."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask is
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)


def checked_domain(text: str) -> str:
    """The name without a port, in lower case. Raises bad_argument unless a certificate for `*.name` is of use."""
    name = text.partition(":")[0].rstrip(".").lower()
    if not _DOMAIN.fullmatch(name):
        message = f"{text[:80]!r} cannot have a wildcard certificate: name a domain of two parts or more,"
        raise SandptyError("bad_argument", f"{message} for example `sandpty.localhost`")
    return name


def authority_dir(data: DataDir, domain: str) -> Path:
    return data.root / "ca" / domain


def authorities(data: DataDir) -> list[str]:
    """The domains that have a local authority."""
    return sorted(path.parent.name for path in (data.root / "ca").glob("*/ca.pem"))


def issue_command(data: DataDir, domain: str) -> list[str]:
    """Makes the authority and its certificate, or renews what is about to expire. Another process: it needs a library
    that neither server nor supervisor should carry."""
    directory = authority_dir(data, domain)
    return [sys.executable, "-m", "sandpty.certificates.issue", "--directory", str(directory), "--domain", domain]


def issue(data: DataDir, domain: str) -> None:
    """Run it and wait. Raises bad_argument, runtime_failed."""
    command = issue_command(data, checked_domain(domain))
    done = subprocess.run(command, capture_output=True, text=True, timeout=config.CERTIFICATE_TIMEOUT_S, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise SandptyError(
            "runtime_failed", f"no certificate for {domain}: {lines[-1] if lines else 'no reason given'}"
        )


def pair(data: DataDir, choice: Choice) -> tuple[bytes, bytes]:
    """Certificate chain and key, in PEM. Raises bad_argument when they cannot be read or do not fit."""
    directory = authority_dir(data, choice.domain)
    cert, key = (directory / "leaf.pem", directory / "leaf.key") if choice.domain else (choice.cert, choice.key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
        return Path(cert).read_bytes(), Path(key).read_bytes()
    except ssl.SSLError as error:
        raise SandptyError("bad_argument", f"{cert} and {key} are no certificate and its key") from error
    except OSError as error:
        raise SandptyError("bad_argument", f"{error.filename or cert} cannot be read: {error.strerror}") from error
