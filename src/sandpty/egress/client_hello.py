"""The server name in a TLS ClientHello. Pure; every byte is hostile. Layout: RFC 8446 (4.1.2, 5.1), RFC 6066."""

from __future__ import annotations

HANDSHAKE = 0x16  # the first byte of a connection that speaks TLS
_CLIENT_HELLO = 1
_RECORD_BYTES_MAX = 16 * 1024 + 256
_SERVER_NAME, _HOST_NAME = 0, 0
# What a server says that knows no such name: a fatal alert `unrecognized_name`.
REFUSAL = bytes.fromhex("15030300020270")


class HelloError(Exception):
    """Not a ClientHello that names a server."""


class _Bytes:
    """Reads a message from its beginning; raises HelloError past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise HelloError("the ClientHello is cut short")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """Bytes after their length, which has `size` bytes."""
        return self.take(self.number(size))

    @property
    def left(self) -> bool:
        return self._at < len(self._data)


def server_name(data: bytes) -> str | None:
    """The name, in normal form; None: more bytes are needed. Raises HelloError, also when no name is given."""
    message = _handshake(data)
    return None if message is None else _name_in(message)


def _handshake(data: bytes) -> bytes | None:
    """The first handshake message, which may be spread over records."""
    message = b""
    at = 0
    while len(data) >= at + 5:
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if data[at] != HANDSHAKE or data[at + 1] != 3 or not 0 < length <= _RECORD_BYTES_MAX:
            raise HelloError("not a TLS handshake")
        message += data[at + 5 : at + 5 + length]
        if message[:1] not in (b"", bytes([_CLIENT_HELLO])):
            raise HelloError("not a ClientHello")
        if len(message) >= 4 and len(message) >= 4 + int.from_bytes(message[1:4], "big"):
            return message[4 : 4 + int.from_bytes(message[1:4], "big")]
        at += 5 + length
    if data[:1] != bytes([HANDSHAKE]) or data[1:2] not in (b"", b"\x03"):
        raise HelloError("not a TLS handshake")
    return None


def _name_in(message: bytes) -> str:
    hello = _Bytes(message)
    hello.take(2 + 32)  # legacy_version, random
    hello.vector(1)  # legacy_session_id
    hello.vector(2)  # cipher_suites
    hello.vector(1)  # legacy_compression_methods
    extensions = _Bytes(hello.vector(2) if hello.left else b"")
    found: list[str] = []
    while extensions.left:
        kind, body = extensions.number(2), _Bytes(extensions.vector(2))
        if kind == _SERVER_NAME:
            names = _Bytes(body.vector(2))
            while names.left:
                if names.number(1) != _HOST_NAME:
                    raise HelloError("a server name of an unknown kind")
                found.append(names.vector(2).decode("latin-1").lower().removesuffix("."))
    if len(found) != 1:  # two would be one for us and one for the server
        raise HelloError("no single server name is given")
    return found[0]
