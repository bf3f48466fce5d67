"""GET /teams: the team that a key belongs to, as E2B's command line asks for it when it is configured."""

from __future__ import annotations

from aiohttp import web

from sandpty.server.auth import Principal, request_key


async def teams(request: web.Request, principal: Principal) -> web.StreamResponse:
    """One team: keys are kept as hashes, so the key that is told is the one that asked."""
    team = {
        "teamID": principal.id,
        "name": principal.team_name,
        "apiKey": request_key(request),
        "isDefault": True,
    }
    return web.json_response([team])
