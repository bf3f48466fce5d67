"""Public keys of SSH as lines: `TYPE BASE64 COMMENT`. Pure, and shallow: the gateway looks at what is inside."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct

from sandpty import config
from sandpty.wire.errors import SandptyError

_TYPES = frozenset(
    (
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    )
)
_LENGTH = struct.Struct(">I")


def checked(text: str) -> str:
    """The one line in `text`. Raises bad_argument for what is no public key."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if any("PRIVATE KEY" in line for line in lines):
        raise SandptyError("bad_argument", "that is a private key: keep it; its public half is the file with .pub")
    if len(lines) != 1 or len(lines[0]) > config.SSH_KEY_CHARACTERS or not lines[0].isprintable():
        raise SandptyError("bad_argument", "one public key is wanted, as it stands in a .pub file")
    kind, _, rest = lines[0].partition(" ")
    if kind not in _TYPES:
        known = ", ".join(sorted(_TYPES))
        raise SandptyError("bad_argument", f"{kind[:40]!r} is no type of key that may log in: {known}")
    blob = _blob(rest)
    if blob[_LENGTH.size : _LENGTH.size + len(kind)] != kind.encode() or _LENGTH.unpack_from(blob)[0] != len(kind):
        raise SandptyError("bad_argument", "the key is of another type than it says")
    return lines[0]


def _blob(rest: str) -> bytes:
    try:
        blob = base64.b64decode(rest.split(maxsplit=1)[0], validate=True)
    except (binascii.Error, ValueError, IndexError):
        blob = b""
    if len(blob) < _LENGTH.size + 1:
        raise SandptyError("bad_argument", "that is no public key of SSH")
    return blob


def without_comment(line: str) -> str:
    return " ".join(line.split()[:2])


def comment(line: str) -> str:
    return " ".join(line.split()[2:])


def fingerprint(line: str) -> str:
    """As `ssh-keygen -l` writes it: SHA256:..."""
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
