"""ChaCha20-Poly1305 as SSH uses it (chacha20-poly1305@openssh.com, OpenSSH's PROTOCOL.chacha20poly1305), for keys.

A packet's key stream depends on its number alone, so that of short packets is made before they come, many at once. Of
a short packet there is left an XOR, and the sum that is its tag: done on whole numbers, in few steps, because nothing
of them is in the CPU's caches when somebody types. Longer packets are the cipher library's.
"""

from __future__ import annotations

import os

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
_BLOCK_BYTES = 64  # of the key stream; a packet's first one is the key of its tag
_SHORT_BYTES = 64  # of a packet: up to some forty characters typed or shown
_PADS = 16  # made at once while short packets follow each other
_FIRST_BLOCK = bytes(8)
# Poly1305 (RFC 8439, 2.5): parts of 16 bytes, each with a bit above it.
_PART_BYTES = 16
_PART_END = 1 << 8 * _PART_BYTES
_PART = _PART_END - 1
_PRIME = (1 << 130) - 5
_CLAMP = 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
_Pad = tuple[int, int, int]  # of one short packet: its tag's key (factor, what is added), key stream, length's included


def _padding(payload_bytes: int) -> int:
    padding = -(1 + payload_bytes) % _ALIGNED_BYTES
    return padding if padding >= _PADDING_MIN_BYTES else padding + _ALIGNED_BYTES


def _head(payload_bytes: int) -> bytes:
    """What goes before a payload: the length of all that follows, and of the padding."""
    padding = _padding(payload_bytes)
    return (1 + payload_bytes + padding).to_bytes(_LENGTH_BYTES, "big") + bytes((padding,))


_SHORT_PAYLOAD_BYTES = _SHORT_BYTES - 1 - _PADDING_MIN_BYTES
_HEADS = [_head(size) for size in range(_SHORT_PAYLOAD_BYTES + 1)]
_MASKS = [(1 << 8 * size) - 1 for size in range(_LENGTH_BYTES + _SHORT_BYTES + 1)]


