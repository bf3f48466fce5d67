"""ssh -L, -R and -D, and what strangers may do to the gateway."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from sandpty import config
from tests.e2e.ssh_client import TIMEOUT_S, Client, client_of
from tests.server_fixture import RunningServer
from tests.waiting import until_sync

SERVE = "cd /tmp && echo from-the-sandbox > page && exec python3 -m http.server --bind 127.0.0.1 8123"


@pytest.fixture(scope="module")
def ssh(ssh_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """OpenSSH for the key of this machine."""
    return client_of(ssh_server, tmp_path_factory.mktemp("ssh"))


@pytest.fixture(scope="module")
def box(ssh: Client) -> Iterator[str]:
    """A sandbox that serves a page on its loopback, and may connect nowhere."""
    made = ssh.cli("create", "--no-internet").stdout.strip()
    with ssh.running(f"{made}@sandpty", SERVE):
        until_sync(
            lambda: ssh.run(f"{made}@sandpty", "exec 3<>/dev/tcp/127.0.0.1/8123").returncode == 0,
            TIMEOUT_S,
            "it serves",
        )
        yield f"{made}@sandpty"
    ssh.cli("kill", made)


def free_port() -> int:
    """One that nobody listens on, a moment ago."""
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        port: int = found.getsockname()[1]
        return port


def page(port: int) -> bytes:
    """What is served there; b"" while nobody listens."""
    with suppress(OSError), closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        connection.request("GET", "/page")
        return connection.getresponse().read()
    return b""


def test_a_port_of_the_sandbox_is_reached(ssh: Client, box: str) -> None:
    """-L, by the name of its loopback and by its number; a closed port is refused in words, and breaks nothing."""
    one, two, closed = free_port(), free_port(), free_port()
    words = ("-N", "-L", f"{one}:localhost:8123", "-L", f"{two}:127.0.0.1:8123", "-L", f"{closed}:localhost:9")
    with ssh.running(*words, box):
        assert until_sync(lambda: page(one), TIMEOUT_S) == b"from-the-sandbox\n"
        assert page(two) == b"from-the-sandbox\n"
        assert page(closed) == b""
        assert [page(one) for _ in range(20)] == [b"from-the-sandbox\n"] * 20
    done = ssh.run("-o", "LogLevel=INFO", "-W", "localhost:9", box)
    assert b"nothing listens on port 9" in done.stderr


def test_forwarding_goes_as_far_as_the_sandbox_may(ssh: Client, box: str) -> None:
    """-D and -W are the sandbox's own network: not this machine's loopback, and nowhere without internet."""
    with closing(socket.create_server(("0.0.0.0", 0))) as here:
        port = here.getsockname()[1]
        for host in ("localhost", "127.0.0.1", "::1", socket.gethostbyname(socket.gethostname()), "1.1.1.1"):
            done = ssh.run("-o", "LogLevel=INFO", "-W", f"[{host}]:{port}", box)
            assert done.returncode != 0, host
            assert b"open failed" in done.stderr
        here.settimeout(0.2)
        with pytest.raises(TimeoutError):
            here.accept()
    socks = free_port()
    with ssh.running("-N", "-D", str(socks), box):
        until_sync(lambda: _socks(socks, "localhost", 8123), TIMEOUT_S, "the sandbox's loopback by SOCKS")


def _socks(proxy: int, host: str, port: int) -> bool:
    """Whether the page is served through a SOCKS5 proxy."""
    name = host.encode()
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", proxy), TIMEOUT_S)) as connection:
        connection.sendall(b"\x05\x01\x00")
        assert connection.recv(2) == b"\x05\x00"
        connection.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
        assert connection.recv(10)[1] == 0
        connection.sendall(b"GET /page HTTP/1.0\r\n\r\n")
        said = b""
        while data := connection.recv(65536):
            said += data
        return said.endswith(b"from-the-sandbox\n")
    return False


def test_a_sandbox_reaches_a_port_here(ssh: Client, box: str, tmp_path: Path) -> None:
    """-R: what is served here is on a port of the sandbox, for as long as ssh lives; privileged ports are root's."""
    (tmp_path / "page").write_text("from-here\n")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        here = f"localhost:{served.server_address[1]}"
        get = "exec 3<>/dev/tcp/127.0.0.1/7000; printf 'GET /page HTTP/1.0\\r\\n\\r\\n' >&3; tail -1 <&3"
        assert ssh.out("-R", f"7000:{here}", box, f"{get}; {get}") == b"from-here\nfrom-here\n"
        assert ssh.run(box, get).returncode != 0
        any_port = ssh.run("-R", f"0:{here}", box, "true")
        assert any_port.returncode == 0
        refused = ssh.run("-o", "ExitOnForwardFailure=yes", "-R", f"80:{here}", box, "true")
        assert refused.returncode == 255
        root = box.replace("@", "+user=root@")
        assert ssh.run("-o", "ExitOnForwardFailure=yes", "-R", f"80:{here}", root, "true").returncode == 0
        served.shutdown()


