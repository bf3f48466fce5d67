"""What `sandpty serve` does about TLS while it is root: choose the certificate, open the port."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from sandpty import config
from sandpty.certificates import store
from sandpty.certificates.store import Choice
from sandpty.config import DataDir
from sandpty.wire.errors import SandptyError


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Of the command line. Without `cert` and `key` a local authority is made."""

    port: int
    cert: Path | None
    key: Path | None

    @classmethod
    def of(cls, port: int | None, cert: Path | None, key: Path | None, domain: str | None) -> TlsOptions | None:
        """None: no TLS is asked for. Raises bad_argument for half of what it needs."""
        if port is None and cert is None and key is None:
            return None
        if (cert is None) != (key is None):
            raise SandptyError("bad_argument", "--tls-cert and --tls-key go together")
        if domain is None:
            raise SandptyError("bad_argument", "TLS needs --domain: certificates are for names")
        return cls(config.DEFAULT_TLS_PORT if port is None else port, cert, key)


def choose(data: DataDir, options: TlsOptions | None, domain: str | None) -> None:
    """Keep which certificate is used, where the supervisor finds it. Raises bad_argument, runtime_failed."""
    if options is None:
        store.choose(data, None)
        return
    if options.cert is not None and options.key is not None:
        choice = Choice(cert=str(options.cert.absolute()), key=str(options.key.absolute()))
    else:
        choice = Choice(domain=store.checked_domain(domain or ""))
        store.issue(data, choice.domain)
    store.pair(data, choice)
    store.choose(data, choice)


def public_domain(domain: str | None, listener: socket.socket | None) -> str | None:
    """What clients are told: with the port of the TLS listener, unless it is the usual one or the domain names one."""
    if domain is None or listener is None or ":" in domain:
        return domain
    port = listener.getsockname()[1]
    return domain if port == config.DEFAULT_TLS_PORT else f"{domain}:{port}"
