"""Port 49999: the code interpreter of a sandbox, started when the first request comes and told its environment.

A warm sandbox has it running already (the supervisor started it). Whoever runs code there shows the sandbox's access
token, as for processes; the SDKs send it with /execute only, so contexts can be listed without.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import OrderedDict

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.guest_defaults import default_env
from sandpty.server.guest_sockets import GuestSockets
from sandpty.server.ports.answers import PortError
from sandpty.terminal import attachment
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import e2b_variables
from sandpty.wire.interpreter import PORT, PROGRAM, interpreter_start
from sandpty.wire.verbs import Sandbox

log = logging.getLogger(__name__)
_KNOWN_MOST = 10_000  # sandboxes remembered as told


class Interpreters:
    """Of all sandboxes: `start` is a port starter, `prepare` is called before each request goes there."""

    def __init__(self, guest_sockets: GuestSockets) -> None:
        self._guest_sockets = guest_sockets
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._told: OrderedDict[str, None] = OrderedDict()  # sandboxes whose interpreter knows their environment

    async def prepare(self, request: web.Request, sandbox: Sandbox) -> None:
        """Raises PortError 401."""
        if request.path == "/execute":
            _check_token(request, sandbox)
        env = _environment(sandbox)
        for _ in range(config.INTERPRETER_TELL_TRIES):
            if not env or sandbox.id in self._told:
                return
            if not await self._tell(sandbox, env):
                await self.start(sandbox)

    async def start(self, sandbox: Sandbox) -> None:
        """Returns when it listens and knows its environment, or when it does not start: then the port stays closed."""
        task = self._starting.get(sandbox.id)
        if task is None:
            task = self._starting[sandbox.id] = asyncio.create_task(self._start(sandbox))
            task.add_done_callback(lambda _: self._starting.pop(sandbox.id, None))
        await asyncio.shield(task)

    async def _start(self, sandbox: Sandbox) -> None:
        env = e2b_variables(sandbox.id, sandbox.template) | _environment(sandbox)
        try:
            await attachment.start_detached(sandbox.socket, interpreter_start(PROGRAM, env))
        except SandptyError as error:
            if error.reason.name != "start_failed":  # its template does not have it: as any port that is closed
                log.warning("the interpreter of %s does not start: %s", sandbox.id, error)
            return
        try:
            async with asyncio.timeout(config.INTERPRETER_START_TIMEOUT_S):
                while not await self._listens(sandbox):  # noqa: ASYNC110 - nobody could tell us
                    await asyncio.sleep(config.INTERPRETER_POLL_S)
            # Who listens may be another one: that of a warm sandbox, which was just starting.
            if given := _environment(sandbox):
                await self._tell(sandbox, given)
        except TimeoutError:
            log.warning("the interpreter of %s does not listen", sandbox.id)

    async def _listens(self, sandbox: Sandbox) -> bool:
        try:
            (await self._guest_sockets.connect(sandbox, PORT)).close()
        except SandptyError as error:
            return error.reason.name != "port_closed"  # what else is wrong the request will find too
        return True

    def _remember(self, sandbox: Sandbox) -> None:
        self._told[sandbox.id] = None
        while len(self._told) > _KNOWN_MOST:
            self._told.popitem(last=False)

    async def _tell(self, sandbox: Sandbox, env: dict[str, str]) -> bool:
        """False when nobody listens."""
        body = msgspec.json.encode({"env_vars": env})
        head = (
            f"PUT /environment HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(config.INTERPRETER_TELL_TIMEOUT_S):
                reader, writer = await self._guest_sockets.open(sandbox, PORT)
                try:
                    writer.write(head.encode() + body)
                    await writer.drain()
                    if (await reader.read(64)).startswith(b"HTTP/1.1 204"):
                        self._remember(sandbox)
                finally:
                    writer.close()
        except SandptyError as error:
            return error.reason.name != "port_closed"
        except (OSError, TimeoutError) as error:
            log.warning("the interpreter of %s does not take its environment: %s", sandbox.id, error)
        return True


def _environment(sandbox: Sandbox) -> dict[str, str]:
    """What the sandbox's template and create say."""
    return default_env(sandbox)


def _check_token(request: web.Request, sandbox: Sandbox) -> None:
    token = sandbox.annotations.get("token")
    if not token or not sandbox.annotations.get("e2b", {}).get("secure", True):
        return
    given = request.headers.get("X-Access-Token", "").encode("utf-8", "surrogateescape")
    if not hmac.compare_digest(given, str(token).encode()):
        raise PortError(401, "unauthorized access, please provide a valid access token", sandboxId=sandbox.id)