def test_a_socket_of_the_sandbox_leads_here(ssh: Client, box: str, tmp_path: Path) -> None:
    """-R /PATH: to a unix socket or a port here, for its user alone; taken paths are refused, and it goes with ssh."""
    here = tmp_path / "here.sock"
    data = os.urandom(300_000)
    with _reversing(here) as port:
        forwards = ("-R", f"/tmp/up.sock:{here}", "-R", f"./up.sock:localhost:{port}")
        ask = (
            "import socket, sys; sent = sys.stdin.buffer.read()\n"
            "for path in '/tmp/up.sock', '/home/user/up.sock':\n"
            "    up = socket.socket(socket.AF_UNIX); up.connect(path); up.sendall(sent); up.shutdown(socket.SHUT_WR)\n"
            "    with up.makefile('rb') as answer: sys.stdout.buffer.write(answer.read())\n"
        )
        assert ssh.out(*forwards, box, f'python3 -c "{ask}"', stdin=data) == data[::-1] * 2
        gone = "! test -e up.sock -o -e /tmp/up.sock"
        until_sync(lambda: ssh.run(box, gone).returncode == 0, TIMEOUT_S, "both have gone")
        master = ("-o", f"ControlPath={tmp_path}/c")
        with ssh.running("-M", *master, "-N", *forwards, box):
            both = "test -S up.sock -a -S /tmp/up.sock"
            until_sync(lambda: ssh.run(box, both).returncode == 0, TIMEOUT_S, "both listen")
            assert ssh.out(box, "stat -c '%a %U %F' up.sock /tmp/up.sock") == b"600 user socket\n" * 2
            for taken in ("/tmp/up.sock", "/tmp/page", "/etc/up.sock", "/nowhere/up.sock", "/tmp/" + "x" * 108):
                words = ("-o", "ExitOnForwardFailure=yes", "-N", "-R", f"{taken}:{here}")
                assert ssh.run(*words, box).returncode == 255, taken
            assert ssh.run(*master, "-O", "cancel", *forwards[:2], box).returncode == 0
            until_sync(lambda: ssh.run(box, "test -e /tmp/up.sock").returncode == 1, TIMEOUT_S, "the first has gone")
            assert ssh.run(box, "test -S up.sock").returncode == 0
        until_sync(lambda: ssh.run(box, gone).returncode == 0, TIMEOUT_S, "both have gone again")


