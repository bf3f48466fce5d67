"""The native dialect: /v1 REST for sandboxes, processes and files, a WebSocket per attachment and per watch.

Byte by byte in docs/reference/protocol.md. Every module has a class with `routes()`; here they are put together.
"""

from __future__ import annotations

from aiohttp import web

from sandpty.server.context import Context
from sandpty.server.dialects.native.attach import Attaching
from sandpty.server.dialects.native.files import FileHandlers
from sandpty.server.dialects.native.measures import Measures
from sandpty.server.dialects.native.ports import Ports
from sandpty.server.dialects.native.processes import Processes
from sandpty.server.dialects.native.sandboxes import Sandboxes
from sandpty.server.dialects.native.snapshots import Snapshots
from sandpty.server.dialects.native.ssh import Ssh
from sandpty.server.dialects.native.volumes import Volumes
from sandpty.server.dialects.native.watching import Watching


def routes(context: Context) -> list[web.AbstractRouteDef]:
    """The whole dialect as a table. The first row that fits wins."""
    sandboxes = Sandboxes(context)
    return [
        *sandboxes.routes(),
        *Snapshots(context).routes(),
        *Measures(context).routes(),
        *Processes(context).routes(),
        *Attaching(context).routes(),
        *Ssh(context).routes(),
        *FileHandlers(context).routes(),
        *Watching(context).routes(),
        *Ports(context).routes(),
        *Volumes(context).routes(),
        web.route("*", "/v1/{rest:.*}", sandboxes.unknown),
    ]
