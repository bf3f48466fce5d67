"""Which sandbox and which port a request is for: by its Host, else by its routing headers. E2B's rules."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aiohttp import web

# What the SDKs call envd: the sandbox's own API, which this server speaks itself.
OWN_PORT = 49983
ID_HEADERS = ("E2b-Sandbox-Id", "Novita-Sandbox-Id")
PORT_HEADERS = ("E2b-Sandbox-Port", "Novita-Sandbox-Port")
# A client id after a second dash is E2B's old form.
_OURS = re.compile(r"([0-9]{1,9})-(i[a-z0-9]{20})(?:-[a-z0-9-]*)?\.", re.IGNORECASE | re.ASCII)
_ANY = re.compile(r"([0-9]{1,9})-([a-z0-9]{1,64})(?:-[a-z0-9-]*)?\.", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Target:
    """A port of a sandbox. `named`: by the Host; so what is served there has an origin of its own in browsers."""

    sandbox_id: str
    port: int
    named: bool


class BadTargetError(Exception):
    """The request names a port that cannot be one; the message says so."""


def target_of(request: web.Request, domain: str | None = None) -> Target | None:
    """None: the request is for this server. Below `domain` every `<port>-<id>` is a sandbox's, also an unknown one's.

    Raises BadTargetError.
    """
    return target_by_host(request.headers.get("Host", ""), domain) or _target_by_headers(request)


def target_by_host(host: str, domain: str | None = None) -> Target | None:
    """Raises BadTargetError for a port out of range."""
    match = _OURS.match(host) or (_ANY.match(host) if _is_below(host, domain) else None)
    return Target(match[2].lower(), _port(match[1]), named=True) if match else None


def _is_below(host: str, domain: str | None) -> bool:
    _, dot, parent = host.partition(".")
    return bool(domain and dot) and hostname(parent) == hostname(domain or "")


def hostname(host: str) -> str:
    """Without port and final dot, in lower case."""
    return host.partition(":")[0].rstrip(".").lower()


def _target_by_headers(request: web.Request) -> Target | None:
    sandbox_id = _first(request, ID_HEADERS).partition("-")[0]
    port = _first(request, PORT_HEADERS)
    return Target(sandbox_id, _port(port), named=False) if sandbox_id and port else None


def _first(request: web.Request, names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := request.headers.get(name))), "")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= 65535):
        raise BadTargetError(f"Invalid sandbox port: {text[:20]!r}")
    return int(text)
