# Generated from sdk/_async by scripts/generate-sync: change it there.
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
from sandpty.sdk._sync.attachment import Attachment
from sandpty.sdk._sync.http import Answer, Http
from sandpty.sdk._sync.port import PortConnection
from sandpty.sdk._sync.sockets import WebSocket, connect_socket
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
    from sandpty.sdk._sync.streams import StreamedAnswer, Streams

Target = Literal["leader", "group", "tree"]
OnTimeout = Literal["kill", "pause", "pause_disk"]

REQUEST_TIMEOUT_S = 75.0  # a create under full load may take a minute before the server gives up itself
WAIT_SLICE_S = 30  # one long-poll of wait_exit; below what proxies cut
DEFAULT_WINDOW_BYTES = 256 * 1024


class Client:
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
        self._small = Http(self.url, self._headers())
        self._streams: list[Streams] = []  # at most one; a list, so that `within` shares it

    @property
    def streams(self) -> Streams:
        """For bodies that are streams, and for proxies."""
        if not self._streams:
            from sandpty.sdk._sync.streams import Streams

            self._streams.append(Streams(self.url, self._headers(), direct=is_local(self.url)))
        return self._streams[0]

    @classmethod
    def from_environment(
        cls, url: str | None = None, api_key: str | None = None, *, request_timeout_s: float | None = None
    ) -> Client:
        """With SANDPTY_URL and SANDPTY_API_KEY for what is not given. Raises unauthenticated without a key."""
        return cls(
            *server_from_environment(url, api_key),
            request_timeout_s=REQUEST_TIMEOUT_S if request_timeout_s is None else request_timeout_s,
        )

    def within(self, request_timeout_s: float | None) -> Client:
        """This client, on the same connections, with another request timeout. None: as it is."""
        if request_timeout_s is None:
            return self
        other = copy.copy(self)
        other.request_timeout_s = request_timeout_s
        return other

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._api_key}"}

    def close(self) -> None:
        self._small.close()
        while self._streams:
            self._streams.pop().close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, content: bytes | None = None
    ) -> dict[str, Any]:
        kind = ""
        if body is not None:
            content, kind = json.dumps(body).encode(), "application/json"
        answer = self.exchange(method, path, content or b"", kind)
        if not answer.body:
            return {}
        try:
            parsed = json.loads(answer.body)
        except ValueError as error:
            raise errors.unreachable(self.url, error) from error
        return parsed if isinstance(parsed, dict) else {}

    def exchange(self, method: str, path: str, content: bytes = b"", kind: str = "") -> Answer:
        """One request with a small body of content type `kind`. Raises the server's errors."""
        try:
            if self._proxied:
                answer = self.streams.ask(method, path, content, kind=kind, timeout_s=self.request_timeout_s)
            else:
                answer = self._small.ask(method, path, content, kind=kind, timeout_s=self.request_timeout_s)
        except TimeoutError as error:
            raise RequestTimeoutError(f"{method} {path.partition('?')[0]}", self.request_timeout_s) from error
        except (OSError, h11.ProtocolError) as error:
            raise errors.unreachable(self.url, error) from error
        if answer.status >= 400:
            raise errors.from_response(answer.status, answer.body)
        return answer

    def stream(
        self, method: str, path: str, *, content: Any = None, headers: Mapping[str, str] | None = None
    ) -> StreamedAnswer:
        """An answer that is read as it comes, and then closed. `content`: pieces. Raises the server's errors."""
        return self.streams.send(method, path, content=content, headers=headers, timeout_s=self.request_timeout_s)

    def connect_socket(self, path: str) -> WebSocket:
        """A WebSocket of the native dialect. Raises what the server refuses it with."""
        return connect_socket(self.url, path, self._headers())

    # --- sandboxes ---------------------------------------------------------------------------------------------------

    def create_sandbox(
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
        return from_json(SandboxInfo, self._ask("POST", "/v1/sandboxes", body))

    def list_sandboxes(self) -> list[SandboxInfo]:
        """This key's sandboxes, running and paused."""
        answer = self._ask("GET", "/v1/sandboxes")
        return [from_json(SandboxInfo, each) for each in answer.get("sandboxes", [])]

    def get_sandbox(self, sandbox_id: str) -> SandboxInfo:
        """Raises no_such_sandbox."""
        return from_json(SandboxInfo, self._ask("GET", _sandbox(sandbox_id)))

    def set_network(
        self, sandbox_id: str, *, internet: bool = True, network: Mapping[str, Any] | None = None
    ) -> SandboxInfo:
        """Replaces where it may connect to; what is not allowed any more has ended then. Raises no_such_sandbox."""
        body = {"internet": internet, "network": dict(network or {})}
        return from_json(SandboxInfo, self._ask("PUT", _sandbox(sandbox_id) + "/network", body))

    def kill_sandbox(self, sandbox_id: str) -> None:
        """Ends it with everything in it; returns once it is gone. Raises no_such_sandbox."""
        self._ask("DELETE", _sandbox(sandbox_id))

    def pause_sandbox(self, sandbox_id: str, *, memory: bool = True) -> SandboxInfo:
        """Stops it where it is; without `memory` only its files are kept. Raises no_such_sandbox, already_paused."""
        return from_json(SandboxInfo, self._ask("POST", _sandbox(sandbox_id) + "/pause", {"memory": memory}))

    def resume_sandbox(self, sandbox_id: str, *, timeout_s: float = 300, memory: bool = True) -> SandboxInfo:
        """Goes on where it was; not `memory`: starts again from its files. Raises no_such_sandbox, conflict."""
        body = {"timeout_s": timeout_s, "memory": memory}
        return from_json(SandboxInfo, self._ask("POST", _sandbox(sandbox_id) + "/resume", body))

    def snapshot_sandbox(self, sandbox_id: str, *, name: str = "") -> Snapshot:
        """Keeps its files as they are now; `create_sandbox` takes the id or the name as a template.

        Raises no_such_sandbox, bad_argument (the name), limit, no_space.
        """
        return from_json(Snapshot, self._ask("POST", _sandbox(sandbox_id) + "/snapshots", {"name": name}))

    def list_snapshots(self) -> list[Snapshot]:
        """This key's snapshots, oldest first."""
        answer = self._ask("GET", "/v1/snapshots")
        return [from_json(Snapshot, each) for each in answer.get("snapshots", [])]

    def delete_snapshot(self, snapshot: str) -> None:
        """By id or name. Sandboxes that were made from it go on. Raises no_such_snapshot."""
        self._ask("DELETE", "/v1/snapshots/" + quote(snapshot, safe=""))

    def create_volume(self, name: str, *, disk_mb: int = 0) -> Volume:
        """A directory that outlives sandboxes, for `create_sandbox`. disk_mb 0: the server's default.

        Raises conflict (there is one of that name), bad_argument, limit, no_space.
        """
        return from_json(Volume, self._ask("POST", "/v1/volumes", {"name": name, "disk_mb": disk_mb}))

    def list_volumes(self) -> list[Volume]:
        """This key's volumes, oldest first."""
        return [from_json(Volume, each) for each in (self._ask("GET", "/v1/volumes")).get("volumes", [])]

    def delete_volume(self, volume: str) -> None:
        """By id or name, with all that is in it. Raises no_such_volume, volume_in_use."""
        self._ask("DELETE", "/v1/volumes/" + quote(volume, safe=""))

    def fork_sandbox(
        self, sandbox_id: str, *, count: int = 1, timeout_s: float = 300
    ) -> list[SandboxInfo | SandptyError]:
        """Sandboxes with the files that it has now; it goes on. One that fails is its error instead."""
        answer = self._ask("POST", _sandbox(sandbox_id) + "/fork", {"count": count, "timeout_s": timeout_s})
        forks = answer.get("forks", [])
        return [
            errors.from_member(each["error"]) if "error" in each else from_json(SandboxInfo, each) for each in forks
        ]

    def set_deadline(self, sandbox_id: str, *, timeout_s: float) -> SandboxInfo:
        """Its end of life, in seconds from now. Raises no_such_sandbox, bad_timeout."""
        return from_json(SandboxInfo, self._ask("PUT", _sandbox(sandbox_id) + "/deadline", {"timeout_s": timeout_s}))

    def sandbox_log(self, sandbox_id: str) -> list[dict[str, Any]]:
        """What happened to it, oldest first: `at`, `level`, `message`, ... Raises no_such_sandbox."""
        lines: list[dict[str, Any]] = (self._ask("GET", _sandbox(sandbox_id) + "/log")).get("lines", [])
        return lines

    def sandbox_metrics(self, sandbox_id: str) -> list[dict[str, Any]]:
        """What it used, oldest first: `at`, `cpu_pct`, `memory_bytes`, ... Raises no_such_sandbox."""
        answer = self._ask("GET", _sandbox(sandbox_id) + "/metrics")
        samples: list[dict[str, Any]] = answer.get("samples", [])
        return samples

    def ssh_certificate(self, public_key: str) -> dict[str, Any]:
        """How to reach the server's SSH gateway (`host`, `port`, `host_key`), and a `certificate` for the owner of this
        public key to log in with until `expires_at`. Raises unsupported when the server serves no SSH."""
        found: dict[str, Any] = self._ask("POST", "/v1/ssh", {"public_key": public_key})
        return found

    def host(self) -> dict[str, Any]:
        """What holds on the server's machine: `tier`, `isolated`, `runtime`, `facts`, `templates`."""
        return self._ask("GET", "/v1/host")

    # --- processes ---------------------------------------------------------------------------------------------------

    def start_process(
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
        return from_json(StartedProcess, self._ask("POST", _sandbox(sandbox_id) + "/processes", body))

    def list_processes(self, sandbox_id: str) -> list[ProcessInfo]:
        """Running ones and those that ended lately, oldest first."""
        answer = self._ask("GET", _sandbox(sandbox_id) + "/processes")
        return [from_json(ProcessInfo, each) for each in answer.get("processes", [])]

    def get_process(self, sandbox_id: str, process: int | str) -> ProcessInfo:
        """`process`: our id, `pid:<guest pid>` or `tag:<tag>`, here and below. Raises no_such_process."""
        return from_json(ProcessInfo, self._ask("GET", _process(sandbox_id, process)))

    def signal_process(self, sandbox_id: str, process: int | str, signal: str, *, target: Target = "group") -> None:
        """`signal` by name (`INT`); after KILL it returns once everything aimed at is gone. Raises exited."""
        self._ask("POST", _process(sandbox_id, process) + "/signal", {"signal": signal, "target": target})

    def resize_process(self, sandbox_id: str, process: int | str, size: WindowSize) -> None:
        """Raises not_a_pty, bad_window_size."""
        body = {"cols": size.cols, "rows": size.rows}
        self._ask("POST", _process(sandbox_id, process) + "/resize", body)

    def send_input(self, sandbox_id: str, process: int | str, data: bytes) -> None:
        """Type `data`, or write it to stdin; returns once the program's side took it. Raises exited, stdin_closed."""
        self._ask("POST", _process(sandbox_id, process) + "/input", content=data)

    def close_stdin(self, sandbox_id: str, process: int | str) -> None:
        """End of input for a process with pipes. Raises not_a_pipe."""
        self._ask("POST", _process(sandbox_id, process) + "/close-stdin")

    def wait_exit(self, sandbox_id: str, process: int | str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The exit, as `ProcessInfo.exit`, once there is one; None waits for ever. Raises timeout."""
        left = timeout_s
        while True:
            slice_s = max(1, int(min(WAIT_SLICE_S, self.request_timeout_s / 2, WAIT_SLICE_S if left is None else left)))
            try:
                return self._ask("GET", _process(sandbox_id, process) + f"/wait?timeout_s={slice_s}")
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
    ) -> Attachment:
        """A view of a process, to be entered with `with`; output begins where `origin` and `value` say.

        At most `window` bytes of output are on the way beyond what was acknowledged.
        """
        mode = "ro" if read_only else "rw"
        query = f"from={origin.name.lower()}&value={value}&mode={mode}&window={window}"
        return self._view(_process(sandbox_id, process) + f"/attach?{query}", window)

    def start_attached(
        self, sandbox_id: str, argv: Sequence[str], *, window: int = DEFAULT_WINDOW_BYTES, **options: Any
    ) -> Attachment:
        """Start a process and view it from its first byte, in one exchange; to be entered with `with`.

        `options`, and what entering raises: as of `start_process`. `info` has its `process` and `pid`.
        """
        opening = json.dumps(start_body(argv, **options))
        return self._view(_sandbox(sandbox_id) + f"/start?window={window}", window, opening)

    def _view(self, path: str, window: int, opening: str = "") -> Attachment:
        return Attachment(
            self.url,
            path,
            self._headers(),
            window=window,
            answer_timeout_s=self.request_timeout_s,
            opening=opening,
        )

    def connect_port(self, sandbox_id: str, port: int) -> PortConnection:
        """A TCP connection to what listens on that port in a sandbox, loopback included; enter it with `with`."""
        return PortConnection(self.url, _sandbox(sandbox_id) + f"/ports/{port}", self._headers())


def _sandbox(sandbox_id: str) -> str:
    return "/v1/sandboxes/" + quote(sandbox_id, safe="")


def _process(sandbox_id: str, process: int | str) -> str:
    return _sandbox(sandbox_id) + "/processes/" + quote(str(process), safe=":")
