"""The native dialect: /v1 REST for sandboxes and processes, a WebSocket per attachment.

Byte by byte in docs/reference/protocol.md.
"""

from __future__ import annotations

from aiohttp import web

from sandpty.server.context import Context
from sandpty.server.dialects.native.attach import Attaching
from sandpty.server.dialects.native.processes import Processes
from sandpty.server.dialects.native.sandboxes import Sandboxes


def routes(context: Context) -> list[web.AbstractRouteDef]:
    """The whole dialect as a table."""
    sandboxes, processes, attaching = Sandboxes(context), Processes(context), Attaching(context)
    one = "/v1/sandboxes/{sandbox}"
    process = one + "/processes/{process}"
    return [
        web.get("/v1/host", sandboxes.host),
        web.post("/v1/sandboxes", sandboxes.create),
        web.get("/v1/sandboxes", sandboxes.list),
        web.get(one, sandboxes.get),
        web.delete(one, sandboxes.kill),
        web.post(one + "/pause", sandboxes.pause),
        web.post(one + "/resume", sandboxes.resume),
        web.put(one + "/deadline", sandboxes.set_deadline),
        web.post(one + "/processes", processes.start),
        web.get(one + "/processes", processes.list),
        web.get(process, processes.get),
        web.post(process + "/signal", processes.signal),
        web.post(process + "/resize", processes.resize),
        web.get(process + "/wait", processes.wait),
        web.get(process + "/attach", attaching.attach),
        web.route("*", "/v1/{rest:.*}", sandboxes.unknown),
    ]
