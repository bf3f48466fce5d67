"""The native dialect's REST side, and the door to attachments. Byte by byte in docs/reference/protocol.md."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import h11

from sandpty.sdk import errors
from sandpty.sdk._async.attachment import AsyncAttachment
from sandpty.sdk._async.http import Answer, AsyncHttp
from sandpty.sdk._async.port import AsyncPortConnection
from sandpty.sdk._async.sockets import AsyncWebSocket, async_connect_socket
from sandpty.sdk.exceptions import RequestTimeoutError
from sandpty.sdk.settings import is_local, proxy_of, server_from_environment
from sandpty.sdk.values import (
    ProcessInfo,
    SandboxInfo,
    Snapshot,
    StartedProcess,
    Volume,
    WindowSize,
    from_json,
    start_body,
)
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import From

if TYPE_CHECKING:
    from sandpty.sdk._async.streams import AsyncStreamedAnswer, AsyncStreams

Target = Literal["leader", "group", "tree"]
OnTimeout = Literal["kill", "pause", "pause_disk"]

REQUEST_TIMEOUT_S = 75.0  # a create under full load may take a minute before the server gives up itself
WAIT_SLICE_S = 30  # one long-poll of wait_exit; below what proxies cut
DEFAULT_WINDOW_BYTES = 256 * 1024


class AsyncClient:
    """A server at `url` (http or https) with an API key. Use it as a context manager, or `close` it.

    `request_timeout_s`: how long the server may say nothing before a request is given up (RequestTimeoutError); it has
    nothing to do with how long what is asked for may run. Every method raises SandptyError: `unauthenticated`,
    `server_unreachable`, and what is named with each.
    """

    def __init__(self, url: str, api_key: str, *, request_timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self.request_timeout_s = request_timeout_s
        self.url = url.rstrip("/")
        self._api_key = api_key
        self._proxied = proxy_of(self.url) is not None
        self._small = AsyncHttp(self.url, self._headers())
        self._streams: list[AsyncStreams] = []  # at most one; a list, so that `within` shares it

    @property
    def streams(self) -> AsyncStreams:
        """For bodies that are streams, and for proxies."""
        if not self._streams:
            from sandpty.sdk._async.streams import AsyncStreams

            self._streams.append(AsyncStreams(self.url, self._headers(), direct=is_local(self.url)))
        return self._streams[0]

    @classmethod
    def from_environment(
        cls, url: str | None = None, api_key: str | None = None, *, request_timeout_s: float | None = None
    ) -> AsyncClient:
        """With SANDPTY_URL and SANDPTY_API_KEY for what is not given. Raises unauthenticated without a key."""
        return cls(
            *server_from_environment(url, api_key),
            request_timeout_s=REQUEST_TIMEOUT_S if request_timeout_s is None else request_timeout_s,
        )

    def within(self, request_timeout_s: float | None) -> AsyncClient:
        """This client, on the same connections, with another request timeout. None: as it is."""
        if request_timeout_s is None:
            return self
        other = copy.copy(self)
        other.request_timeout_s = request_timeout_s
        return other

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._api_key}"}

    async def close(self) -> None:
        await self._small.close()
        while self._streams:
            await self._streams.pop().close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, content: bytes | None = None
    ) -> dict[str, Any]:
        kind = ""
        if body is not None:
            content, kind = json.dumps(body).encode(), "application/json"
        answer = await self.exchange(method, path, content or b"", kind)
        if not answer.body:
            return {}
        try:
            parsed = json.loads(answer.body)
        except ValueError as error:
            raise errors.unreachable(self.url, error) from error
        return parsed if isinstance(parsed, dict) else {}

    async def exchange(self, method: str, path: str, content: bytes = b"", kind: str = "") -> Answer:
        """One request with a small body of content type `kind`. Raises the server's errors."""
        try:
            if self._proxied:
                answer = await self.streams.ask(method, path, content, kind=kind, timeout_s=self.request_timeout_s)
            else:
                answer = await self._small.ask(method, path, content, kind=kind, timeout_s=self.request_timeout_s)
        except TimeoutError as error:
            raise RequestTimeoutError(f"{method} {path.partition('?')[0]}", self.request_timeout_s) from error
        except (OSError, h11.ProtocolError) as error:
            raise errors.unreachable(self.url, error) from error
        if answer.status >= 400:
            raise errors.from_response(answer.status, answer.body)
        return answer

    async def stream(
        self, method: str, path: str, *, content: Any = None, headers: Mapping[str, str] | None = None
    ) -> AsyncStreamedAnswer:
        """An answer that is read as it comes, and then closed. `content`: pieces. Raises the server's errors."""
        return await self.streams.send(method, path, content=content, headers=headers, timeout_s=self.request_timeout_s)

    async def connect_socket(self, path: str) -> AsyncWebSocket:
        """A WebSocket of the native dialect. Raises what the server refuses it with."""
        return await async_connect_socket(self.url, path, self._headers())

    # --- sandboxes ---------------------------------------------------------------------------------------------------

    async def create_sandbox(
        self,
        template: str = "base",
        *,
        timeout_s: float = 300,
        metadata: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        internet: bool = True,
        network: Mapping[str, Any] | None = None,
        on_timeout: OnTimeout = "kill",
        limits: Mapping[str, float] | None = None,
        volumes: Sequence[Mapping[str, Any]] = (),
    ) -> SandboxInfo:
        """A new sandbox; after `timeout_s` seconds `on_timeout` happens to it. Raises no_such_template, limit.

        network: `allow_out`, `deny_out` (addresses, networks; domains to allow) and `dns_servers`, each a list.
        volumes: what it mounts, each a `volume` (name or id), a `path` and perhaps `read_only`.
        """
        body = {
            "template": template,
            "timeout_s": timeout_s,
            "metadata": dict(metadata or {}),
            "env": dict(env or {}),
            "internet": internet,
            "on_timeout": on_timeout,
        }
        if network is not None:
            body["network"] = dict(network)
        if limits is not None:
            body["limits"] = dict(limits)
        if volumes:
            body["volumes"] = [dict(each) for each in volumes]
        return from_json(SandboxInfo, await self._ask("POST", "/v1/sandboxes", body))

    async def list_sandboxes(self) -> list[SandboxInfo]:
        """This key's sandboxes, running and paused."""
        answer = await self._ask("GET", "/v1/sandboxes")
        return [from_json(SandboxInfo, each) for each in answer.get("sandboxes", [])]

    async def get_sandbox(self, sandbox_id: str) -> SandboxInfo:
        """Raises no_such_sandbox."""
        return from_json(SandboxInfo, await self._ask("GET", _sandbox(sandbox_id)))

    async def set_network(
        self, sandbox_id: str, *, internet: bool = True, network: Mapping[str, Any] | None = None
    ) -> SandboxInfo:
        """Replaces where it may connect to; what is not allowed any more has ended then. Raises no_such_sandbox."""
        body = {"internet": internet, "network": dict(network or {})}
        return from_json(SandboxInfo, await self._ask("PUT", _sandbox(sandbox_id) + "/network", body))

    async def kill_sandbox(self, sandbox_id: str) -> None:
        """Ends it with everything in it; returns once it is gone. Raises no_such_sandbox."""
        await self._ask("DELETE", _sandbox(sandbox_id))

    async def pause_sandbox(self, sandbox_id: str, *, memory: bool = True) -> SandboxInfo:
        """Stops it where it is; without `memory` only its files are kept. Raises no_such_sandbox, already_paused."""
        return from_json(SandboxInfo, await self._ask("POST", _sandbox(sandbox_id) + "/pause", {"memory": memory}))

    async def resume_sandbox(self, sandbox_id: str, *, timeout_s: float = 300, memory: bool = True) -> SandboxInfo:
        """Goes on where it was; not `memory`: starts again from its files. Raises no_such_sandbox, conflict."""
        body = {"timeout_s": timeout_s, "memory": memory}
        return from_json(SandboxInfo, await self._ask("POST", _sandbox(sandbox_id) + "/resume", body))

    async def snapshot_sandbox(self, sandbox_id: str, *, name: str = "") -> Snapshot:
        """Keeps its files as they are now; `create_sandbox` takes the id or the name as a template.

        Raises no_such_sandbox, bad_argument (the name), limit, no_space.
        """
        return from_json(Snapshot, await self._ask("POST", _sandbox(sandbox_id) + "/snapshots", {"name": name}))

    async def list_snapshots(self) -> list[Snapshot]:
        """This key's snapshots, oldest first."""
        answer = await self._ask("GET", "/v1/snapshots")
        return [from_json(Snapshot, each) for each in answer.get("snapshots", [])]

    async def delete_snapshot(self, snapshot: str) -> None:
        """By id or name. Sandboxes that were made from it go on. Raises no_such_snapshot."""
        await self._ask("DELETE", "/v1/snapshots/" + quote(snapshot, safe=""))

    async def create_volume(self, name: str, *, disk_mb: int = 0) -> Volume:
        """A directory that outlives sandboxes, for `create_sandbox`. disk_mb 0: the server's default.

        Raises conflict (there is one of that name), bad_argument, limit, no_space.
        """
        return from_json(Volume, await self._ask("POST", "/v1/volumes", {"name": name, "disk_mb": disk_mb}))

    async def list_volumes(self) -> list[Volume]:
        """This key's volumes, oldest first."""
        return [from_json(Volume, each) for each in (await self._ask("GET", "/v1/volumes")).get("volumes", [])]

    async def delete_volume(self, volume: str) -> None:
        """By id or name, with all that is in it. Raises no_such_volume, volume_in_use."""
        await self._ask("DELETE", "/v1/volumes/" + quote(volume, safe=""))

    async def fork_sandbox(
        self, sandbox_id: str, *, count: int = 1, timeout_s: float = 300
    ) -> list[SandboxInfo | SandptyError]:
        """Sandboxes with the files that it has now; it goes on. One that fails is its error instead."""
        answer = await self._ask("POST", _sandbox(sandbox_id) + "/fork", {"count": count, "timeout_s": timeout_s})
        forks = answer.get("forks", [])
        return [
            errors.from_member(each["error"]) if "error" in each else from_json(SandboxInfo, each) for each in forks
        ]

    async def set_deadline(self, sandbox_id: str, *, timeout_s: float) -> SandboxInfo:
        """Its end of life, in seconds from now. Raises no_such_sandbox, bad_timeout."""
        return from_json(
            SandboxInfo, await self._ask("PUT", _sandbox(sandbox_id) + "/deadline", {"timeout_s": timeout_s})
        )

    async def sandbox_log(self, sandbox_id: str) -> list[dict[str, Any]]:
        """What happened to it, oldest first: `at`, `level`, `message`, ... Raises no_such_sandbox."""
        lines: list[dict[str, Any]] = (await self._ask("GET", _sandbox(sandbox_id) + "/log")).get("lines", [])
        return lines

    async def sandbox_metrics(self, sandbox_id: str) -> list[dict[str, Any]]:
        """What it used, oldest first: `at`, `cpu_pct`, `memory_bytes`, ... Raises no_such_sandbox."""
        answer = await self._ask("GET", _sandbox(sandbox_id) + "/metrics")
        samples: list[dict[str, Any]] = answer.get("samples", [])
        return samples

    async def ssh_certificate(self, public_key: str) -> dict[str, Any]:
        """How to reach the server's SSH gateway (`host`, `port`, `host_key`), and a `certificate` for the owner of this
        public key to log in with until `expires_at`. Raises unsupported when the server serves no SSH."""
        found: dict[str, Any] = await self._ask("POST", "/v1/ssh", {"public_key": public_key})
        return found

    async def host(self) -> dict[str, Any]:
        """What holds on the server's machine: `tier`, `isolated`, `runtime`, `facts`, `templates`."""
        return await self._ask("GET", "/v1/host")

    # --- processes ---------------------------------------------------------------------------------------------------

    async def start_process(
        self,
        sandbox_id: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        user: str = "",
        cwd: str = "",
        tag: str = "",
        pty: WindowSize | None = None,
        stdin: bool = True,
        deadline_s: float = 0,
        log_bytes: int = 0,
    ) -> StartedProcess:
        """Start a process, in a terminal of size `pty` or with pipes. `deadline_s` 0: none.

        Raises no_such_user, bad_cwd, start_failed, bad_window_size.
        """
        body = start_body(
            argv,
            env=env,
            user=user,
            cwd=cwd,
            tag=tag,
            pty=pty,
            stdin=stdin,
            deadline_s=deadline_s,
            log_bytes=log_bytes,
        )
        return from_json(StartedProcess, await self._ask("POST", _sandbox(sandbox_id) + "/processes", body))

    async def list_processes(self, sandbox_id: str) -> list[ProcessInfo]:
        """Running ones and those that ended lately, oldest first."""
        answer = await self._ask("GET", _sandbox(sandbox_id) + "/processes")
        return [from_json(ProcessInfo, each) for each in answer.get("processes", [])]

    async def get_process(self, sandbox_id: str, process: int | str) -> ProcessInfo:
        """`process`: our id, `pid:<guest pid>` or `tag:<tag>`, here and below. Raises no_such_process."""
        return from_json(ProcessInfo, await self._ask("GET", _process(sandbox_id, process)))

    async def signal_process(
        self, sandbox_id: str, process: int | str, signal: str, *, target: Target = "group"
    ) -> None:
        """`signal` by name (`INT`); after KILL it returns once everything aimed at is gone. Raises exited."""
        await self._ask("POST", _process(sandbox_id, process) + "/signal", {"signal": signal, "target": target})

    async def resize_process(self, sandbox_id: str, process: int | str, size: WindowSize) -> None:
        """Raises not_a_pty, bad_window_size."""
        body = {"cols": size.cols, "rows": size.rows}
        await self._ask("POST", _process(sandbox_id, process) + "/resize", body)

    async def send_input(self, sandbox_id: str, process: int | str, data: bytes) -> None:
        """Type `data`, or write it to stdin; returns once the program's side took it. Raises exited, stdin_closed."""
        await self._ask("POST", _process(sandbox_id, process) + "/input", content=data)

    async def close_stdin(self, sandbox_id: str, process: int | str) -> None:
        """End of input for a process with pipes. Raises not_a_pipe."""
        await self._ask("POST", _process(sandbox_id, process) + "/close-stdin")

    async def wait_exit(self, sandbox_id: str, process: int | str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The exit, as `ProcessInfo.exit`, once there is one; None waits for ever. Raises timeout."""
        left = timeout_s
        while True:
            slice_s = max(1, int(min(WAIT_SLICE_S, self.request_timeout_s / 2, WAIT_SLICE_S if left is None else left)))
            try:
                return await self._ask("GET", _process(sandbox_id, process) + f"/wait?timeout_s={slice_s}")
            except SandptyError as error:
                if error.reason.name != "timeout":
                    raise
                if left is not None:
                    left -= slice_s
                    if left <= 0:
                        raise

    def attach(
        self,
        sandbox_id: str,
        process: int | str,
        *,
        origin: From = From.CONTINUE,
        value: int = 0,
        read_only: bool = False,
        window: int = DEFAULT_WINDOW_BYTES,
    ) -> AsyncAttachment:
        """A view of a process, to be entered with `async with`; output begins where `origin` and `value` say.

        At most `window` bytes of output are on the way beyond what was acknowledged.
        """
        mode = "ro" if read_only else "rw"
        query = f"from={origin.name.lower()}&value={value}&mode={mode}&window={window}"
        return self._view(_process(sandbox_id, process) + f"/attach?{query}", window)

    def start_attached(
        self, sandbox_id: str, argv: Sequence[str], *, window: int = DEFAULT_WINDOW_BYTES, **options: Any
    ) -> AsyncAttachment:
        """Start a process and view it from its first byte, in one exchange; to be entered with `async with`.

        `options`, and what entering raises: as of `start_process`. `info` has its `process` and `pid`.
        """
        opening = json.dumps(start_body(argv, **options))
        return self._view(_sandbox(sandbox_id) + f"/start?window={window}", window, opening)

    def _view(self, path: str, window: int, opening: str = "") -> AsyncAttachment:
        return AsyncAttachment(
            self.url,
            path,
            self._headers(),
            window=window,
            answer_timeout_s=self.request_timeout_s,
            opening=opening,
        )

    def connect_port(self, sandbox_id: str, port: int) -> AsyncPortConnection:
        """A TCP connection to what listens on that port in a sandbox, loopback included; enter it with `async with`."""
        return AsyncPortConnection(self.url, _sandbox(sandbox_id) + f"/ports/{port}", self._headers())


def _sandbox(sandbox_id: str) -> str:
    return "/v1/sandboxes/" + quote(sandbox_id, safe="")


def _process(sandbox_id: str, process: int | str) -> str:
    return _sandbox(sandbox_id) + "/processes/" + quote(str(process), safe=":")
