"""Short-lived signed tokens: who holds one may do one kind of thing with one sandbox until it expires.

A token is a JSON Web Token (RFC 7515, HS256) of this server's own, opaque to clients. The secret is made once per data
directory and outlives the server, and so do the tokens. Nothing about them is stored.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TypeVar

import msgspec

from sandpty import config
from sandpty.wire.errors import SandptyError

_HEADER = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"  # {"alg":"HS256","typ":"JWT"}: nothing else is accepted
C = TypeVar("C", bound="Claims")


class Claims(msgspec.Struct, frozen=True, kw_only=True, tag_field="aud"):
    """What every token says: for which sandbox, of which owner, until when (unix seconds).

    A subclass per purpose adds its own: its `aud` keeps one purpose's tokens from being taken for another's.
    """

    sub: str
    own: str
    exp: int


class RuntimeClaims(Claims, frozen=True, kw_only=True, tag="runtime"):
    """Everything inside of one sandbox. `key`: through which API key it was given out."""

    key: str = ""


class SignedTokens:
    """Makes and reads tokens with one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, claims: Claims) -> str:
        """The token that says `claims`."""
        body = f"{_HEADER}.{_encode(msgspec.json.encode(claims))}"
        return f"{body}.{self._signature(body)}"

    def read(self, token: str, kind: type[C]) -> C:
        """What a token of this kind says. Raises unauthenticated: not ours, of another kind, or expired."""
        body, _, signature = token.rpartition(".")
        header, _, claims = body.partition(".")
        if header != _HEADER or not _equal(signature, self._signature(body)):
            raise SandptyError("unauthenticated", "the token is not one of this server's")
        try:
            said = msgspec.json.decode(_decode(claims), type=kind)
        except (msgspec.MsgspecError, ValueError) as error:
            raise SandptyError("unauthenticated", "the token is for something else") from error
        if said.exp <= time.time():
            raise SandptyError("unauthenticated", "the token has expired")
        return said

    def _signature(self, body: str) -> str:
        return _encode(hmac.new(self._secret, body.encode("utf-8", "surrogateescape"), hashlib.sha256).digest())


def expiry(lifetime_s: float = config.RUNTIME_TOKEN_S) -> int:
    """`exp` of a token that is made now."""
    return int(time.time() + lifetime_s)


def _equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode())


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError(str(error)) from error
