"""SSH as E2B documents it: an OpenSSH server in the sandbox, behind websocat on port 8081, through the port proxy.

Debian 12 has no websocat (`websocat.py` stands in for it), and sandboxes here install nothing while tests run, so the
OpenSSH server is this machine's own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b import Sandbox, Template, wait_for_port

from tests.server_fixture import RunningServer

TIMEOUT_S = 60.0
# As the document has it, but that a sandbox has no init which would have started sshd.
SSHD = "sudo env LD_LIBRARY_PATH=/opt/sshd/lib /opt/sshd/sshd -f /opt/sshd/sshd_config"
WEBSOCAT = "sudo websocat -b --exit-on-eof ws-l:0.0.0.0:8081 tcp:127.0.0.1:22"
SSHD_CONFIG = """Port 22
ListenAddress 127.0.0.1
HostKey /opt/sshd/host_key
AuthorizedKeysFile /opt/sshd/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PidFile none
Subsystem sftp internal-sftp
"""


def make_sshd(directory: Path, key: Path) -> None:
    """This machine's sshd with the libraries it needs, a host key, and `key` as the one that may log in."""
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    assert program is not None
    (directory / "lib").mkdir(parents=True)
    shutil.copy2(program, directory / "sshd")
    needed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"=> (/\S+)", needed):
        if not re.search(r"/(libc|ld-linux[^/]*)\.so", library):
            shutil.copy2(library, directory / "lib")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / "host_key")], check=True)
    (directory / "authorized_keys").write_bytes(key.with_suffix(".pub").read_bytes())
    (directory / "sshd_config").write_text(SSHD_CONFIG)


@pytest.fixture
def box(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Sandbox, Path, dict[str, str]]]:
    """A sandbox from the documented template, a key that may log in, and an environment that has websocat."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    make_sshd(tmp_path / "sshd", key)
    websocat = tmp_path / "bin" / "websocat"
    websocat.parent.mkdir()
    source = (Path(__file__).parent / "websocat.py").read_text()
    websocat.write_text(source.replace("/usr/bin/env python3", sys.executable, 1))
    websocat.chmod(0o755)
    (tmp_path / "websocat").write_text(source)
    template = (
        Template(file_context_path=str(tmp_path))
        .from_template("base")
        .copy("sshd", "/opt/sshd", user="root")
        .copy("websocat", "/usr/local/bin/websocat", user="root")
        .run_cmd(
            [
                "chmod a+x /usr/local/bin/websocat && chmod 600 /opt/sshd/host_key",
                "useradd --system --home-dir /run/sshd --shell /usr/sbin/nologin sshd",
            ],
            user="root",
        )
        .set_start_cmd(f"sudo mkdir -p /run/sshd && {SSHD} && {WEBSOCAT}", wait_for_port(8081))
    )
    Template.build(template, alias="ssh-ready", cpu_count=2, memory_mb=1024)
    made = Sandbox.create("ssh-ready", timeout=120)
    try:
        yield made, key, {"PATH": f"{websocat.parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    finally:
        made.kill()


def test_the_documented_way_in_works(
    server: RunningServer, box: tuple[Sandbox, Path, dict[str, str]], tmp_path: Path
) -> None:
    """Its template, its start command gated by its port, its ssh command; files as well."""
    sandbox, key, env = box
    proxy = f"ProxyCommand=websocat --binary -B 65536 - ws://8081-%h.localhost:{server.port}"
    options = ["-F", "none", "-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    options += ["-o", "LogLevel=ERROR", "-o", proxy]
    said = subprocess.run(
        ["ssh", *options, f"user@{sandbox.sandbox_id}", "id -un; hostname; exit 7"],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert (said.stdout.splitlines()[:1], said.returncode) == (["user"], 7), said.stderr
    (tmp_path / "big").write_bytes(bytes(range(256)) * 4096)
    subprocess.run(
        ["scp", *options, "big", f"user@{sandbox.sandbox_id}:/tmp/big"], env=env, check=True, timeout=TIMEOUT_S
    )
    assert bytes(sandbox.files.read("/tmp/big", format="bytes")) == bytes(range(256)) * 4096
