"""ChaCha20-Poly1305 as SSH uses it (chacha20-poly1305@openssh.com, OpenSSH's PROTOCOL.chacha20poly1305), for keys.

A packet's key stream depends on its number alone, so that of short packets is made before they come, many at once: to
ask the cipher library for each costs more than all else that a key costs here, since nothing of it is in the CPU's
caches when somebody types. Of a short packet there is left an XOR, and a sum of two or three numbers, its tag.
Longer packets are the library's.
"""

from __future__ import annotations

import os
from hmac import compare_digest
from typing import NamedTuple

from asyncssh.crypto import ChachaCipher
from asyncssh.encryption import ChachaEncryption, Encryption
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.poly1305 import Poly1305

_LENGTH_BYTES = 4  # of a packet, under a key of its own
_TAG_BYTES = 16
_ALIGNED_BYTES = 8
_PADDING_MIN_BYTES = 4
_RANDOM_BYTES = 512  # for padding: the kernel is asked once for some hundred packets
_BLOCK_BYTES = 64  # of the key stream; a packet's first one is the key of its tag
_SHORT_BYTES = 64  # of a packet: up to some forty characters typed or shown
_PADS = 16  # made at once while short packets follow each other
_FIRST_BLOCK = bytes(8)
_PRIME = (1 << 130) - 5  # Poly1305's, as the next two (RFC 8439, 2.5)
_CLAMP = 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
_LOW_128 = (1 << 128) - 1


class _Pad(NamedTuple):
    """What one short packet needs. `factor` and `added` are the key of its tag."""

    length: int
    factor: int
    added: int
    stream: bytes


class ChaCha(Encryption):
    """One direction of a connection. A packet's number must never be sealed twice."""

    def __init__(self, key: bytes) -> None:
        self._packets = Cipher(ChaCha20(key[:32], bytes(16)), None).encryptor()
        self._lengths = Cipher(ChaCha20(key[32:], bytes(16)), None).encryptor()
        self._pads: list[_Pad] = []
        self._first = 0  # the number of the first of them
        self._random = b""

    @classmethod
    def instead_of(cls, made: Encryption | None) -> Encryption | None:
        """What goes on where asyncssh's own stands; any other kind is left as it is."""
        if type(made) is not ChachaEncryption:
            return made
        cipher: ChachaCipher = made._cipher
        return cls(cipher._key + cipher._adkey)

    # --- whole packets ---

    def seal(self, payload: bytes, number: int) -> bytes:
        """A packet as it goes over the wire."""
        padding = -(1 + len(payload)) % _ALIGNED_BYTES
        if padding < _PADDING_MIN_BYTES:
            padding += _ALIGNED_BYTES
        if len(self._random) < padding:
            self._random = os.urandom(_RANDOM_BYTES)
        plain = b"%c%b%b" % (padding, payload, self._random[:padding])
        self._random = self._random[padding:]
        size = len(plain)
        if size > _SHORT_BYTES:
            return b"".join(self.encrypt_packet(number, size.to_bytes(_LENGTH_BYTES, "big"), plain))
        length, factor, added, stream = self._pad(number)
        hidden = int.from_bytes(plain, "little") ^ int.from_bytes(stream[:size], "little")
        sealed = (length ^ size).to_bytes(_LENGTH_BYTES, "big") + hidden.to_bytes(size, "little")
        return sealed + _tag(sealed, factor, added)

    def opened(self, wire: bytes, number: int) -> bytes | None:
        """What `wire` holds (length of the padding, payload, padding), if it is one whole packet, and it is good."""
        size = len(wire) - _LENGTH_BYTES - _TAG_BYTES
        if size <= 0:
            return None
        if size > _SHORT_BYTES:
            return self._opened_long(wire, number, size)
        length, factor, added, stream = self._pad(number)
        if int.from_bytes(wire[:_LENGTH_BYTES], "big") ^ length != size:
            return None
        sealed = wire[:-_TAG_BYTES]
        if not compare_digest(_tag(sealed, factor, added), wire[-_TAG_BYTES:]):
            return None
        hidden = int.from_bytes(sealed[_LENGTH_BYTES:], "little")
        return (hidden ^ int.from_bytes(stream[:size], "little")).to_bytes(size, "little")

    def _opened_long(self, wire: bytes, number: int, size: int) -> bytes | None:
        _, length = self.decrypt_header(number, wire, _LENGTH_BYTES)
        if int.from_bytes(length, "big") != size:
            return None
        return self.decrypt_packet(number, wire[:_LENGTH_BYTES], wire[_LENGTH_BYTES:-_TAG_BYTES], 4, wire[-_TAG_BYTES:])

    # --- key streams ---

    def _pad(self, number: int) -> _Pad:
        place = number - self._first
        if not 0 <= place < len(self._pads):
            # Short packets among long ones are not worth it.
            count = _PADS if place == len(self._pads) else 1
            self._pads = [self._made(each) for each in range(number, number + count)]
            self._first, place = number, 0
        return self._pads[place]

    def _made(self, number: int) -> _Pad:
        self._begin(self._lengths, number)
        self._begin(self._packets, number)
        length = int.from_bytes(self._lengths.update(bytes(_LENGTH_BYTES)), "big")
        stream = self._packets.update(bytes(_BLOCK_BYTES + _SHORT_BYTES))
        factor = int.from_bytes(stream[:16], "little") & _CLAMP
        return _Pad(length, factor, int.from_bytes(stream[16:32], "little"), stream[_BLOCK_BYTES:])

    @staticmethod
    def _begin(cipher: object, number: int) -> None:
        cipher.reset_nonce(_FIRST_BLOCK + number.to_bytes(8, "big"))  # type: ignore[attr-defined]

    # --- what asyncssh asks of any encryption ---

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        self._begin(self._lengths, seq)
        self._begin(self._packets, seq)
        key = self._packets.update(bytes(_BLOCK_BYTES))[:32]
        sealed = self._lengths.update(header) + self._packets.update(packet)
        return sealed, Poly1305.generate_tag(key, sealed)

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:
        self._begin(self._lengths, seq)
        return first_block, self._lengths.update(first_block[:header_len])

    def decrypt_packet(self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes | None:
        self._begin(self._packets, seq)
        key = self._packets.update(bytes(_BLOCK_BYTES))[:32]
        sealed = first[header_len:] + rest
        try:
            Poly1305.verify_tag(key, first[:header_len] + sealed, mac)
        except InvalidSignature:
            return None
        return self._packets.update(sealed)


def _tag(sealed: bytes, factor: int, added: int) -> bytes:
    """Poly1305. The key is good for one packet alone: how long this takes tells nothing of use."""
    total = 0
    for at in range(0, len(sealed), 16):
        total = (total + int.from_bytes(sealed[at : at + 16] + b"\1", "little")) * factor % _PRIME
    return ((total + added) & _LOW_128).to_bytes(_TAG_BYTES, "little")
