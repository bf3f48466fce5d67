"""Checks of reaching services in sandboxes with E2B's unmodified Python SDK: run by test_e2b_ports.py, each by name.

They run in a mount namespace of their own, in which HOSTS_FILE is /etc/hosts: names below the domain are written there.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
from e2b import AsyncSandbox, Sandbox, SandboxState

from tests.waiting import DEADLINE_S, until, until_sync

ECHO = """
import http.server, json, sys
class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for number in range(5):
                self.wfile.write(b"data: %d\\n\\n" % number)
                self.wfile.flush()
            self.close_connection = True
            return
        self.answer(json.dumps(dict(self.headers)).encode())
    def do_POST(self):
        left, ones = int(self.headers["Content-Length"]), 0
        while left:
            data = self.rfile.read(min(left, 1 << 20))
            left -= len(data)
            ones += data.count(b"1")
        self.answer(b"%d" % ones)
    def do_PUT(self):
        size = int(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        while size:
            size -= self.wfile.write(b"1" * min(size, 1 << 20))
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
"""
SOCKET = """
import base64, hashlib, socket, struct
listener = socket.create_server(("127.0.0.1", 8765))
while True:
    peer, _ = listener.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += peer.recv(65536)
    key = next(l for l in head.decode().split("\\r\\n") if l.lower().startswith("sec-websocket-key:")).split(":")[1]
    digest = hashlib.sha1(key.strip().encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    peer.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
                 b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\\r\\n\\r\\n")
    stream = peer.makefile("rb")
    while head := stream.read(2):
        size = head[1] & 127
        if size == 126:
            size = struct.unpack(">H", stream.read(2))[0]
        mask, data = stream.read(4), stream.read(size)
        plain = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        if head[0] & 15 == 8:
            peer.sendall(b"\\x88\\x00")
            break
        length = bytes([size]) if size < 126 else struct.pack(">BH", 126, size)
        peer.sendall(bytes([head[0]]) + length + plain)
    stream.close()
    peer.close()
"""


def url(sandbox: Sandbox | AsyncSandbox, port: int, path: str = "") -> str:
    """The https address of a port, findable in this namespace."""
    host = sandbox.get_host(port)
    with open("/etc/hosts", "a", encoding="ascii") as file:
        file.write(f"127.0.0.1 {host.partition(':')[0]}\n")
    return f"https://{host}{path}"


@contextlib.contextmanager
def created(**options: Any) -> Iterator[Sandbox]:
    """A sandbox of its own."""
    sandbox = Sandbox.create(**{"timeout": 120, **options})
    try:
        yield sandbox
    finally:
        sandbox.kill()


def serve(sandbox: Sandbox, program: str = ECHO, *args: str) -> None:
    """Start a service in the sandbox, on loopback only."""
    sandbox.commands.run(f"cat > /tmp/service.py <<'EOF'\n{program}\nEOF")
    sandbox.commands.run(f"python3 /tmp/service.py {' '.join(args)}", background=True)


def ok(address: str, **options: Any) -> httpx.Response:
    """The first answer with 200: a service takes a moment to start."""
    return until_sync(lambda: (got := httpx.get(address, timeout=DEADLINE_S, **options)).status_code == 200 and got)


def a_host_name_reaches_a_service() -> None:
    """E2B's test_host."""
    with created() as sandbox:
        sandbox.commands.run("python -m http.server 8001", background=True)
        assert b"Directory listing" in ok(url(sandbox, 8001)).content


async def a_host_name_reaches_a_service_asynchronously() -> None:
    """The same with the asynchronous SDK."""
    sandbox = await AsyncSandbox.create(timeout=120)
    try:
        await sandbox.commands.run("python -m http.server 8001", background=True)
        address = url(sandbox, 8001)
        async with httpx.AsyncClient() as client:

            async def answers() -> bool:
                return (await client.get(address)).status_code == 200

            await until(answers)
    finally:
        await sandbox.kill()


def a_killed_sandbox_is_a_502() -> None:
    """With the body that E2B's JavaScript test reads; so is a port on which nobody listens."""
    with created() as sandbox:
        address = url(sandbox, 3000)
        closed = httpx.get(address, timeout=DEADLINE_S)
        assert closed.status_code == 502
        assert closed.json() == {
            "sandboxId": sandbox.sandbox_id,
            "message": "The sandbox is running but port is not open",
            "port": 3000,
            "code": 502,
        }
    gone = httpx.get(address, timeout=DEADLINE_S)
    assert gone.status_code == 502
    assert gone.json() == {"sandboxId": sandbox.sandbox_id, "message": "The sandbox was not found", "code": 502}


def private_ports_want_the_token() -> None:
    """E2B's test_allow_public_traffic_false and _true."""
    with created(network={"allow_public_traffic": False}) as sandbox:
        assert sandbox.traffic_access_token
        serve(sandbox, ECHO, "8080")
        address = url(sandbox, 8080)
        refused = httpx.get(address, timeout=DEADLINE_S)
        assert refused.status_code == 403
        assert refused.json()["code"] == 403
        ok(address, headers={"e2b-traffic-access-token": sandbox.traffic_access_token})
        assert Sandbox.connect(sandbox.sandbox_id).traffic_access_token == sandbox.traffic_access_token
        assert sandbox.get_info().network["allow_public_traffic"] is False
    with created(network={"allow_public_traffic": True}) as sandbox:
        assert sandbox.traffic_access_token is None


def services_see_the_masked_host() -> None:
    """E2B's test_mask_request_host."""
    with created(network={"mask_request_host": "custom-host.example.com:${PORT}"}) as sandbox:
        serve(sandbox, ECHO, "8080")
        headers = ok(url(sandbox, 8080)).json()
        assert headers["Host"] == "custom-host.example.com:8080"
        assert headers["X-Forwarded-Proto"] == "https"


def services_may_speak_tls() -> None:
    """E2B's test_https_ports."""
    with created(network={"https_ports": [8443]}) as sandbox:
        sandbox.commands.run(
            "openssl req -x509 -newkey rsa:2048 -nodes -keyout /tmp/key.pem -out /tmp/cert.pem -subj /CN=localhost"
        )
        sandbox.commands.run(
            "openssl s_server -accept 127.0.0.1:8443 -key /tmp/key.pem -cert /tmp/cert.pem -www -quiet", background=True
        )
        assert b"s_server" in ok(url(sandbox, 8443)).content
        assert sandbox.get_info().network["https_ports"] == [8443]


def traffic_wakes_a_paused_sandbox() -> None:
    """E2B's test_auto_resume_wakes_on_http_request; without auto_resume it stays paused."""
    with created(lifecycle={"on_timeout": "pause", "auto_resume": True}) as sandbox:
        serve(sandbox, ECHO, "8000")
        address = url(sandbox, 8000)
        ok(address)
        sandbox.set_timeout(0)
        until_sync(lambda: sandbox.get_info().state == SandboxState.PAUSED)
        assert httpx.get(address, timeout=DEADLINE_S).status_code == 200
        assert sandbox.get_info().state == SandboxState.RUNNING
        assert sandbox.is_running()
    with created() as sandbox:
        address = url(sandbox, 8000)
        sandbox.pause()
        assert httpx.get(address, timeout=DEADLINE_S).json()["message"] == "The sandbox was not found"
        assert sandbox.get_info().state == SandboxState.PAUSED


def streams_pass_both_ways() -> None:
    """Events, and 64 MiB up and down."""
    size = 64 << 20
    with created() as sandbox:
        serve(sandbox, ECHO, "8000")
        address = url(sandbox, 8000)
        ok(address)
        with httpx.stream("GET", f"{address}/events", timeout=DEADLINE_S) as events:
            assert [line for line in events.iter_lines() if line] == [f"data: {number}" for number in range(5)]
        assert httpx.post(address, content=b"1" * size, timeout=120).text == str(size)
        with httpx.stream("PUT", f"{address}/{size}", timeout=120) as down:
            assert sum(len(piece) for piece in down.iter_raw()) == size


async def websockets_pass() -> None:
    """An echo, text and bytes."""
    import websockets

    with created() as sandbox:
        serve(sandbox, SOCKET)
        address = url(sandbox, 8765).replace("https://", "wss://")
        async with websockets.connect(address, open_timeout=DEADLINE_S) as connected:
            for word in ("hello", "x" * 40_000, b"\x00\xff" * 100):
                await connected.send(word)
                assert await connected.recv() == word


def the_domain_alone_is_enough() -> None:
    """Control plane at https://api.<domain>, the sandbox's own API at https://49983-<id>.<domain>, as at E2B."""
    domain = os.environ["PORTS_DOMAIN"]
    with created() as sandbox:
        assert url(sandbox, 49983) == f"https://49983-{sandbox.sandbox_id}.{domain}"
        with open("/etc/hosts", "a", encoding="ascii") as file:
            file.write(f"127.0.0.1 api.{domain.partition(':')[0]}\n")
        kept = {key: value for key, value in os.environ.items() if key not in ("E2B_API_URL", "E2B_SANDBOX_URL")}
        # In a process of its own: the SDK's resolver reads /etc/hosts once.
        command = [sys.executable, __file__, "connect", sandbox.sandbox_id]
        subprocess.run(command, env={**kept, "E2B_DOMAIN": domain}, check=True, timeout=60)


def connect(sandbox_id: str) -> None:
    """The second half of it."""
    sandbox = Sandbox.connect(sandbox_id)
    assert sandbox.is_running()
    assert sandbox.commands.run("echo hello").stdout == "hello\n"


CHECKS = {
    check.__name__: check
    for check in (
        a_host_name_reaches_a_service,
        a_host_name_reaches_a_service_asynchronously,
        a_killed_sandbox_is_a_502,
        private_ports_want_the_token,
        services_see_the_masked_host,
        services_may_speak_tls,
        traffic_wakes_a_paused_sandbox,
        streams_pass_both_ways,
        websockets_pass,
        the_domain_alone_is_enough,
    )
}

if __name__ == "__main__":
    result = connect(sys.argv[2]) if sys.argv[1] == "connect" else CHECKS[sys.argv[1]]()
    if inspect.isawaitable(result):
        asyncio.run(result)  # type: ignore[arg-type]
    print(json.dumps("done"))
