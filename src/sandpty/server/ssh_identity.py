"""What the SSH gateway is known by, and short-lived certificates for who has an API key.

Every API key has a certificate authority of its own, made from the server's secret and the key's id: nothing is stored,
and with the key every certificate goes. The host key is a file of the data directory, read before root is given up.
"""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import ssh

from sandpty import config
from sandpty.wire.errors import SandptyError

_EXTENSIONS = (b"permit-agent-forwarding", b"permit-port-forwarding", b"permit-pty")


def new_host_key() -> str:
    """An Ed25519 key in OpenSSH's format."""
    return _private_text(Ed25519PrivateKey.generate())


def _private_text(key: Ed25519PrivateKey) -> str:
    form = serialization.PrivateFormat.OpenSSH
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode().strip()


def _public_text(key: ssh.SSHPublicKeyTypes) -> str:
    form = serialization.PublicFormat.OpenSSH
    return key.public_bytes(serialization.Encoding.OpenSSH, form).decode()


@dataclass(frozen=True, slots=True)
class Certificate:
    """`text` is a line as in `id_ed25519-cert.pub`; `until`: unix seconds."""

    text: str
    until: int


class SshIdentity:
    """`port`: where the gateway listens; `host`: on which address."""

    def __init__(self, host_key: str, secret: bytes, host: str, port: int) -> None:
        self.host_key = host_key + "\n"
        self.host = host
        self.port = port
        self._secret = secret
        try:
            loaded = serialization.load_ssh_private_key(self.host_key.encode(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SandptyError("bad_argument", f"the SSH host key cannot be used: {error}") from error
        self.public_host_key = _public_text(loaded.public_key())

    def _authority(self, key_id: str) -> Ed25519PrivateKey:
        seed = hmac.digest(self._secret, b"ssh certificates of API key " + key_id.encode(), "sha256")
        return Ed25519PrivateKey.from_private_bytes(seed)

    def authority(self, key_id: str) -> str:
        """The public key, `TYPE BASE64`, that signs certificates for this API key."""
        return _public_text(self._authority(key_id).public_key())

    def certificate(self, key_id: str, public_key: str) -> Certificate:
        """For whoever has `public_key` (`TYPE BASE64 ...`) to log in with. Raises bad_argument."""
        try:
            subject = serialization.load_ssh_public_key(public_key.encode())
        except (ValueError, UnsupportedAlgorithm, UnicodeEncodeError) as error:
            raise SandptyError("bad_argument", f"that is no public key of SSH: {error}") from error
        now = int(time.time())
        until = now + config.SSH_CERTIFICATE_S
        builder = (
            ssh.SSHCertificateBuilder()
            .public_key(subject)  # type: ignore[arg-type]
            .type(ssh.SSHCertificateType.USER)
            .key_id(b"sandpty " + key_id.encode())
            .valid_for_all_principals()  # type: ignore[no-untyped-call]
            .valid_after(now - config.SSH_CERTIFICATE_SKEW_S)
            .valid_before(until)
        )
        for name in _EXTENSIONS:
            builder = builder.add_extension(name, b"")
        signed = builder.sign(self._authority(key_id))
        return Certificate(signed.public_bytes().decode().strip(), until)
