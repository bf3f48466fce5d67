"""The server name in a TLS ClientHello. Pure; every byte is hostile. Layout: RFC 8446 (4.1.2, 5.1), RFC 6066."""

from __future__ import annotations

HANDSHAKE = 0x16  # the first byte of a connection that speaks TLS
_CLIENT_HELLO = 1
_HEAD_BYTES = 5  # of a record: type, version, length
_RECORD_BYTES_MAX = 16 * 1024 + 256
_SERVER_NAME, _HOST_NAME = 0, 0
# What a server says that knows no such name: a fatal alert `unrecognized_name`.
REFUSAL = bytes.fromhex("15030300020270")
# The random of a ServerHello that is a HelloRetryRequest (RFC 8446, 4.1.3): a second ClientHello follows.
_RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
_SERVER_HELLO = 2
_RANDOM_AT = _HEAD_BYTES + 4 + 2
ANSWER_BYTES = _RANDOM_AT + len(_RETRY_RANDOM)  # of a server's answer, to know what it is
_CHANGE_CIPHER_SPEC, _APPLICATION_DATA = 0x14, 0x17


def asks_again(answer: bytes) -> bool:
    """Whether a server's first ANSWER_BYTES ask for another ClientHello."""
    is_hello = answer[:1] == bytes([HANDSHAKE]) and answer[_HEAD_BYTES : _HEAD_BYTES + 1] == bytes([_SERVER_HELLO])
    return is_hello and answer[_RANDOM_AT:ANSWER_BYTES] == _RETRY_RANDOM


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


class HelloReader:
    """`feed` it what a client says, from its first byte, however that is cut.

    again: it may be the second, before which there may be early data and a dummy (RFC 8446, 4.2.10, D.4).
    """

    def __init__(self, *, again: bool = False) -> None:
        self._passed = (_CHANGE_CIPHER_SPEC, _APPLICATION_DATA) if again else ()
        self._record = bytearray()  # the one that is coming in
        self._message = bytearray()  # the first handshake message, which may be spread over records

    def feed(self, data: bytes) -> str | None:
        """The server name, in normal form; None: more is needed. Raises HelloError, also when no name is given."""
        self._record += data
        at = 0
        while (whole := self._record_end(at)) and len(self._record) >= whole:
            passed = self._record[at] in self._passed
            self._message += b"" if passed else self._record[at + _HEAD_BYTES : whole]
            at = whole
            if passed:
                continue
            if self._message[0] != _CLIENT_HELLO:
                raise HelloError("not a ClientHello")
            length = 4 + int.from_bytes(self._message[1:4], "big")
            if len(self._message) >= max(length, 4):
                return _name_in(bytes(self._message[4:length]))
        del self._record[:at]
        return None

    def _record_end(self, at: int) -> int:
        """Of the record that begins at `at`; 0 while its head is not there. Raises HelloError."""
        head = bytes(self._record[at : at + _HEAD_BYTES])
        known = {b"", bytes([HANDSHAKE]), *(bytes([kind]) for kind in self._passed)}
        if head[:1] not in known or head[1:2] not in (b"", b"\x03"):
            raise HelloError("not a TLS handshake")
        if len(head) < _HEAD_BYTES:
            return 0
        length = int.from_bytes(head[3:], "big")
        if not 0 < length <= _RECORD_BYTES_MAX:
            raise HelloError("not a TLS handshake")
        return at + _HEAD_BYTES + length


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
