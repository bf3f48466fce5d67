"""A guest that lays traps where clients' files go: nothing hangs, nothing of the host is touched, nobody else waits."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from e2b import Sandbox

from tests.conformance.conftest import Envd
from tests.server_fixture import RunningServer

OCTETS = {"Content-Type": "application/octet-stream"}


class Trapped(Envd):
    """A sandbox whose root sets traps."""

    def __init__(self, url: str, sandbox: Sandbox) -> None:
        super().__init__(url, sandbox)
        self.sandbox = sandbox
        self.client = httpx.Client(base_url=url, headers=self.headers, timeout=30)

    def root(self, script: str) -> str:
        return str(self.sandbox.commands.run(script, user="root").stdout)

    def get(self, path: str) -> httpx.Response:
        return self.client.get("/files", params={"path": path})

    def put(self, path: str, data: bytes = b"x") -> httpx.Response:
        return self.client.post("/files", params={"path": path}, content=data, headers=OCTETS)

    def call(self, method: str, **message: object) -> httpx.Response:
        return self.client.post(f"/filesystem.Filesystem/{method}", json=message)


@pytest.fixture(scope="module")
def guest(server: RunningServer, sdk_env: dict[str, str]) -> Iterator[Trapped]:
    """One sandbox for this file."""
    sandbox = Sandbox.create(timeout=600)
    trapped = Trapped(server.url, sandbox)
    yield trapped
    trapped.client.close()
    sandbox.kill()


@pytest.mark.parametrize(
    "make", ["mkfifo /tmp/trap", "python3 -c 'import socket; socket.socket(1).bind(\"/tmp/trap\")'"]
)
def test_what_is_no_file_is_refused_at_once(guest: Trapped, make: str) -> None:
    """Nobody writes to the FIFO: neither reading nor writing waits for that."""
    guest.root(f"rm -rf /tmp/trap; {make}")
    assert guest.get("/tmp/trap").status_code == 400
    assert guest.put("/tmp/trap").status_code == 400
    entry = guest.call("Stat", path="/tmp/trap").json()["entry"]
    assert "type" not in entry or entry["type"] == "FILE_TYPE_UNSPECIFIED"
    assert guest.call("Remove", path="/tmp/trap").status_code == 200


@pytest.mark.parametrize("device", ["zero", "urandom", "tty", "ptmx", "full", "stdin"])
def test_devices_are_not_downloaded(guest: Trapped, device: str) -> None:
    """They have no end."""
    assert guest.get(f"/dev/{device}").status_code in (400, 403, 404)


def test_a_full_device_is_a_full_disk(guest: Trapped) -> None:
    """507 in the middle of an upload, whatever is still to come."""
    answer = guest.put("/dev/overfull", b"x" * (64 << 20))
    assert answer.status_code == 507
    assert answer.json() == {"code": 507, "message": "not enough disk space available"}
    guest.root("rm /dev/overfull")


def test_every_path_stays_in_the_sandbox(guest: Trapped, tmp_path: Path) -> None:
    """`..`, absolute links, links in /proc: what they lead to is the guest's."""
    secret = tmp_path / "secret"
    secret.write_text(secrets.token_hex())
    os.chmod(tmp_path, 0o755)
    guest.root(f"ln -sfn / /tmp/root; ln -sfn {secret} /tmp/out; ln -sfn ../../../../../../../..{secret} /tmp/out2")
    for path in (
        str(secret),
        "/" + "../" * 40 + str(secret),
        f"/tmp/root/../../..{secret}",
        "/tmp/out",
        "/tmp/out2",
        f"/proc/1/root{secret}",
        f"/proc/self/root{secret}",
        f"/proc/1/cwd/../../../..{secret}",
        f"~/../../../..{secret}",
    ):
        assert secret.read_text() not in guest.get(path).text, path
        guest.put(path, b"overwritten")
        guest.call("Remove", path=path)
        assert secret.read_text() != "overwritten"
    assert guest.get("/tmp/root/etc/passwd").text == guest.root("cat /etc/passwd")
    assert guest.get("/proc/1/root/etc/passwd").status_code in (200, 403, 404)


def test_loops_of_symlinks_are_errors(guest: Trapped) -> None:
    """For every call."""
    guest.root("cd /tmp; ln -sfn loop1 loop2; ln -sfn loop2 loop1; mkdir -p cycle; ln -sfn ../cycle cycle/again")
    assert guest.get("/tmp/loop1").status_code == 400
    assert guest.put("/tmp/loop1").status_code == 400
    assert guest.call("ListDir", path="/tmp/loop1").json()["code"] == "failed_precondition"
    entry = guest.call("Stat", path="/tmp/loop1").json()["entry"]
    assert entry["symlinkTarget"] == "/tmp/loop1"
    assert [item["name"] for item in guest.call("ListDir", path="/tmp/cycle", depth=50).json()["entries"]] == ["again"]


