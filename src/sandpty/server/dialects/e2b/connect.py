"""The Connect protocol as E2B's clients speak it: JSON messages, alone (unary) or in envelopes (streams). Pure.

An envelope is one flag byte, a big-endian `u32` length and that many bytes. Clients never send binary protobuf and
never compress. Protocol facts: connectrpc.com/docs/protocol; what the SDKs do with them was observed on the wire.
"""

from __future__ import annotations

import binascii
import struct
from typing import TypeVar

import msgspec

from sandpty import config
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import NEVER_MS

T = TypeVar("T")

UNARY_TYPE = "application/json"
STREAM_TYPE = "application/connect+json"
# Browsers may call a sandbox's own API from anywhere: what protects it is the token, not the origin.
CORS_HEADERS = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "*"}
FLAG_COMPRESSED = 0x01
FLAG_END = 0x02
_HEAD = struct.Struct(">BI")
_TIMEOUT_DIGITS_MAX = 10  # the protocol's own bound

HTTP_STATUS: dict[str, int] = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}


class ConnectError(Exception):
    """An error as the Connect protocol names it. `code` is a key of HTTP_STATUS."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def status(self) -> int:
        """The HTTP status of a unary answer."""
        return HTTP_STATUS[self.code]

    def body(self) -> bytes:
        """The JSON body of a unary answer."""
        return msgspec.json.encode({"code": self.code, "message": self.message})


def envelope(message: bytes, flags: int = 0) -> bytes:
    return _HEAD.pack(flags, len(message)) + message


def end_envelope(error: ConnectError | None = None) -> bytes:
    """The last envelope of a response stream: how it went."""
    body = b"{}" if error is None else b'{"error":' + error.body() + b"}"
    return envelope(body, FLAG_END)


class EnvelopeReader:
    """Cuts a request body into messages as it arrives. Holds at most one unfinished envelope."""

    def __init__(self, max_bytes: int = config.ENVELOPE_BYTES) -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """The messages complete after `data`. Raises ConnectError as soon as a head is out of bounds."""
        self._buffer += data
        messages: list[bytes] = []
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            flags, length = _HEAD.unpack_from(self._buffer, at)
            if flags & FLAG_COMPRESSED:
                raise ConnectError("unimplemented", "compressed envelopes are not supported; send them plain")
            if flags:
                raise ConnectError("invalid_argument", f"unknown envelope flags 0x{flags:02x}")
            if length > self._max_bytes:
                raise ConnectError(
                    "resource_exhausted", f"envelope of {length} bytes is over the limit of {self._max_bytes}"
                )
            end = at + _HEAD.size + length
            if len(self._buffer) < end:
                break
            messages.append(bytes(memoryview(self._buffer)[at + _HEAD.size : end]))
            at = end
        if at:
            del self._buffer[:at]
        return messages

    def finish(self) -> None:
        """Raises ConnectError when the body ended inside an envelope."""
        if self._buffer:
            raise ConnectError("invalid_argument", "the request body ends inside an envelope")


def decode_message(body: bytes, model: type[T]) -> T:
    """A request message. Unknown fields are ignored, as proto3 JSON readers of E2B do. Raises ConnectError."""
    try:
        return msgspec.json.decode(body or b"{}", type=model)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConnectError("invalid_argument", f"the request is not valid JSON for this method: {error}") from error


def decode_bytes(text: str) -> bytes:
    """A proto3 JSON `bytes` value: base64, standard or URL alphabet, padded or not. Raises ConnectError."""
    raw = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return binascii.a2b_base64(raw + "=" * (-len(raw) % 4), strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise ConnectError("invalid_argument", f"input is not base64: {error}") from error


def decode_timeout_ms(header: str | None) -> int:
    """`Connect-Timeout-Ms` as milliseconds, 0 for none. Raises ConnectError when it is not a number of them."""
    if header is None:
        return 0
    if not (header.isascii() and header.isdigit() and len(header) <= _TIMEOUT_DIGITS_MAX):
        raise ConnectError("invalid_argument", f"Connect-Timeout-Ms is not a number of milliseconds: {header[:40]!r}")
    return min(int(header), NEVER_MS - 1)


def decode_keepalive_s(header: str | None) -> float:
    """`Keepalive-Ping-Interval` in seconds; E2B's default where it is absent, unparsable or not positive."""
    try:
        interval_s = int(header or "")
    except ValueError:
        return config.E2B_KEEPALIVE_S
    return min(interval_s, config.E2B_KEEPALIVE_S) if interval_s > 0 else config.E2B_KEEPALIVE_S


def error_from(error: SandptyError) -> ConnectError:
    """What the error table says for this dialect, with the hint where there is one."""
    reason = error.reason
    message = f"{error.message} ({reason.hint})" if reason.hint else error.message
    return ConnectError(reason.connect, message)
