"""`sandpty template`: an image becomes a template, sandboxes run from it, and nothing of it stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cli_fixture import Cli
from tests.e2e.test_cli_json import MEMBERS
from tests.e2e.tmux import Tmux
from tests.oci_images import Image, entry, layer, tiny_layer
from tests.registry_fixture import Registry


@pytest.fixture
def hub(cli: Cli, registry: Registry) -> Iterator[Registry]:
    """Docker Hub, for the session's server, while a test runs."""
    registry.stands_in_for_docker_hub(cli.server.data_dir)
    yield registry
    (cli.server.data_dir / "registries.conf").unlink()


def images(cli: Cli) -> list[dict[str, object]]:
    """Those that are here."""
    found: list[dict[str, object]] = json.loads(cli.out("template", "ls", "--trees", "--json"))["images"]
    return found


def test_an_image_becomes_a_template(cli: Cli, hub: Registry) -> None:
    """Imported by its usual name, used by name and tag, listed, removed; its files go when nothing needs them."""
    done = cli.run("template", "import", "node:20")
    assert done.returncode == 0, done.stderr
    assert "node:20 is docker.io/library/node:20 (linux/amd64" in done.stdout
    assert "pulling" in done.stderr
    assert "unpacking layer 1 of 2" in done.stderr
    found = {each["name"]: each for each in json.loads(cli.out("template", "ls", "--json"))}
    assert set(found["node"]) == MEMBERS["template"]
    assert found["node"]["tags"] == ["20", "default"]
    assert {"base", "code-interpreter-v1"} <= set(found)
    with cli.sandbox("--template", "node:20") as made:
        assert cli.out(
            "exec", made, "--", "sh", "-c", "whoami; sudo id -u; id -un 1000; echo $NODE_VERSION"
        ).split() == [
            "user",
            "0",
            "node",
            "20.0.0",
        ]
        (image,) = [each for each in images(cli) if "node" in str(each["reference"])]
        assert set(image) == MEMBERS["image"]
        assert cli.out("template", "rm", "node") == "node"
        # A sandbox stands on it.
        assert image["id"] not in json.dumps(json.loads(cli.out("template", "gc", "--json")))
        assert cli.out("exec", made, "--", "cat", "/etc/node-stand-in") == "yes"


def test_an_image_is_imported_anew(cli: Cli, registry: Registry) -> None:
    """The bare name means the newest; what older tags mean stays."""
    for version in ("1", "2"):
        name = registry.push(Image([tiny_layer(), layer(entry("version", version.encode()))]), "mine", version)
        made = json.loads(cli.out("template", "import", name, "--json"))
        assert set(made) == MEMBERS["imported"]
        assert (made["name"], made["tag"]) == ("mine", version)
    for reference, version in (("mine", "2"), ("mine:1", "1")):
        with cli.sandbox("--template", reference) as box:
            assert cli.out("exec", box, "--", "cat", "/version") == version
    assert cli.out("template", "rm", "mine") == "mine"


def test_what_goes_wrong_is_one_line(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """With what to do about it, and nothing left."""
    before = images(cli)
    for words, status, said in (
        ((f"{registry.host}/tiny:nope",), 1, "check the image's name and tag"),
        ((f"{registry.host}/tiny", "--platform", "linux/arm64"), 1, "not for linux/arm64"),
        ((f"{registry.host}/tiny", "--name", "base"), 1, "choose another --name"),
        (("oci:/nowhere",), 2, "--name"),
    ):
        done = cli.run("template", "import", *words)
        assert (done.returncode, said in done.stderr, done.stdout) == (status, True, ""), done.stderr
        assert len([line for line in done.stderr.splitlines() if line.startswith("sandpty: ")]) == 1
    assert cli.run("template", "rm", "no-such").returncode == 1
    assert cli.run("template", "rm", "base").returncode != 0
    assert cli.run("template", "ls", "--data-dir", str(tmp_path)).returncode == 69
    assert images(cli) == before


def test_a_terminal_shows_how_far_it_is(cli: Cli, person: Tmux, registry: Registry, tmp_path: Path) -> None:
    """Bars, one for the whole and one for each layer; nothing of them stays."""
    name = registry.push(Image([tiny_layer()]), "shown")
    person.type(f"{cli.line('template', 'import', name)}; echo status=$?")
    person.wait_for("status=0", timeout_s=30)
    assert "shown:latest is" in person.screen()
    assert "━" not in person.screen()
    cli.out("template", "rm", "shown")
