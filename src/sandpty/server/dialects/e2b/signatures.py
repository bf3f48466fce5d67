"""Signed URLs of E2B's `/files`: whoever has one may read or write that one path, until it expires. Pure.

A signature is `"v1_" + base64(sha256("<path>:<read|write>:<user>:<token>[:<expiration>]"))` without padding; path and
user exactly as in the query, "" where there is none; expiration in unix seconds.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from sandpty.server.dialects.e2b.errors import HttpError, bad_request
from sandpty.wire.verbs import Sandbox

Operation = Literal["read", "write"]
_SIGNATURE = re.compile(r"v1_[A-Za-z0-9+/]{43}")
_NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class FileQuery:
    """The query of a `/files` request."""

    path: str
    username: str
    signature: str | None
    expiration: int | None

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> FileQuery:
        """Raises HttpError 400 when the expiration is no number."""
        found: dict[str, str] = {}
        for key, value in pairs:
            found.setdefault(key, value)
        signature = found.get("signature")
        if signature is not None:
            signature = signature.replace(" ", "+")  # from clients that did not quote it
        expiration = found.get("signature_expiration")
        if expiration is not None and not _NUMBER.fullmatch(expiration):
            raise bad_request("signature_expiration is not a number of seconds")
        seconds = None if expiration is None else int(expiration)
        return cls(found.get("path", ""), found.get("username", ""), signature, seconds)


def sign(query: FileQuery, operation: Operation, token: str) -> str:
    """The signature that `query` must carry."""
    text = f"{query.path}:{operation}:{query.username}:{token}"
    if query.expiration is not None:
        text += f":{query.expiration}"
    digest = sha256(text.encode("utf-8", "surrogateescape")).digest()
    return "v1_" + b64encode(digest).decode().rstrip("=")


def matches(query: FileQuery, operation: Operation, token: str) -> bool:
    given = (query.signature or "").encode("utf-8", "surrogateescape")
    return bool(token) and hmac.compare_digest(given, sign(query, operation, token).encode())


def signed_for(query: FileQuery, operation: Operation, sandboxes: Iterable[Sandbox]) -> Sandbox | None:
    """The sandbox whose token made the signature: a URL alone does not name one on a shared origin."""
    if not _SIGNATURE.fullmatch(query.signature or ""):
        return None
    for sandbox in sandboxes:
        if matches(query, operation, str(sandbox.annotations.get("token", ""))):
            return sandbox
    return None


def check_access(
    query: FileQuery, operation: Operation, token: str, *, secure: bool, header: str | None, now: float
) -> None:
    """The access token wins over a signature. Raises HttpError 401 with E2B's words."""
    if header:
        if hmac.compare_digest(header.encode("utf-8", "surrogateescape"), token.encode()):
            return
        raise HttpError(401, "access token present in header but does not match")
    if not secure:
        return
    if query.signature is None:
        raise HttpError(401, "missing signature query parameter")
    if not matches(query, operation, token):
        raise HttpError(401, "invalid signature")
    if query.expiration is not None and query.expiration < now:
        raise HttpError(401, "signature is already expired")
