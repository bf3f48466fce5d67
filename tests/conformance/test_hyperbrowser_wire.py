"""Hyperbrowser's API spoken by hand: tokens that are not right, frames that are not frames, clients that misbehave."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hyperbrowser import Hyperbrowser
from hyperbrowser.client.managers.sync_manager.sandbox import SandboxHandle
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from sandpty.config import DataDir
from sandpty.server.app import make_app, make_context
from sandpty.server.auth import Authenticator
from sandpty.server.dialects.hyperbrowser.transfers import FileClaims
from sandpty.server.registry import Registry
from sandpty.server.runtime_tokens import RuntimeClaims, SignedTokens
from sandpty.server.settings import Settings
from tests.server_fixture import RunningServer
from tests.waiting import until_sync

DEADLINE_S = 30.0
PARTS = re.compile(r"\{(\w+)(?::[^{}]*)?\}")


def runtime_routes() -> list[tuple[str, str]]:
    """(method, path) of everything below /sandbox/{id}, as the application has it."""
    with ExitStack() as stack:
        settings = Settings(DataDir(Path("/nonexistent")), "k")
        context = make_context(settings, Registry("/nonexistent"), Authenticator("k"), stack)
        table = set()
        for route in make_app(context).router.routes():
            assert route.resource is not None
            info = route.resource.get_info()
            path = info.get("path") or info["formatter"]
            if path.startswith("/sandbox/{id}"):
                table.add(("GET" if route.method == "*" else route.method, path))
    return sorted(entry for entry in table if entry[0] not in ("HEAD", "OPTIONS"))


ROUTES = runtime_routes()


@dataclass
class Wire:
    """A sandbox with a terminal in it, and who may enter."""

    server: RunningServer
    sandbox: SandboxHandle
    terminal: str
    tokens: SignedTokens
    http: httpx.Client

    @property
    def claims(self) -> RuntimeClaims:
        """What a good token says."""
        token = self.sandbox.refresh().to_dict()["token"]
        return self.tokens.read(token, RuntimeClaims)

    def fill(self, path: str) -> str:
        """The path with what is really there in its place."""
        known = {"id": self.sandbox.id, "terminal": self.terminal, "route": "ws", "tail": "x"}
        return PARTS.sub(lambda part: known.get(part[1], "proc_0123456789abcdef"), path)

    def attach(self, cursor: int | None = None, token: str | None = None, **how: Any) -> ClientConnection:
        """The terminal's WebSocket."""
        detail = self.sandbox.refresh().to_dict()
        url = detail["runtime"]["base_url"].replace("http", "ws", 1) + f"/pty/{self.terminal}/ws?sessionId=x"
        headers = {"Authorization": f"Bearer {token or detail['token']}"}
        return connect(url + ("" if cursor is None else f"&cursor={cursor}"), additional_headers=headers, **how)


@pytest.fixture(scope="module")
def wire(server: RunningServer, hyperbrowser: Hyperbrowser) -> Iterator[Wire]:
    """One for this module."""
    sandbox = hyperbrowser.sandboxes.create({"image_name": "base"})
    terminal = sandbox.terminal.create({"command": "bash", "args": ["--norc", "--noprofile"]})
    secret = (server.data_dir / "runtime_secret").read_text().strip().encode()
    with httpx.Client(timeout=30) as http:
        yield Wire(server, sandbox, terminal.id, SignedTokens(secret), http)
    sandbox.stop()


def wrong_tokens(wire: Wire) -> dict[str, str]:
    """Each wrong in its own way."""
    claims = wire.claims
    good = wire.tokens.sign(claims)
    header, body, signature = good.split(".")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()

    def with_claims(**changed: Any) -> str:
        fields = {name: getattr(claims, name) for name in claims.__struct_fields__}
        return wire.tokens.sign(RuntimeClaims(**{**fields, **changed}))

    file_claims = FileClaims(sub=claims.sub, own=claims.own, exp=claims.exp, path="/etc/passwd", method="GET")
    return {
        "none": "",
        "expired": with_claims(exp=int(time.time()) - 1),
        "of another sandbox": with_claims(sub="i00000000000000000000"),
        "of another owner": with_claims(own="somebody"),
        "of a revoked key": with_claims(key="gone"),
        "of another server": SignedTokens(b"another").sign(claims),
        "for a file": wire.tokens.sign(file_claims),
        "tampered with": f"{header}.{body[:-2]}xx.{signature}",
        "without a signature": f"{unsigned}.{body}.",
        "the API key": wire.server.api_key,
        "no text": "\xff.\xfe.\xfd",
    }


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[f"{method} {path}" for method, path in ROUTES])
def test_every_route_refuses_tokens_that_are_not_right(wire: Wire, method: str, path: str) -> None:
    """401 in the vendor's shape (404 where the token is good and its owner is not); also before an upgrade."""
    for what, token in wrong_tokens(wire).items():
        headers = {"Connection": "Upgrade", "Upgrade": "websocket"} if "/ws" in path or "{route}" in path else {}
        if token:
            headers["Authorization"] = f"Bearer {token}".encode("latin-1")
        answer = wire.http.request(method, wire.server.url + wire.fill(path), headers=headers)
        assert answer.status_code == (404 if what == "of another owner" and "presigned" not in path else 401), what
        assert answer.json()["message"], what
        assert answer.headers["x-request-id"]


