"""Who asks. One API key for now; keys are compared as hashes, in constant time."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from aiohttp import web

from sandpty.wire.errors import SandptyError


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, after authentication. `id` owns sandboxes."""

    id: str


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Authenticator:
    """Knows the server's keys by their hashes."""

    def __init__(self, api_key: str) -> None:
        digest = _digest(api_key)
        self._digest = digest
        self._principal = Principal(digest.hex()[:16])

    def principal(self, key: str | None) -> Principal:
        """Raises unauthenticated when the key is missing or wrong."""
        if not key:
            raise SandptyError("unauthenticated", "this request carries no API key")
        if not hmac.compare_digest(_digest(key), self._digest):
            raise SandptyError("unauthenticated", "the API key is not one of this server's")
        return self._principal


def request_key(request: web.Request) -> str | None:
    """The key of a request: `X-API-Key`, else `Authorization: Bearer`."""
    if key := request.headers.get("X-API-Key"):
        return key
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None
