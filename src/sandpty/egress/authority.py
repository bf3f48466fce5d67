"""The certificate authority that sandboxes with headers in their policy trust, and what it vouches for.

Its key is read as root, from a file that is root's alone; afterwards only this process has it, which cannot be traced
and leaves no core. Any host could be vouched for, so it is trusted nowhere but in sandboxes.
"""

from __future__ import annotations

import datetime
import os
import secrets
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from sandpty import config
from sandpty.certificates import authority, signing
from sandpty.certificates.store import write

CERTIFICATE, KEY = "ca.pem", "ca.key"


class Authority:
    """Hosts' certificates are made when they are first asked for, with one key, which is never on a disk."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._signer = key
        self._key = signing.new_key()
        self._contexts: dict[str, tuple[datetime.datetime, ssl.SSLContext]] = {}

    def has(self, name: str) -> bool:
        """Whether nothing has to be made for that host."""
        return name in self._contexts

    def context(self, name: str) -> ssl.SSLContext:
        """For a server that is `name` (in normal form) to a sandbox."""
        until, context = self._contexts.pop(name, (signing.now(), None))
        if context is None or until <= signing.now():
            until = signing.now() + datetime.timedelta(days=config.EGRESS_LEAF_DAYS / 2)
            context = self._made(name)
        self._contexts[name] = (until, context)  # to the end of the order
        if len(self._contexts) > config.EGRESS_LEAVES_MAX:
            del self._contexts[next(iter(self._contexts))]
        return context

    def _made(self, name: str) -> ssl.SSLContext:
        leaf = signing.leaf(
            self._certificate,
            self._signer,
            self._key.public_key(),
            [x509.DNSName(name)],
            title=name,
            days=config.EGRESS_LEAF_DAYS,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0
        _load(context, signing.pem(leaf) + signing.key_pem(self._key))
        return context


def _load(context: ssl.SSLContext, chain: bytes) -> None:
    """The standard library takes a chain and its key from a file only: this one is nowhere but in our memory."""
    descriptor = os.memfd_create("leaf", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, chain)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def open_authority(directory: Path) -> Authority:
    """The one whose files are there; made when it is missing or ends soon. Raises OSError, ValueError."""
    if authority.expires_within(directory / CERTIFICATE, authority.RENEW_DAYS) or not (directory / KEY).exists():
        key = signing.new_key()
        write(directory / KEY, signing.key_pem(key), 0o600)
        title = f"sandpty egress authority {secrets.token_hex(4)}"  # clients find issuers by their names
        certificate = signing.authority(title, key, config.EGRESS_AUTHORITY_DAYS)
        write(directory / CERTIFICATE, signing.pem(certificate), 0o600)
    return Authority(*authority.read(directory))
