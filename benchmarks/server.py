"""Servers of our own to measure, each with a data directory of its own, and sandboxes in them."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.server_fixture import RunningServer, running_server
from tests.waiting import until_sync

from benchmarks.client import PROMPT_ENDS, Http, WebSocket
from benchmarks.programs import Programs

POOL_SIZE = 4
POOL_READY_S = 30.0
QUIET_S = 0.05  # after the pool is full again: what was killed before is being cleared away
SANDBOX_S = 900  # longer than any run
LOGIN_SHELL = ["/bin/bash", "-i", "-l"]  # what E2B's pty.create starts
BARE_SHELL = ["/bin/bash", "--norc", "--noprofile", "-i"]


@dataclass
class Bench:
    """What benchmarks share: options, compiled programs, servers that start when first asked for."""

    programs: Programs
    directory: Path
    stack: ExitStack
    isolation: str = ""
    quick: bool = False
    _servers: dict[int, Server] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """An empty home directory: shells on the host start from it, so that no profile of this machine counts."""
        path = self.directory / "home"
        path.mkdir(exist_ok=True)
        return path

    def rounds(self, usual: int) -> int:
        """How often to repeat: fewer times in a quick run."""
        return max(1, usual // 4) if self.quick else usual

    def native(self, sandbox: Sandbox, process: str, *words: object) -> list[str]:
        """The command line of the C client on a process, from its first byte."""
        return [self.programs.ws_client, *sandbox.client_words(process), *map(str, words)]

    def server(self, pool: int = POOL_SIZE) -> Server:
        """The server with `pool` warm sandboxes, started at the first call."""
        if pool not in self._servers:
            args = ["--pool", str(pool)] + (["--isolation", self.isolation] if self.isolation else [])
            self._servers[pool] = Server(self.stack.enter_context(running_server(*args)), pool, self.home)
        return self._servers[pool]

    def stop_server(self, pool: int) -> None:
        """End one server before its time, so that it does not disturb what is measured next."""
        if found := self._servers.pop(pool, None):
            found.running.stop()


class Server:
    """One running server and what can be asked of it."""

    def __init__(self, running: RunningServer, pool: int, home: Path) -> None:
        self.running = running
        self.pool = pool
        self.url = running.url
        self.key = running.api_key
        self.host = self.url.removeprefix("http://").rpartition(":")[0]
        self.port = running.port
        with self.http() as http:
            self.tier: str = http.request("GET", "/v1/host")["tier"]
        # Without isolation the guest's users are this machine's, which need not have one named `user`, and whose
        # profiles (version managers and the like) are not what is measured.
        self.user = getpass.getuser() if self.tier == "process" else "user"
        self.env = {"HOME": str(home)} if self.tier == "process" else {}

    @property
    def pid(self) -> int:
        """Of the process that carries the bytes."""
        assert self.running.process is not None
        return self.running.process.pid

    def http(self) -> Http:
        """A kept connection of its own."""
        return Http(self.url, {"X-API-Key": self.key})

    def terminal(self, argv: Sequence[str]) -> dict[str, Any]:
        """The body of a request that starts a program in a terminal of 80 x 24."""
        return {"argv": list(argv), "user": self.user, "env": self.env, "pty": {"cols": 80, "rows": 24}}

    def kept(self) -> list[dict[str, Any]]:
        """What the supervisor keeps of each sandbox, also of the warm ones."""
        found = []
        for path in (self.running.data_dir / "sandboxes").glob("*/meta.json"):
            with suppress(OSError, ValueError):
                found.append(json.loads(path.read_text()))
        return found

    def wait_pool(self) -> None:
        """Wait until the pool is full. Raises TimeoutError."""
        if not self.pool:
            return
        until_sync(
            lambda: sum(meta["phase"] == "warm" for meta in self.kept()) >= self.pool, POOL_READY_S, "the pool is full"
        )
        time.sleep(QUIET_S)

    def agent_pid(self, sandbox_id: str) -> int:
        """Of a sandbox's agent, as the host sees it."""
        return next(int(meta["pid"]) for meta in self.kept() if meta["id"] == sandbox_id)

    @contextmanager
    def sandbox(self) -> Iterator[Sandbox]:
        """A sandbox of its own for one benchmark."""
        with self.http() as http:
            made = Sandbox(self, http, http.request("POST", "/v1/sandboxes", {"timeout_s": SANDBOX_S})["id"])
            try:
                yield made
            finally:
                with self.http() as ending:
                    ending.request("DELETE", made.path)


@dataclass
class Sandbox:
    """A sandbox and a connection to its server."""

    server: Server
    http: Http
    id: str

    @property
    def path(self) -> str:
        """Of its REST resource."""
        return f"/v1/sandboxes/{self.id}"

    @property
    def access_token(self) -> str:
        """What E2B's clients show with every request to this sandbox."""
        return str(
            self.http.request("POST", f"/v2/sandboxes/{self.id}/connect", {"timeout": SANDBOX_S})["envdAccessToken"]
        )

    def start(self, argv: Sequence[str], **more: Any) -> str:
        """Start a program in a terminal of 80 x 24; returns the path of its process."""
        body = {**self.server.terminal(argv), **more}
        return f"{self.path}/processes/{self.http.request('POST', self.path + '/processes', body)['process']}"

    def run(self, line: str) -> None:
        """Run a shell line to its end. Raises RuntimeError unless it succeeds."""
        body = {"argv": ["/bin/sh", "-c", line], "user": self.server.user, "env": self.server.env, "stdin": False}
        process = self.http.request("POST", self.path + "/processes", body)["process"]
        ended = self.http.request("GET", f"{self.path}/processes/{process}/wait?timeout_s=60")
        if ended["code"] != 0:
            raise RuntimeError(f"{line}: {ended}")

    def attach(self, process: str, query: str = "from=offset&value=0", bytes_per_s: float = 0) -> WebSocket:
        """Attach to what `start` gave; `bytes_per_s` makes a slow client."""
        return WebSocket(self.server.url, f"{process}/attach?{query}", self.server.key, bytes_per_s)

    def client_words(self, process: str, query: str = "from=offset&value=0") -> list[str]:
        """What the C client must know to reach a process."""
        return [self.server.host, str(self.server.port), f"{process}/attach?{query}", self.server.key]


def create_from(server: Server, template: str) -> dict[str, float]:
    """A sandbox, a shell in it and the view of it, in one exchange: milliseconds until it was made, and its prompt."""
    begin = time.perf_counter()
    with WebSocket(server.url, "/v1/start", server.key) as view:
        view.say({"sandbox": {"timeout_s": SANDBOX_S, "template": template}, "process": server.terminal(LOGIN_SHELL)})
        sandbox = view.heard()["id"]
        created = time.perf_counter()
        view.until(*PROMPT_ENDS)
        prompted = time.perf_counter()
    with server.http() as http:
        http.request("DELETE", f"/v1/sandboxes/{sandbox}")
    return {"created": (created - begin) * 1e3, "prompt": (prompted - begin) * 1e3}
