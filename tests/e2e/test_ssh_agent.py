"""ssh -A: programs in a sandbox use the client's agent, as long as it is there. And what viewers may not."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from sandpty import config
from tests.e2e.ssh_client import TIMEOUT_S, Client, client_of
from tests.e2e.test_ssh import person, with_words
from tests.server_fixture import RunningServer
from tests.waiting import until_sync

# What `ssh-add -L` says, for a sandbox without one (`base`): names of keys, or why there are none.
KEYS = """
import os, socket, struct
agent = socket.socket(socket.AF_UNIX)
def take(size):
    data = b""
    while len(data) < size and (more := agent.recv(size - len(data))):
        data += more
    return data
try:
    agent.connect(os.environ["SSH_AUTH_SOCK"])
    agent.sendall(struct.pack(">IB", 1, 11))
    answer = take(*struct.unpack(">I", take(4)))
    at = 5
    for _ in range(struct.unpack(">I", answer[1:5])[0]):
        for what in ("key", "name"):
            size = struct.unpack(">I", answer[at:at + 4])[0]
            text = answer[at + 4:at + 4 + size]
            at += 4 + size
        print("has", text.decode())
except (OSError, KeyError, struct.error) as error:
    print("none:", type(error).__name__)
"""


@pytest.fixture(scope="module")
def ssh(ssh_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """OpenSSH for the key of this machine."""
    return client_of(ssh_server, tmp_path_factory.mktemp("ssh"))


@pytest.fixture(scope="module")
def box(ssh: Client) -> Iterator[str]:
    """A sandbox where a program asks what keys there are."""
    made = ssh.cli("create").stdout.strip()
    ssh.out(f"{made}@sandpty", "cat >keys.py", stdin=KEYS.encode())
    yield f"{made}@sandpty"
    ssh.cli("kill", made)


@contextmanager
def agent(directory: Path, name: str) -> Iterator[Path]:
    """An ssh-agent that holds one key of that name."""
    path = directory / f"{name}.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        until_sync(path.exists, TIMEOUT_S, "the agent listens")
        key = directory / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key], check=True)
        env = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", "-q", str(key)], env=env, check=True, capture_output=True)
        yield path
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


@pytest.fixture(scope="module")
def mine(ssh: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Somebody whose agent has one key, `mine`."""
    with agent(tmp_path_factory.mktemp("a"), "mine") as path:
        yield replace(ssh, agent=path)


def left(ssh: Client, box: str) -> list[bytes]:
    """Sockets in the directory of agents."""
    return ssh.out(box, "ls ~/.ssh/agent").split()


def test_a_sandbox_uses_the_clients_agent_while_the_client_is_there(ssh: Client, box: str, mine: Client) -> None:
    """The socket is the user's alone, in a directory that is, too; with the connection it goes."""
    look = 'python3 keys.py; stat -c "%a %U %F" "$SSH_AUTH_SOCK" "${SSH_AUTH_SOCK%/*}"; echo $SSH_AUTH_SOCK'
    said = mine.out("-A", box, look).decode().splitlines()
    assert said[:3] == ["has mine", "600 user socket", "700 user directory"]
    assert said[3].startswith("/home/user/.ssh/agent/")
    assert ssh.out(box, "python3 keys.py") == b"none: KeyError\n"
    until_sync(lambda: not left(ssh, box), TIMEOUT_S, "nothing is left")
    root = mine.out("-A", with_words(box, "user=root"), "python3 /home/user/keys.py; echo $SSH_AUTH_SOCK")
    assert root.startswith(b"has mine\n/root/.ssh/agent/")
    ssh.out(box, "chmod 755 ~/.ssh/agent")
    assert mine.out("-A", box, "python3 keys.py") == b"none: KeyError\n"
    ssh.out(box, "chmod 700 ~/.ssh/agent")


def test_a_terminal_that_is_come_back_to_finds_the_agent_of_who_comes(
    ssh: Client, box: str, mine: Client, tmp_path: Path
) -> None:
    """Alone it has none, and no socket; come back to with an agent it has that one, where it always was."""
    with person(mine, "-A", with_words(box, "new")) as somebody:
        somebody.type("python3 keys.py\n")
        somebody.until("has mine")
    until_sync(lambda: not left(ssh, box), TIMEOUT_S, "the socket has gone with its connection")
    with person(ssh, box) as somebody:
        somebody.type("python3 keys.py; echo $((6 * 7))done\n")
        somebody.until("none: FileNotFoundError\\r?\\n42done")
    with agent(tmp_path, "another") as other, person(replace(ssh, agent=other), "-A", box) as somebody:
        somebody.type("python3 keys.py; exit\n")
        somebody.until("has another")
        assert somebody.until_end() == 0
    until_sync(lambda: not left(ssh, box), TIMEOUT_S, "and gone again")


