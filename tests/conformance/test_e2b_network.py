"""E2B's unmodified SDKs and network policies, against a real server between sandboxes and a fake internet."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.component.network_policy_world import World, world_before_a_supervisor
from tests.conformance.conftest import VENDOR_JS
from tests.server_fixture import sandpty, templates_dir
from tests.waiting import until

HERE = Path(__file__).parent


@dataclass
class Served:
    """A server in the world's host, and the environment that its clients there need."""

    world: World
    env: list[str]

    async def run(self, *argv: str) -> str:
        """What a program says beside the server; it must end well."""
        command = ["nsenter", f"--net=/proc/{self.world.host_pid}/ns/net", "env", *self.env, *argv]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=False, timeout=110, cwd=HERE.parents[1]
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def _url(data: Path) -> str:
    """Where the server is; "" before it says so."""
    try:
        return str(json.loads((data / "server.json").read_text())["url"])
    except (OSError, ValueError):
        return ""


def _start(command: list[str], log_path: Path) -> subprocess.Popen[bytes]:
    with log_path.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served() -> AsyncIterator[Served]:
    """One server for this file."""
    async with world_before_a_supervisor() as world:
        data = world.host.path
        command = ["nsenter", f"--net=/proc/{world.host_pid}/ns/net", "env", *world.env]
        command += sandpty("serve", "--data-dir", str(data), "--port", "0", "--templates-dir", templates_dir())
        server = _start(command, data / "test-server.log")
        try:
            await until(lambda: server.poll() is not None or _url(data), 60)
            assert server.poll() is None, (data / "test-server.log").read_text()
            url, key = _url(data), (data / "api_key").read_text().strip()
            env = {"E2B_API_KEY": key, "E2B_API_URL": url, "E2B_SANDBOX_URL": url}
            env |= {"HYPERBROWSER_API_KEY": key, "HYPERBROWSER_BASE_URL": url.replace("127.0.0.1", "localhost")}
            yield Served(world, [f"{name}={value}" for name, value in env.items()])
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


@pytest.fixture(scope="module", autouse=True)
def sdk_env() -> dict[str, str]:
    """Not the server of the other files: the SDKs run as programs in the world's host."""
    return {}


async def test_the_python_sdk_creates_and_updates_policies(served: Served) -> None:
    """Addresses, domains, updates, refusals, forks; synchronous and asynchronous (network_checks.py)."""
    assert "done" in await served.run(sys.executable, "-m", "tests.conformance.network_checks")


async def test_the_javascript_sdk_creates_and_updates_policies(served: Served) -> None:
    """The same in brief (js/network.mjs)."""
    with tempfile.TemporaryDirectory(prefix="checks-", dir=VENDOR_JS) as directory:
        script = Path(directory) / "network.mjs"
        script.write_bytes((HERE / "js" / "network.mjs").read_bytes())
        assert "done" in await served.run("node", str(script))


async def test_the_command_line_creates_with_a_policy(served: Served) -> None:
    """`--allow-out` and `--deny-out`, shown as JSON; what means nothing is one line."""
    options = ["--data-dir", str(served.world.host.path)]
    made = await served.run(
        *sandpty(
            "create", *options, "--json", "--no-internet", "--allow-out", "good.test", "--allow-out", "192.0.2.0/24"
        )
    )
    sandbox = json.loads(made)
    assert sandbox["network"]["allow_out"] == ["good.test", "192.0.2.0/24"]
    assert sandbox["internet"] is False
    await served.run(*sandpty("kill", *options, sandbox["id"]))
    refused = " ".join(sandpty("create", *options, "--deny-out", "good.test"))
    said = await served.run("sh", "-c", f"{refused} 2>&1; echo status $?")
    assert "invalid denied CIDR good.test" in said
    assert "status 2" in said
