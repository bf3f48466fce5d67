"""AES-GCM as SSH uses it (RFC 5647, aes128-gcm@openssh.com), with a cipher that is kept.

asyncssh sets up the key anew for each packet, which takes longer than the packet of a key that somebody types.
"""

from __future__ import annotations

from asyncssh.encryption import Encryption, GCMEncryption
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_LENGTH_BYTES = 4  # of a packet, in the clear and authenticated
_BLOCK_BYTES = 16
_TAG_BYTES = 16
_PADDING_MIN_BYTES = 4
_COUNTS = 1 << 64


class Gcm(Encryption):
    """One direction of a connection. A nonce is four fixed bytes, and a count of packets."""

    def __init__(self, key: bytes, nonce: bytes) -> None:
        self._cipher = AESGCM(key)
        self._fixed = nonce[:4]
        self._count = int.from_bytes(nonce[4:], "big")

    @classmethod
    def instead_of(cls, made: Encryption | None) -> Encryption | None:
        """What goes on where asyncssh's own stands; any other kind is left as it is."""
        if type(made) is not GCMEncryption:
            return made
        return cls(made._cipher._key, made._cipher._iv)

    def _nonce(self) -> bytes:
        return self._fixed + self._count.to_bytes(8, "big")

    def passed(self) -> None:
        """Another packet: the next one has another nonce."""
        self._count = (self._count + 1) % _COUNTS

    # --- whole packets ---

    def seal(self, head: bytes, data: bytes) -> bytes:
        """A packet as it goes over the wire. It is padded with zeros: nobody learns what they are."""
        size = 1 + len(head) + len(data)
        padding = -size % _BLOCK_BYTES
        if padding < _PADDING_MIN_BYTES:
            padding += _BLOCK_BYTES
        length = (size + padding).to_bytes(_LENGTH_BYTES, "big")
        plain = b"%c%b%b%b" % (padding, head, data, bytes(padding))
        sealed = self._cipher.encrypt(self._fixed + self._count.to_bytes(8, "big"), plain, length)
        self._count = (self._count + 1) % _COUNTS
        return length + sealed

    def opened(self, wire: bytes) -> bytes | None:
        """What `wire` holds, if it is one whole packet, and good: the padding's length, payload, padding.

        Nothing has happened yet: `passed` is for the caller.
        """
        length = wire[:_LENGTH_BYTES]
        if len(wire) != _LENGTH_BYTES + int.from_bytes(length, "big") + _TAG_BYTES:
            return None
        try:
            return self._cipher.decrypt(self._nonce(), wire[_LENGTH_BYTES:], length)
        except InvalidTag:
            return None

    # --- what asyncssh asks of any encryption ---

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        sealed = self._cipher.encrypt(self._nonce(), packet, header)
        self.passed()
        return header + sealed[:-_TAG_BYTES], sealed[-_TAG_BYTES:]

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:
        return first_block, first_block[:header_len]

    def decrypt_packet(self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes | None:
        try:
            return self._cipher.decrypt(self._nonce(), first[header_len:] + rest + mac, first[:header_len])
        except InvalidTag:
            return None
        finally:
            self.passed()