@contextmanager
def _reversing(path: Path) -> Iterator[int]:
    """What says backwards all that it was told, on a unix socket and on a port."""

    class Reverse(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.read()[::-1])

    with (
        socketserver.ThreadingUnixStreamServer(str(path), Reverse) as unix,
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Reverse) as tcp,
    ):
        for each in (unix, tcp):
            threading.Thread(target=each.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield tcp.server_address[1]
        finally:
            for each in (unix, tcp):
                each.shutdown()


INSTALLS = """set -e
mkdir -p ~/.editor-server/bin
cat >~/.editor-server/bin/serve.py <<'end'
import os, socket, threading
def echo(connection):
    connection.sendall(b"hello ")
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.close()
for server in (socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", 0))):
    if server.family == socket.AF_UNIX:
        server.bind(os.path.expanduser("~/.editor-server/socket"))
        server.listen()
    else:
        print("listening on", server.getsockname()[1], flush=True)
    def serve(server=server):
        while True:
            threading.Thread(target=echo, args=(server.accept()[0],)).start()
    threading.Thread(target=serve).start()
end
nohup python3 ~/.editor-server/bin/serve.py >~/.editor-server/log 2>&1 </dev/null &
until grep -q listening ~/.editor-server/log; do read -t 0.05 <> <(:) || :; done
cat ~/.editor-server/log
"""


def test_an_editor_installs_its_server_and_talks_to_it(ssh: Client, box: str, tmp_path: Path) -> None:
    """As Remote-SSH does: a script for `bash` without a terminal, then its server's port, or its unix socket."""
    said = ssh.out("-T", box, "bash", stdin=INSTALLS.encode()).decode()
    port = said.split()[-1]
    data = os.urandom(500_000)
    assert ssh.out("-W", f"localhost:{port}", box, stdin=data) == b"hello " + data
    here, refused, why = tmp_path / "here.sock", tmp_path / "refused.sock", tmp_path / "why"
    words = ("-L", f"{here}:.editor-server/socket", "-L", f"{refused}:/etc/passwd", "-o", "LogLevel=INFO")
    with ssh.running("-N", "-E", str(why), *words, box):
        until_sync(here.exists, TIMEOUT_S, "it listens")
        for _ in range(2):
            assert _through(here, data) == b"hello " + data
        assert _through(refused, b"x") == b""
        until_sync(lambda: "Permission denied" in why.read_text(), TIMEOUT_S, "why is said")


def _through(path: Path, data: bytes) -> bytes:
    """What a unix socket says to `data`, to its end."""
    said = b""
    with socket.socket(socket.AF_UNIX) as connection, suppress(ConnectionError, BrokenPipeError):
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(path))
        sender = threading.Thread(target=_send, args=(connection, data))
        sender.start()
        while more := connection.recv(65536):
            said += more
        sender.join(TIMEOUT_S)
    return said


def _send(connection: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


# --- strangers ---


async def _greeted(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(OSError):
        if await reader.readline():
            return reader, writer
    writer.close()
    return None


async def test_who_does_not_log_in_is_cut(ssh: Client, box: str) -> None:
    """One address may wait before the door a few times only; those inside notice nothing."""
    waiting = [await _greeted(ssh.port) for _ in range(config.SSH_LOGINS_PER_ADDRESS + 5)]
    greeted = [each for each in waiting if each is not None]
    try:
        assert len(greeted) == config.SSH_LOGINS_PER_ADDRESS
    finally:
        for _, writer in greeted:
            writer.close()
            await writer.wait_closed()
    done = await asyncio.to_thread(until_sync, lambda: ssh.run(box, "echo in").stdout, TIMEOUT_S)
    assert done == b"in\n"


async def test_garbage_costs_one_connection(ssh: Client, box: str) -> None:
    """Before the login: any bytes, no end, too long a packet."""
    for said in (
        os.urandom(4096),
        b"SSH-2.0-x\r\n" + os.urandom(4096),
        b"SSH-2.0-x\r\n" + b"\xff" * 64,
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", ssh.port)
        writer.write(said)
        with suppress(OSError):
            async with asyncio.timeout(TIMEOUT_S):
                await reader.read()
        writer.close()
    assert await asyncio.to_thread(ssh.out, box, "echo in") == b"in\n"