class ChaCha(Encryption):
    """One direction of a connection. A packet's number must never be sealed twice."""

    def __init__(self, key: bytes) -> None:
        self._packets = Cipher(ChaCha20(key[:32], bytes(16)), None).encryptor()
        self._lengths = Cipher(ChaCha20(key[32:], bytes(16)), None).encryptor()
        self._pads: list[_Pad] = []
        self._first = 0  # the number of the first of them

    @classmethod
    def instead_of(cls, made: Encryption | None) -> Encryption | None:
        """What goes on where asyncssh's own stands; any other kind is left as it is."""
        if type(made) is not ChachaEncryption:
            return made
        cipher: ChachaCipher = made._cipher
        return cls(cipher._key + cipher._adkey)

    # --- whole packets ---

    def seal(self, head: bytes, data: bytes, number: int) -> bytes:
        """A packet as it goes over the wire. A short one is padded with zeros: their key stream is of no other use."""
        size = len(head) + len(data)
        if size > _SHORT_PAYLOAD_BYTES:
            return self._sealed_long(head, data, number)
        place = number - self._first
        factor, added, stream = self._pads[place] if 0 <= place < len(self._pads) else self._pad(number)
        plain = _HEADS[size] + head + data
        size = _LENGTH_BYTES + plain[3]
        sealed = int.from_bytes(plain, "little") ^ stream & _MASKS[size]
        return (sealed | _tag(sealed, size, factor, added) << 8 * size).to_bytes(size + _TAG_BYTES, "little")

    def opened(self, wire: bytes, number: int) -> bytes | None:
        """What `wire` holds, if it is one whole packet, and good: its length, the padding's, payload, padding."""
        size = len(wire) - _TAG_BYTES
        if not _LENGTH_BYTES < size <= _SHORT_BYTES + _LENGTH_BYTES:
            return self._opened_long(wire, number, size)
        place = number - self._first
        factor, added, stream = self._pads[place] if 0 <= place < len(self._pads) else self._pad(number)
        sealed = int.from_bytes(wire[:size], "little")
        # A tag's key is good for one packet, and a wrong one ends the connection: how long this takes tells nothing.
        if _tag(sealed, size, factor, added) != int.from_bytes(wire[size:], "little"):
            return None
        plain = (sealed ^ stream & _MASKS[size]).to_bytes(size, "little")
        return plain if int.from_bytes(plain[:_LENGTH_BYTES], "big") == size - _LENGTH_BYTES else None

    def _sealed_long(self, head: bytes, data: bytes, number: int) -> bytes:
        """In parts, so that the data is copied but twice."""
        begin = _head(len(head) + len(data))
        padding = os.urandom(_padding(len(head) + len(data)))
        key = self._key(number)
        self._begin(self._lengths, number)
        parts = [self._lengths.update(begin[:_LENGTH_BYTES])]
        parts += map(self._packets.update, (begin[_LENGTH_BYTES:] + head, data, padding))
        tag = Poly1305(key)
        for part in parts:
            tag.update(part)
        parts.append(tag.finalize())
        return b"".join(parts)

    def _opened_long(self, wire: bytes, number: int, size: int) -> bytes | None:
        if size <= _LENGTH_BYTES:
            return None
        _, length = self.decrypt_header(number, wire, _LENGTH_BYTES)
        if int.from_bytes(length, "big") != size - _LENGTH_BYTES:
            return None
        plain = self.decrypt_packet(number, wire[:_LENGTH_BYTES], wire[_LENGTH_BYTES:size], _LENGTH_BYTES, wire[size:])
        return None if plain is None else length + plain

    # --- key streams ---

    def _pad(self, number: int) -> _Pad:
        """Of a packet for which there is none: this one and its successors."""
        # Short packets among long ones are not worth it.
        count = _PADS if number == self._first + len(self._pads) else 1
        self._pads = [self._made(each) for each in range(number, number + count)]
        self._first = number
        return self._pads[0]

    def _made(self, number: int) -> _Pad:
        self._begin(self._lengths, number)
        self._begin(self._packets, number)
        length = self._lengths.update(bytes(_LENGTH_BYTES))
        stream = self._packets.update(bytes(_BLOCK_BYTES + _SHORT_BYTES))
        return (
            int.from_bytes(stream[:16], "little") & _CLAMP,
            int.from_bytes(stream[16:32], "little"),
            int.from_bytes(length + stream[_BLOCK_BYTES:], "little"),
        )

    def _key(self, number: int) -> bytes:
        """Of a packet's tag; its key stream is the next."""
        self._begin(self._packets, number)
        return self._packets.update(bytes(_BLOCK_BYTES))[:32]

    @staticmethod
    def _begin(cipher: object, number: int) -> None:
        cipher.reset_nonce(_FIRST_BLOCK + number.to_bytes(8, "big"))  # type: ignore[attr-defined]

    # --- what asyncssh asks of any encryption ---

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        key = self._key(seq)
        self._begin(self._lengths, seq)
        sealed = self._lengths.update(header) + self._packets.update(packet)
        return sealed, Poly1305.generate_tag(key, sealed)

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:
        self._begin(self._lengths, seq)
        return first_block, self._lengths.update(first_block[:header_len])

    def decrypt_packet(self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes | None:
        key = self._key(seq)
        sealed = first[header_len:] + rest
        try:
            Poly1305.verify_tag(key, first[:header_len] + sealed, mac)
        except InvalidSignature:
            return None
        return self._packets.update(sealed)


def _tag(sealed: int, size: int, factor: int, added: int) -> int:
    """Poly1305 of `size` bytes, little-endian."""
    total = 0
    while size > _PART_BYTES:
        total = (total + (sealed & _PART | _PART_END)) * factor
        sealed >>= 8 * _PART_BYTES
        size -= _PART_BYTES
    return ((total + (sealed | 1 << 8 * size)) * factor % _PRIME + added) & _PART
