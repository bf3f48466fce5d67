"""Each sandbox's own API as a table: everything below /sandbox/<id>, with a runtime token."""

from __future__ import annotations

from aiohttp import web

from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser.attaching import Attaching
from sandpty.server.dialects.hyperbrowser.errors import Handler, HyperbrowserError, answering, not_running
from sandpty.server.dialects.hyperbrowser.files import FileHandlers
from sandpty.server.dialects.hyperbrowser.processes import Processes
from sandpty.server.dialects.hyperbrowser.terminal_socket import Resizes
from sandpty.server.dialects.hyperbrowser.terminals import Terminals
from sandpty.server.dialects.hyperbrowser.tokens import authorized_sandbox
from sandpty.server.dialects.hyperbrowser.transfers import Transfers
from sandpty.server.dialects.hyperbrowser.watch_socket import WatchHandlers
from sandpty.server.ends import still_runs, wait_for_the_end
from sandpty.wire.errors import SandptyError


def routes(context: Context) -> list[web.RouteDef]:
    resizes = Resizes()
    terminals, attaching = Terminals(context, resizes), Attaching(context, resizes)
    processes, files, transfers = Processes(context), FileHandlers(context), Transfers(context)
    watches = WatchHandlers(context)
    table: list[tuple[str, str, Handler]] = [
        ("POST", "/pty", terminals.create),
        ("GET", "/pty/{terminal}", terminals.get),
        ("POST", "/pty/{terminal}/wait", terminals.wait),
        ("POST", "/pty/{terminal}/kill", terminals.signal),
        ("POST", "/pty/{terminal}/resize", terminals.resize),
        ("GET", "/pty/{terminal}/ws", attaching.attach),
        ("POST", "/exec", processes.exec),
        ("POST", "/processes", processes.start),
        ("GET", "/processes", processes.list),
        ("GET", "/processes/{process}", processes.get),
        ("DELETE", "/processes/{process}", processes.kill),
        ("POST", "/processes/{process}/wait", processes.wait),
        ("POST", "/processes/{process}/signal", processes.signal),
        ("POST", "/processes/{process}/stdin", processes.stdin),
        ("GET", "/processes/{process}/stream", processes.stream),
        ("GET", "/files", files.list),
        ("GET", "/files/stat", files.stat),
        ("POST", "/files/read", files.read),
        ("POST", "/files/write", files.write),
        ("POST", "/files/mkdir", files.make_directory),
        ("POST", "/files/move", files.move),
        ("POST", "/files/copy", files.copy),
        ("POST", "/files/delete", files.delete),
        ("POST", "/files/chmod", files.chmod),
        ("POST", "/files/chown", files.chown),
        ("PUT", "/files/upload", transfers.upload),
        ("GET", "/files/download", transfers.download),
        ("POST", "/files/presign-upload", transfers.presign_upload),
        ("POST", "/files/presign-download", transfers.presign_download),
        ("GET", "/files/presigned", transfers.presigned),
        ("PUT", "/files/presigned", transfers.presigned),
        ("POST", "/files/watch", watches.create),
        ("GET", "/files/watch/{watch}", watches.get),
        ("DELETE", "/files/watch/{watch}", watches.stop),
        ("GET", "/files/watch/{watch}/{route:ws|stream}", watches.stream),
        ("*", "/{tail:.*}", _unknown(context)),
    ]
    return [
        web.route(method, f"/sandbox/{{id}}{path}", answering(_while_it_runs(context, handler)))
        for method, path, handler in table
    ]


def _while_it_runs(context: Context, handler: Handler) -> Handler:
    """A sandbox that ends under a request is not running, rather than unreachable."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except SandptyError as error:
            if error.reason.name != "agent_unreachable":
                raise
            sandbox = authorized_sandbox(context, request)
            await wait_for_the_end(context, sandbox)
            if still_runs(context, sandbox):
                raise
            raise not_running(sandbox.id) from error

    return handle


def _unknown(context: Context) -> Handler:
    async def unknown(request: web.Request) -> web.StreamResponse:
        authorized_sandbox(context, request)
        what = f"{request.method} {request.path[:200]}"
        raise HyperbrowserError(404, f"{what} is not part of the API that this server speaks: not found", "not_found")

    return unknown