def test_an_agent_is_asked_by_few_at_a_time_and_for_little(ssh: Client, box: str, tmp_path: Path) -> None:
    """Who asks for more is cut; the others go on."""
    path = tmp_path / "echo.sock"
    flood = f"""
import os, socket
def connected():
    made = socket.socket(socket.AF_UNIX)
    made.settimeout({TIMEOUT_S})
    made.connect(os.environ["SSH_AUTH_SOCK"])
    return made
def answers(asked):
    try:
        asked.sendall(b"x")
        return asked.recv(1) == b"x"
    except OSError:
        return False
many = [connected() for _ in range({config.SSH_AGENT_CHANNELS_MAX})]
print(all(answers(each) for each in many), answers(connected()))
many.pop().close()
while not answers(last := connected()):
    pass
came = 0
try:
    while came <= {config.SSH_AGENT_BYTES}:
        last.sendall(bytes(10000))
        sent = 10000
        while sent and (more := len(last.recv(sent))):
            sent -= more
            came += more
        if sent:
            break
except OSError:
    pass
print(came <= {config.SSH_AGENT_BYTES}, answers(many[0]))
"""
    with _echoing(path):
        said = replace(ssh, agent=path).out("-A", box, "python3 -", stdin=flood.encode())
    assert said == b"True False\nTrue True\n"


@contextmanager
def _echoing(path: Path) -> Iterator[None]:
    """Something that says what it hears on a unix socket."""

    def echo(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            while data := connection.recv(65536):
                connection.sendall(data)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=echo, args=(listening.accept()[0],), daemon=True).start()

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(64)
        threading.Thread(target=serve, daemon=True).start()
        yield


def test_who_may_only_look_does_nothing_else(ssh: Client, box: str, mine: Client, tmp_path: Path) -> None:
    """Forwarding of any kind, commands, an agent, files: refused in words; what is there is seen."""
    file = tmp_path / "file"
    file.write_text("mine")
    viewer = with_words(box, "ro")
    info = ("-o", "LogLevel=INFO")
    with person(ssh, with_words(box, "new")) as owner:
        owner.type("echo $((6 * 7))here; cat\n")
        owner.until("42here")
        assert b"+ro may only look" in ssh.run(*info, "-W", "localhost:1", viewer).stderr
        here, said = tmp_path / "here.sock", tmp_path / "said"
        with ssh.running(*info, "-E", str(said), "-N", "-L", f"{here}:/var/run/some.sock", viewer):
            until_sync(here.exists, TIMEOUT_S, "ssh listens here")
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(here))
                connection.settimeout(TIMEOUT_S)
                assert connection.recv(1) == b""
            until_sync(lambda: "+ro may only look" in said.read_text(), TIMEOUT_S, "why is said")
        for listens in ("0:localhost:1", f"/tmp/viewer.sock:{here}"):
            refused = ssh.run(*info, "-N", "-o", "ExitOnForwardFailure=yes", "-R", listens, viewer)
            assert refused.returncode == 255
            assert b"remote port forwarding failed" in refused.stderr.lower().replace(b"path", b"port")
        done = ssh.run(viewer, "touch made-by-a-viewer")
        assert (done.returncode, done.stderr.count(b"+ro may only look")) == (77, 1)
        for option in ("-s", "-O"):
            assert ssh.run(option, str(file), f"{viewer}:put", program="scp").returncode != 0
            assert ssh.run(option, f"{viewer}:keys.py", str(tmp_path / "got"), program="scp").returncode == 0
        with person(mine, "-A", viewer) as watching:
            watching.until("42here")
            watching.type("typed-by-a-viewer\n")
            owner.type("typed-by-its-owner\n")
            watching.until("owner\r\ntyped-by-its-owner")
            assert b"viewer" not in owner.seen
            assert ssh.out(box, "ls ~ ~/.ssh/agent/* 2>/dev/null; true") == b"/home/user:\nkeys.py\n"
        owner.type("\x04exit\n")
        assert owner.until_end() == 0
