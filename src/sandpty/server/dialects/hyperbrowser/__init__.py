"""Hyperbrowser's API: its control plane below /api, and each sandbox's own below /sandbox/<id>.

The unmodified SDKs (Python `hyperbrowser`, Node `@hyperbrowser/sdk`) reach it with HYPERBROWSER_API_KEY and
HYPERBROWSER_BASE_URL (Node: the option `baseUrl`) set to this server. docs/reference/hyperbrowser.md has the details.
"""

from __future__ import annotations

from aiohttp import web

from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser import control, runtime


def routes(context: Context) -> list[web.AbstractRouteDef]:
    """Every route of this dialect."""
    return [*control.routes(context), *runtime.routes(context)]
