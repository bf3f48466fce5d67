"""Port 49999: the code interpreter of a sandbox, started when the first request comes, told its environment by each.

A warm sandbox has it running already (the supervisor started it). Whoever runs code there shows the sandbox's access
token, as for processes; the SDKs send it with /execute only, so contexts can be listed without.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.guest_defaults import default_env
from sandpty.server.guest_sockets import GuestSockets
from sandpty.server.ports.answers import PortError
from sandpty.server.ports.heads import Header
from sandpty.terminal import attachment
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import e2b_variables
from sandpty.wire.interpreter import ENVIRONMENT_HEADER, PORT, PROGRAM, interpreter_start
from sandpty.wire.verbs import Sandbox

log = logging.getLogger(__name__)


class Interpreters:
    """Of all sandboxes: `start` is a port starter, `prepare` is called before each request goes there."""

    def __init__(self, guest_sockets: GuestSockets) -> None:
        self._guest_sockets = guest_sockets
        self._starting: dict[str, asyncio.Task[None]] = {}

    def prepare(self, request: web.Request, sandbox: Sandbox) -> list[Header]:
        """The environment goes along with every request: whoever listens there, and since whenever, knows it.

        Raises PortError 401.
        """
        if request.path == "/execute":
            _check_token(request, sandbox)
        return [(ENVIRONMENT_HEADER, base64.b64encode(msgspec.json.encode(default_env(sandbox))))]

    async def start(self, sandbox: Sandbox) -> None:
        """Returns when it listens, or when it does not start: then the port stays closed."""
        task = self._starting.get(sandbox.id)
        if task is None:
            task = self._starting[sandbox.id] = asyncio.create_task(self._start(sandbox))
            task.add_done_callback(lambda _: self._starting.pop(sandbox.id, None))
        await asyncio.shield(task)

    async def _start(self, sandbox: Sandbox) -> None:
        start = interpreter_start(PROGRAM, e2b_variables(sandbox.id, sandbox.template))
        try:
            await attachment.start_detached(sandbox.socket, start)
        except SandptyError as error:
            if error.reason.name != "start_failed":  # its template does not have it: as any port that is closed
                log.warning("the interpreter of %s does not start: %s", sandbox.id, error)
            return
        try:
            async with asyncio.timeout(config.INTERPRETER_START_TIMEOUT_S):
                while not await self._listens(sandbox):  # noqa: ASYNC110 - nobody could tell us
                    await asyncio.sleep(config.INTERPRETER_POLL_S)
        except TimeoutError:
            log.warning("the interpreter of %s does not listen", sandbox.id)

    async def _listens(self, sandbox: Sandbox) -> bool:
        try:
            (await self._guest_sockets.connect(sandbox, PORT)).close()
        except SandptyError as error:
            return error.reason.name != "port_closed"  # what else is wrong the request will find too
        return True


def _check_token(request: web.Request, sandbox: Sandbox) -> None:
    token = sandbox.annotations.get("token")
    if not token or not sandbox.annotations.get("e2b", {}).get("secure", True):
        return
    given = request.headers.get("X-Access-Token", "").encode("utf-8", "surrogateescape")
    if not hmac.compare_digest(given, str(token).encode()):
        raise PortError(401, "unauthorized access, please provide a valid access token", sandboxId=sandbox.id)
