"""Services in sandboxes, reached over https by the names that E2B's unmodified SDKs give: Python and JavaScript."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.conftest import ROOT, VENDOR_JS
from tests.conformance.port_checks import CHECKS
from tests.server_fixture import RunningServer, running_server

DOMAIN = "sandboxes.test"
JS_CHECKS = Path(__file__).parent / "js" / "ports.mjs"
JS_NAMES = re.findall(r"^  async '([^']+)'", JS_CHECKS.read_text(encoding="utf-8"), re.M)
# What happens in a mount namespace stays there: names of this test are in nobody else's /etc/hosts.
IN_NAMESPACE = 'mount --bind "$HOSTS_FILE" /etc/hosts && exec "$@"'


@dataclass
class World:
    """A server with TLS, and a place for files that its clients need."""

    server: RunningServer
    directory: Path

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """A program that trusts the local authority and finds names in a file of its own."""
        hosts = self.directory / "hosts"
        hosts.write_text("127.0.0.1 localhost\n", encoding="ascii")
        authority = self.server.data_dir / "ca" / DOMAIN / "ca.pem"
        inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        env = {
            **inherited,
            **self.server.env,
            "HOSTS_FILE": str(hosts),
            "PORTS_DOMAIN": json.loads((self.server.data_dir / "server.json").read_text())["domain"],
            "SSL_CERT_FILE": str(authority),
            "NODE_EXTRA_CA_CERTS": str(authority),
            "PYTHONPATH": str(ROOT),
        }
        for name in ("E2B_DEBUG", "E2B_DOMAIN", "E2B_ACCESS_TOKEN"):
            env.pop(name, None)
        return subprocess.run(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", IN_NAMESPACE, "sh", *argv],
            env=env,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """`sandpty serve --domain ... --tls-port ...`, with its local authority."""
    directory = Path(tempfile.mkdtemp(prefix="ports-", dir=VENDOR_JS))
    try:
        with running_server("--domain", DOMAIN, "--tls-port", "0") as server:
            yield World(server, directory)
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("name", CHECKS)
def test_python(world: World, name: str) -> None:
    """The check does not raise."""
    done = world.run(sys.executable, "-m", "tests.conformance.port_checks", name)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", JS_NAMES)
def test_javascript(world: World, name: str) -> None:
    """The check does not throw."""
    script = world.directory / JS_CHECKS.name  # below the SDKs, because Node looks for packages upwards from the script
    script.write_bytes(JS_CHECKS.read_bytes())
    done = world.run("node", str(script), name)
    assert done.returncode == 0, done.stdout + done.stderr
