"""Every public method of Hyperbrowser's SDKs is called by a test: a method that a new version adds fails here."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
from pathlib import Path

import pytest
from hyperbrowser.client.managers.async_manager import sandbox as async_sandbox
from hyperbrowser.client.managers.async_manager.sandboxes import sandbox_files as async_files
from hyperbrowser.client.managers.async_manager.sandboxes import sandbox_processes as async_processes
from hyperbrowser.client.managers.async_manager.sandboxes import sandbox_terminal as async_terminal
from hyperbrowser.client.managers.sync_manager import sandbox as sync_sandbox
from hyperbrowser.client.managers.sync_manager import secret, vault, volume
from hyperbrowser.client.managers.sync_manager.sandboxes import sandbox_files as sync_files
from hyperbrowser.client.managers.sync_manager.sandboxes import sandbox_processes as sync_processes
from hyperbrowser.client.managers.sync_manager.sandboxes import sandbox_terminal as sync_terminal

from tests.conformance.conftest import VENDOR_JS

HERE = Path(__file__).parent
TESTS = [path for path in sorted(HERE.glob("test_hyperbrowser_*.py")) if path != Path(__file__)]
PYTHON = "\n".join(path.read_text() for path in (*TESTS, HERE / "test_volumes.py"))
NODE = (HERE / "js" / "hyperbrowser.mjs").read_text()
NODE_VOLUMES = (HERE / "js" / "volumes.mjs").read_text()
# Not served, and their wire is covered: all of them end in requests to /images/builds, which answer 501.
BUILDS = {
    "build_image_from_docker_image",
    "build_image_from_dockerfile",
    "cancel_image_build",
    "complete_image_build",
    "create_image_build",
    "get_image_build",
    "get_or_build_image",
    "list_image_builds",
    "reuse_docker_image",
    "start_secret_process",
    "wait_for_image_build",
}
CLASSES = re.compile(r"(Sandbox|Volume|Secret|Vault)\w*(Manager|Handle|Api|Connection)$")
MANAGERS = {"volumes": volume.VolumeManager, "secrets": secret.SecretManager, "vaults": vault.VaultManager}
LIST_NODE = """
const found = new Set()
const walk = (path) => { for (const value of Object.values(require(path))) if (typeof value === 'function')
  for (const name of Object.getOwnPropertyNames(value.prototype ?? {})) found.add(name) }
const root = require('path').dirname(require.resolve('@hyperbrowser/sdk'))
for (const file of ['sandbox/terminal', 'sandbox/files', 'sandbox/process', 'services/sandboxes'])
  try { walk(root + '/' + file + '.js') } catch (error) { if (error.code !== 'MODULE_NOT_FOUND') throw error }
process.stdout.write(JSON.stringify([...found]))
"""


def methods(*modules: object) -> set[str]:
    """The names of public methods of the handles and APIs in these modules."""
    return {
        name
        for module in modules
        for class_name, kind in inspect.getmembers(module, inspect.isclass)
        if CLASSES.search(class_name) and kind.__module__ == module.__name__  # type: ignore[attr-defined]
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


SYNC = methods(sync_sandbox, sync_files, sync_processes, sync_terminal)
ASYNC = methods(async_sandbox, async_files, async_processes, async_terminal)


def test_the_lists_are_whole() -> None:
    """Lists that came out empty would prove nothing."""
    assert {"attach", "exec", "watch_dir", "create_memory_snapshot", "write_stdin"} <= SYNC & ASYNC
    assert len(SYNC) > 60


@pytest.mark.parametrize("name", sorted(SYNC | ASYNC))
def test_a_python_method_is_called_by_a_test(name: str) -> None:
    """By name, on some object."""
    assert name in BUILDS or re.search(rf"\.{name}\b", PYTHON), f"no test calls .{name}()"


def test_volumes_secrets_and_vaults_are_called_as_what_they_are() -> None:
    """`volumes.create`, not any `create`."""
    called = {
        f"{name}.{method}"
        for name, kind in MANAGERS.items()
        for method, _ in inspect.getmembers(kind, inspect.isfunction)
        if not method.startswith("_")
    }
    assert len(called) > 15
    assert [each for each in sorted(called) if not re.search(rf"\b{each}\b", PYTHON)] == []
    assert [each for each in ("create", "get", "list", "delete") if f"client.volumes.{each}(" not in NODE_VOLUMES] == []


def test_every_node_method_is_called_by_a_check() -> None:
    """As the installed package lists them."""
    done = subprocess.run(
        ["node", "-e", LIST_NODE], capture_output=True, text=True, check=True, cwd=VENDOR_JS, timeout=60
    )
    names = {name for name in json.loads(done.stdout) if re.fullmatch("[a-z][A-Za-z]+", name)} - {"constructor"}
    assert {"attach", "writeStdin", "watchDir"} <= names
    private = set(
        re.findall(
            r"private (?:async )?(\w+)",
            "".join(p.read_text() for p in VENDOR_JS.glob("node_modules/@hyperbrowser/sdk/dist/s*/*.d.ts")),
        )
    )
    missing = sorted(name for name in names - private if not re.search(rf"\.{name}\b", NODE))
    assert missing == []