def test_a_right_token_opens_what_a_wrong_one_does_not(wire: Wire) -> None:
    """So that the test above tests something."""
    token = wire.tokens.sign(wire.claims)
    url = f"{wire.server.url}/sandbox/{wire.sandbox.id}/pty/{wire.terminal}"
    assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=30).status_code == 200
    with pytest.raises(InvalidStatus, match="401"):
        wire.attach(token="wrong")
    with wire.attach():
        pass


def test_there_are_as_many_routes_as_the_sdks_use() -> None:
    """A table that came out empty would prove nothing."""
    assert len(ROUTES) > 30


def frames_until_closed(connection: ClientConnection) -> tuple[list[Any], int | None]:
    """All that the server says, and the code with which it closes."""
    frames = []
    try:
        while True:
            frames.append(json.loads(connection.recv(timeout=DEADLINE_S)))
    except ConnectionClosed as closed:
        return frames, closed.rcvd.code if closed.rcvd else None


GARBAGE: list[str | bytes] = [
    "",
    "nonsense",
    "[]",
    "null",
    '{"type":"dance"}',
    '{"type":"input"}',
    '{"type":"input","data":7}',
    '{"type":"input","data":"%%%","encoding":"base64"}',
    '{"type":"input","data":"x","encoding":"rot13"}',
    '{"type":"resize","rows":"many","cols":1}',
    '{"type":"resize","rows":1e400,"cols":1}',
    '{"type":"input","data":"\\ud800"}',
    b"\xff\xfe\x00",
    "[" * 100_000,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda value: repr(value[:40]))
def test_garbage_costs_only_its_own_connection(wire: Wire, garbage: str | bytes) -> None:
    """It is closed with a reason; others on the same terminal notice nothing."""
    with wire.attach() as other, wire.attach() as bad:
        bad.send(garbage)
        assert frames_until_closed(bad)[1] in (1003, 1007, 1009)
        mark = f"alive-{time.monotonic_ns()}"
        other.send(json.dumps({"type": "input", "data": f"echo {mark}\n"}))
        said = b""
        while not re.search(rf"[\r\n]{mark}\r\n".encode(), said):
            said += base64.b64decode(json.loads(other.recv(timeout=DEADLINE_S))["data"])


def test_a_message_that_is_too_big_costs_only_its_own_connection(wire: Wire) -> None:
    """1009, as RFC 6455 has it; a client that is still sending may see no more than that its connection is gone."""
    with wire.attach() as bad:
        with suppress(ConnectionClosed):
            bad.send(json.dumps({"type": "input", "data": "x" * 3_000_000}))
        assert frames_until_closed(bad)[1] in (1009, None)
    with wire.attach():
        pass


@pytest.mark.parametrize("cursor", ["-1", "x", "1.5", "9" * 30, "%00"])
def test_a_cursor_that_is_no_number_is_refused(wire: Wire, cursor: str) -> None:
    """400 before the upgrade."""
    with pytest.raises(InvalidStatus, match="400"):
        wire.attach(cursor)  # type: ignore[arg-type]


def test_frames_are_output_and_one_exit_and_nothing_else(wire: Wire) -> None:
    """Each below 1 MiB; seq is the offset at which a chunk ends; the connection is closed properly after the exit."""
    terminal = wire.sandbox.terminal.create({"command": "bash", "args": ["-c", "stty raw; head -c 3000000 /dev/zero"]})
    mine = Wire(wire.server, wire.sandbox, terminal.id, wire.tokens, wire.http)
    with mine.attach(max_size=1024 * 1024) as connection:
        frames, code = frames_until_closed(connection)
    assert code == 1000
    assert [frame["type"] for frame in frames] == ["output"] * (len(frames) - 1) + ["exit"]
    end = 0
    for frame in frames[:-1]:
        assert set(frame) == {"type", "seq", "data", "timestamp"}
        end += len(base64.b64decode(frame["data"]))
        assert frame["seq"] == end
    assert end == 3_000_000
    assert frames[-1]["status"]["exitCode"] == 0


def test_a_body_that_is_no_json_is_refused(wire: Wire) -> None:
    """400 in the vendor's shape, on every route that takes one."""
    headers = {"Authorization": f"Bearer {wire.tokens.sign(wire.claims)}"}
    for path in ("/pty", f"/pty/{wire.terminal}/wait", f"/pty/{wire.terminal}/resize", "/processes", "/files/write"):
        for body in (b"{", b"[]", b"\xff", b'{"command":7,"rows":"x","timeoutMs":"y","path":[]}'):
            url = f"{wire.server.url}/sandbox/{wire.sandbox.id}{path}"
            answer = wire.http.post(url, content=body, headers=headers)
            assert answer.status_code == 400, (path, body, answer.text)
            assert answer.json()["code"] == "bad_request"


def test_a_stream_outlives_its_token(wire: Wire) -> None:
    """The token ends while output flows: the stream goes on, and what is asked next is refused."""
    fields = {name: getattr(wire.claims, name) for name in RuntimeClaims.__struct_fields__}
    short = wire.tokens.sign(RuntimeClaims(**{**fields, "exp": int(time.time()) + 2}))
    url = f"{wire.server.url}/sandbox/{wire.sandbox.id}/pty/{wire.terminal}"
    headers = {"Authorization": f"Bearer {short}"}
    with wire.attach(token=short) as connection:
        until_sync(lambda: wire.http.get(url, headers=headers).status_code == 401, DEADLINE_S)
        connection.send(json.dumps({"type": "input", "data": "echo out-$((20+3))-lived\n"}))
        said = b""
        while b"out-23-lived" not in said:
            said += base64.b64decode(json.loads(connection.recv(timeout=DEADLINE_S))["data"])
