"""What the port proxy says itself: E2B's bodies in JSON, and a small page for people who came with a browser."""

from __future__ import annotations

import html
from typing import Any

import msgspec
from aiohttp import web

TOKEN_HEADER = "e2b-traffic-access-token"
# Both SDKs look for exactly these words.
_NOT_FOUND = "The sandbox was not found"
_PORT_CLOSED = "The sandbox is running but port is not open"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 34rem; margin: 18vh auto 0; padding: 0 1.5rem }}
h1 {{ font-size: 1.3rem; margin: 0 0 .5rem }}
p {{ margin: .4rem 0 }} code {{ font-size: .95em }} footer {{ margin-top: 2rem; opacity: .6; font-size: .85rem }}
</style></head>
<body><h1>{title}</h1><p>{text}</p><footer>{code} &middot; <code>{where}</code></footer></body></html>
"""


class PortError(Exception):
    """An answer of the proxy's own. `members` come before `code` in the body, as E2B's do."""

    def __init__(self, status: int, message: str, *, advice: str = "", **members: str | int | bool) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.advice = advice
        self.members = members

    def response(self, request: web.Request) -> web.Response:
        headers = {"Cache-Control": "no-store", "Access-Control-Allow-Origin": "*"}
        if wants_page(request):
            return web.Response(status=self.status, text=self._page(), content_type="text/html", headers=headers)
        members = dict(self.members)
        first = {"sandboxId": members.pop("sandboxId")} if "sandboxId" in members else {}
        body: dict[str, Any] = {**first, "message": self.message, **members, "code": self.status}
        return web.Response(
            status=self.status, body=msgspec.json.encode(body), content_type="application/json", headers=headers
        )

    def _page(self) -> str:
        port, sandbox_id = self.members.get("port"), self.members.get("sandboxId", "")
        where = f"port {port} of {sandbox_id}" if port else str(sandbox_id)
        return _PAGE.format(
            title=html.escape(self.message), text=html.escape(self.advice), code=self.status, where=html.escape(where)
        )


def wants_page(request: web.Request) -> bool:
    """Whether this is a browser that goes to a page, rather than a program."""
    return "text/html" in request.headers.get("Accept", "")


def not_found(sandbox_id: str) -> PortError:
    """Also for a paused one, unless traffic wakes it."""
    advice = "It may have reached the end of its life, or been killed or paused."
    return PortError(502, _NOT_FOUND, advice=advice, sandboxId=sandbox_id[:64])


def port_closed(sandbox_id: str, port: int) -> PortError:
    advice = f"Nothing listens on port {port}. Start a service there, on any address, and reload."
    return PortError(502, _PORT_CLOSED, advice=advice, sandboxId=sandbox_id, port=port)


def token_missing(sandbox_id: str) -> PortError:
    message = f"Sandbox is secured with traffic access token. Token header '{TOKEN_HEADER}' is missing"
    return PortError(403, message, advice="Its owner decided that not everybody may come in.", sandboxId=sandbox_id)


def token_invalid(sandbox_id: str) -> PortError:
    message = f"Sandbox is secured with traffic access token. Provided token in header '{TOKEN_HEADER}' is invalid"
    return PortError(403, message, advice="Ask its owner for the token.", sandboxId=sandbox_id)


def too_many(sandbox_id: str, limit: int) -> PortError:
    message = f"The sandbox has too many concurrent incoming connections (limit: {limit})"
    return PortError(
        429, message, advice="Close some, or try again later.", sandboxId=sandbox_id, connectionLimit=limit
    )


def in_transition(sandbox_id: str) -> PortError:
    advice = "It is being paused or resumed: try again in a moment."
    return PortError(409, "The sandbox is changing its state", advice=advice, sandboxId=sandbox_id)


def reserved(path: str) -> PortError:
    message = "This endpoint is reserved for the control plane and is not reachable through the sandbox URL"
    return PortError(404, message, path=path[:200])


def bad_service(sandbox_id: str, port: int, what: str) -> PortError:
    """The guest's answer could not be passed on."""
    advice = f"What the service on port {port} said could not be passed on."
    return PortError(502, f"The service {what}", advice=advice, sandboxId=sandbox_id, port=port)