def test_a_directory_swapped_for_a_symlink_all_the_time(guest: Trapped) -> None:
    """Reading, writing, listing and removing beside it: each answers, and what the link leads to is never removed."""
    guest.root("mkdir -p /tmp/victim /tmp/race/real; echo kept > /tmp/victim/file; ln -s /tmp/victim /tmp/race/link")
    script = (
        "import os, ctypes\n"
        "swap = ctypes.CDLL(None).renameat2\n"
        "while True: swap(-100, b'/tmp/race/real', -100, b'/tmp/race/link', 2)\n"
    )
    guest.sandbox.files.write("/tmp/swap.py", script)
    swapper = guest.sandbox.commands.run("python3 /tmp/swap.py", background=True, timeout=0)
    try:
        ends_at = time.monotonic() + 2
        while time.monotonic() < ends_at:
            for name in ("real", "link"):
                assert guest.put(f"/tmp/race/{name}/new/file").status_code in (200, 400, 404, 500)
                assert guest.get(f"/tmp/race/{name}/file").status_code in (200, 404)
                assert guest.call("ListDir", path="/tmp/race", depth=5).status_code == 200
                assert guest.call("Remove", path=f"/tmp/race/{name}/new").status_code in (200, 400, 409, 500)
    finally:
        swapper.kill()
    guest.call("Remove", path="/tmp/race")
    assert guest.root("cat /tmp/victim/file") == "kept\n"


def test_a_tree_too_deep_is_walked_or_refused(guest: Trapped) -> None:
    """Deeper than any path: listed as far as paths go, and removed whole."""
    script = "import os\nos.chdir('/tmp')\nfor _ in range(3000):\n os.mkdir('d'); os.chdir('d')\n"
    guest.sandbox.files.write("/tmp/deep.py", script)
    guest.root("python3 /tmp/deep.py")
    assert guest.call("ListDir", path="/tmp/d", depth=100_000).status_code in (200, 400, 429)
    assert guest.call("Remove", path="/tmp/d").status_code == 200
    assert guest.call("Stat", path="/tmp/d").status_code == 404


def test_attributes_and_times_may_be_anything(guest: Trapped) -> None:
    """Bytes that are no text, dates before Christ and far from now: entries are JSON all the same."""
    guest.root(
        'cd /tmp; rm -rf odd; mkdir odd; cd odd; touch f; python3 -c "import os; '
        "os.setxattr('f', 'user.e2b.k', b'\\xff\\x00'); os.setxattr('f', 'user.e2b.', b'x') if 0 else None; "
        "os.utime('f', ns=(0, -2**62)); open(b'\\xff\\n', 'w'); os.utime(b'\\xff\\n', (0, 2**33)); "
        "os.chown('f', 54321, 54322)\""
    )
    entries = guest.call("ListDir", path="/tmp/odd").json()["entries"]
    assert len(entries) == 2
    entry = next(entry for entry in entries if entry["name"] == "f")
    assert (entry["owner"], entry["group"]) == ("54321", "54322")
    assert guest.get("/tmp/odd/f").status_code == 200
    assert guest.sandbox.files.list("/tmp/odd")[0].modified_time is not None


def test_a_client_that_does_not_read_holds_nobody_up(guest: Trapped) -> None:
    """Downloads nobody reads, as many as a user may leave behind."""
    guest.root("truncate -s 1G /tmp/stalled")
    streams = []
    try:
        for _ in range(12):
            stream = guest.client.stream("GET", "/files", params={"path": "/tmp/stalled"})
            stream.__enter__()
            streams.append(stream)
        assert guest.put("/tmp/beside").status_code == 200
        assert guest.get("/tmp/beside").content == b"x"
    finally:
        for stream in streams:
            stream.__exit__(None, None, None)


def test_a_file_that_shrinks_is_not_a_good_answer(guest: Trapped) -> None:
    """Cut off, rather than filled up or short without a word."""
    guest.root("head -c 500M /dev/zero > /tmp/shrinks")
    headers = {"Accept-Encoding": "identity"}
    with guest.client.stream("GET", "/files", params={"path": "/tmp/shrinks"}, headers=headers) as stream:
        pieces = stream.iter_raw()
        assert next(pieces)
        guest.root("truncate -s 1M /tmp/shrinks")
        with pytest.raises(httpx.TransportError):
            sum(map(len, pieces))
    assert guest.get("/tmp/beside").status_code in (200, 404)


def test_root_is_not_removed_by_accident(guest: Trapped) -> None:
    """`..` and `.` are not names to remove; the sandbox is still there."""
    for path in ("/tmp/..", "/tmp/.", "/"):
        guest.call("Move", source=path, destination="/tmp/away")
    assert guest.get("/etc/passwd").status_code == 200
