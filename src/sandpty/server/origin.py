"""Where a client reached this server, as it says: what it is told goes back to it alone."""

from __future__ import annotations

import re

from aiohttp import web

_HOST = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


def host(request: web.Request) -> str:
    """Host and port; a header that is none is not believed."""
    said = request.headers.get("Host", "")
    return said if _HOST.fullmatch(said) else f"localhost:{request.url.port}"


def origin(request: web.Request) -> str:
    """`http://host:port`."""
    return f"{request.scheme}://{host(request)}"
