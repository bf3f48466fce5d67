"""`sandpty volumes`, `sandpty create --volume`, and the same through our SDK."""

from __future__ import annotations

import json

import pytest

from sandpty.sdk import Client, SandptyError
from tests.e2e.cli_fixture import Cli


def test_a_volume_from_the_command_line(cli: Cli) -> None:
    """create, ls, mounted for writing and read-only, rm refused while it is mounted, then done."""
    assert cli.out("volumes", "create", "data", "--size", "64") == "data"
    refused = cli.run("volumes", "create", "data")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    with cli.sandbox("--volume", "data:/mnt/data") as writer, cli.sandbox("--volume", "data:/in:ro") as reader:
        cli.out("exec", writer, "--", "sh", "-c", "echo kept > /mnt/data/f")
        assert cli.out("exec", reader, "--", "cat", "/in/f") == "kept"
        assert cli.run("exec", reader, "--", "touch", "/in/x").returncode == 1
        (listed,) = json.loads(cli.out("volumes", "ls", "--json"))
        assert (listed["name"], listed["disk_mb"], set(listed["mounted_by"])) == ("data", 64, {writer, reader})
        refused = cli.run("volumes", "rm", "data")
        assert (refused.returncode, "is mounted by sandbox" in refused.stderr) == (1, True)
    assert cli.out("volumes", "ls").startswith("data  ")
    with cli.sandbox("--volume", "data:/again/") as again:
        assert cli.out("exec", again, "--", "cat", "/again/f") == "kept"
    assert cli.out("volumes", "rm", "data") == "data"
    assert cli.run("volumes", "rm", "data").returncode == 1


@pytest.mark.parametrize("mount", ["data", "data:relative", ":/mnt", "data:"])
def test_a_mount_that_says_nothing_is_a_usage_error(cli: Cli, mount: str) -> None:
    """Before anything is asked of the server."""
    refused = cli.run("create", "--volume", mount)
    assert refused.returncode == 2
    assert "NAME:/PATH" in refused.stderr


def test_volumes_in_our_sdk(cli: Cli) -> None:
    """create_volume, list_volumes, delete_volume; what a sandbox mounts is part of what it is."""
    with Client(cli.server.url, cli.server.api_key) as client:
        volume = client.create_volume("sdk", disk_mb=32)
        assert volume.id in [each.id for each in client.list_volumes()]
        mount = {"volume": "sdk", "path": "/mnt/x", "read_only": True}
        sandbox = client.create_sandbox(volumes=[mount])
        assert list(sandbox.volumes) == [{"id": volume.id, "name": "sdk", "path": "/mnt/x", "read_only": True}]
        with pytest.raises(SandptyError) as error:
            client.delete_volume("sdk")
        assert error.value.reason.name == "volume_in_use"
        client.kill_sandbox(sandbox.id)
        client.delete_volume(volume.id)
