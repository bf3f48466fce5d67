"""Trees of templates that nobody needs are removed, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sandpty.cli.main import cli
from sandpty.config import DataDir
from sandpty.isolation.driver import Layer
from sandpty.templates import collecting, stacks
from sandpty.templates.catalog import Ready
from sandpty.templates.tree import describe


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """The trees of `base`, and three of versions gone by."""
    directory = tmp_path / "templates"
    base = stacks.STACKS["base"][0]
    for place in (base.place(directory), *(directory / f"base-{name}" for name in ("held", "used", "old"))):
        (place / "rootfs").mkdir(parents=True)
        describe(place, 1000.0)
    return directory


def states(templates: Path) -> dict[str, str]:
    """By name."""
    return {tree.name: tree.state for tree in collecting.trees(templates)}


def stands_on(data: DataDir, tree: Path) -> None:
    """A sandbox of this data directory, with the tree somewhere below."""
    directory = data.sandboxes / "i1"
    directory.mkdir(parents=True)
    meta = {"layers": [{"source": "/elsewhere", "target": "/", "below": [str(tree / "rootfs")]}]}
    (directory / "meta.json").write_text(json.dumps(meta))


def test_only_what_nobody_stands_on_is_removed(templates: Path, tmp_path: Path) -> None:
    """Not what this version uses, a running supervisor holds, or a sandbox of any data directory stands on."""
    data = DataDir(tmp_path / "data")
    stands_on(data, templates / "base-used")
    collecting.register(templates, data)
    collecting.hold(templates, Ready("x", (Layer(Path("/usr")), Layer(templates / "base-held" / "rootfs"))))
    current = stacks.STACKS["base"][0].place(templates).name
    assert states(templates) == {
        current: "current",
        "base-held": "in use",
        "base-used": "in use",
        "base-old": "unused",
    }
    assert [tree.name for tree in collecting.collect(templates, unused_s=0)] == ["base-old"]
    assert not (templates / "base-old").exists()
    assert set(states(templates)) == {current, "base-held", "base-used"}
    # A data directory that is gone holds nothing; nor does a sandbox that is.
    (data.sandboxes / "i1" / "meta.json").unlink()
    assert states(templates)["base-used"] == "unused"


def test_by_itself_only_what_is_old_goes(templates: Path) -> None:
    """A tree that another version built a moment ago may be wanted by it."""
    young = templates / "base-young"
    (young / "rootfs").mkdir(parents=True)
    import time

    describe(young, time.time())
    removed = {tree.name for tree in collecting.collect(templates)}
    assert removed == {"base-held", "base-used", "base-old"}
    assert young.exists()


def test_the_command_line_lists_and_collects(templates: Path, tmp_path: Path) -> None:
    """For people and for programs."""
    where = ["--templates-dir", str(templates), "--data-dir", str(tmp_path / "none")]
    listed = CliRunner().invoke(cli, ["template", "ls", "--trees", *where])
    assert listed.exit_code == 0
    assert "base-old" in listed.output
    assert "unused" in listed.output
    found = json.loads(CliRunner().invoke(cli, ["template", "ls", "--trees", "--json", *where]).output)
    assert {tree["state"] for tree in found["trees"]} == {"current", "unused"}
    collected = CliRunner().invoke(cli, ["template", "gc", *where])
    assert "removed base-old" in collected.output
    again = CliRunner().invoke(cli, ["template", "gc", *where])
    assert again.output == "nothing is unused\n"
