"""What the vendors' unmodified SDKs need: the environment that `sandpty env` prints, and sandboxes."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from e2b import AsyncSandbox, Sandbox
from hyperbrowser import AsyncHyperbrowser, Hyperbrowser
from hyperbrowser.models import CreateSandboxParams

from tests.server_fixture import RunningServer

ROOT = Path(__file__).parents[2]
VENDOR_JS = ROOT / ".cache" / "vendor-js"


@pytest.fixture(scope="module", autouse=True)
def sdk_env(server: RunningServer) -> Iterator[dict[str, str]]:
    """Points the SDKs of this process, and those it starts, at the test's server."""
    before = dict(os.environ)
    for name in ("E2B_DEBUG", "E2B_DOMAIN", "E2B_ACCESS_TOKEN", "NOVITA_DEBUG", "NOVITA_DOMAIN", "NOVITA_ACCESS_TOKEN"):
        os.environ.pop(name, None)
    os.environ.update(server.env)
    yield server.env
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def forgotten_streams() -> Iterator[None]:
    """Streams that a test (or an SDK) forgot end between modules, never in the midst of a call.

    httpcore 1.0 ends a forgotten stream under its pool's lock, wherever Python's collector finds it: also within a call
    that has the lock, which then waits for itself for ever.
    """
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox of its own for one test, through the synchronous SDK."""
    created = Sandbox.create(timeout=120)
    yield created
    created.kill()


@pytest_asyncio.fixture
async def asandbox() -> AsyncIterator[AsyncSandbox]:
    """The same through the asynchronous SDK."""
    created = await AsyncSandbox.create(timeout=120)
    yield created
    await created.kill()


class Envd:
    """A sandbox's own API, spoken by hand."""

    def __init__(self, url: str, sandbox: Sandbox) -> None:
        info = httpx.get(
            f"{url}/sandboxes/{sandbox.sandbox_id}", headers={"X-API-Key": os.environ["E2B_API_KEY"]}
        ).json()
        self.url = url
        self.token: str = info["envdAccessToken"]
        self.headers = {
            "E2b-Sandbox-Id": sandbox.sandbox_id,
            "E2b-Sandbox-Port": "49983",
            "X-Access-Token": self.token,
            "Content-Type": "application/json",
            "Connect-Protocol-Version": "1",
        }

    def unary(self, method: str, body: object, **headers: str) -> httpx.Response:
        """One call with a JSON message."""
        return httpx.post(f"{self.url}/{method}", json=body, headers={**self.headers, **headers}, timeout=20)

    def raw(self, method: str, body: bytes, **headers: str) -> httpx.Response:
        """One call with any body."""
        return httpx.post(f"{self.url}/{method}", content=body, headers={**self.headers, **headers}, timeout=20)


@pytest.fixture
def envd(server: RunningServer, sandbox: Sandbox) -> Envd:
    """Raw access to the API of the test's sandbox."""
    return Envd(server.url, sandbox)


@pytest.fixture
def key(server: RunningServer) -> dict[str, str]:
    """The header of the control plane."""
    return {"X-API-Key": server.api_key}


@pytest.fixture(scope="module")
def hyperbrowser(sdk_env: dict[str, str]) -> Iterator[Hyperbrowser]:
    """Hyperbrowser's synchronous client, configured by its environment alone."""
    client = Hyperbrowser()
    yield client
    client.close()


@pytest_asyncio.fixture
async def ahyperbrowser(sdk_env: dict[str, str]) -> AsyncIterator[AsyncHyperbrowser]:
    """The asynchronous one."""
    client = AsyncHyperbrowser()
    yield client
    await client.close()


@pytest.fixture(scope="module")
def hyperbrowser_sandbox_id(hyperbrowser: Hyperbrowser) -> Iterator[str]:
    """One sandbox for the tests of a module."""
    sandbox = hyperbrowser.sandboxes.create(CreateSandboxParams(image_name="base", timeout_minutes=20))
    yield sandbox.id
    hyperbrowser.sandboxes.stop(sandbox.id)
