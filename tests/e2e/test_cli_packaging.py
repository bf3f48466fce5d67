"""One command sets everything up, and does it once; one wheel carries the agent for every machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from tests.component.agent_peer import load_build

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints"
NOT_COPIED = {".git", ".venv", ".cache", ".pytest_cache", ".ruff_cache", ".mypy_cache", "__pycache__", "tests", "docs"}
ELF_MACHINE = {"x86_64": 62, "aarch64": 183}


def pins(name: str) -> dict[str, str]:
    """Package -> version of a constraints file."""
    found = re.findall(r"^([a-z0-9-]+)==(\S+)", (CONSTRAINTS / name).read_text(), re.MULTILINE)
    return dict(found)


def test_a_second_setup_has_nothing_to_do_and_is_quick() -> None:
    """Stamps by the hash of what went in: no pip, no apt, no compiler, no word."""
    command = [str(ROOT / "scripts" / "setup"), "--test"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    took = []
    for _ in range(3):
        began = os.times()
        again = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        ended = os.times()  # of its own: others may have the processors
        took.append(ended.children_user + ended.children_system - began.children_user - began.children_system)
        assert again.stdout + again.stderr == ""
    assert min(took) < 0.5


def test_setup_says_what_it_does_and_refuses_what_it_does_not_know() -> None:
    """--help, and no silent misspelling."""
    setup = str(ROOT / "scripts" / "setup")
    said = subprocess.run([setup, "--help"], check=True, capture_output=True, text=True).stdout
    assert "SANDPTY_TEMPLATES_DIR" in said
    wrong = subprocess.run([setup, "--tset"], check=False, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "--tset" in wrong.stderr


def test_ci_runs_exactly_what_people_run() -> None:
    """.ci/run is scripts/test."""
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and line[0] != "#"]
    assert len(lines) == 2
    assert "scripts/test" in lines[1]
    for script in ("setup", "serve", "test", "check", "bench", "update-constraints"):
        assert os.access(ROOT / "scripts" / script, os.X_OK)


def test_every_dependency_is_pinned_with_hashes_and_without_addresses() -> None:
    """What is installed is what was tested, from wherever it comes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {"run.txt": [*project["dependencies"], *extras["server"], *extras["build"]]}
    wanted["dev.txt"] = [*wanted["run.txt"], *extras["dev"]]
    for name, requirements in wanted.items():
        pinned = pins(name)
        for requirement in requirements:
            package = re.split(r"[<>=!~;\[ ]", requirement)[0]
            assert package in pinned, f"{package} is not in constraints/{name}: scripts/update-constraints"
    for file in CONSTRAINTS.glob("*.txt"):
        text = file.read_text()
        assert "://" not in text
        blocks = re.split(r"\n(?=\S)", text.strip())
        assert all("--hash=sha256:" in block for block in blocks), file.name
    dev = pins("dev.txt")
    assert {package: dev[package] for package in pins("run.txt")} == pins("run.txt")


def test_the_vendors_sdks_are_those_the_protocol_was_read_from() -> None:
    """Exact versions, for both languages."""
    assert pins("vendor.txt")["e2b"] == pins("dev.txt")["e2b"] == "2.63.0"
    assert pins("vendor.txt")["e2b-code-interpreter"] == "2.11.5"
    package = json.loads((CONSTRAINTS / "vendor-js" / "package.json").read_text())
    assert package["dependencies"] == {
        "@e2b/cli": "2.19.0",
        "@e2b/code-interpreter": "2.8.0",
        "@hyperbrowser/sdk": "0.92.6",
        "e2b": "2.51.0",
        **{name: package["dependencies"][name] for name in ("amaro", "novita-sandbox")},
    }
    assert pins("vendor.txt")["hyperbrowser"] == "1.14.0"


def test_the_wheel_is_for_every_machine_and_needs_no_compiler(tmp_path: Path) -> None:
    """py3-none-any with an agent for each architecture in it, built where the PATH leads nowhere.

    From a copy of the checkout, where the agents that are not this machine's are there already: compiling zig's C
    library takes a minute for each of them.
    """
    shutil.copytree(ROOT, tmp_path / "copy", ignore=lambda _, names: NOT_COPIED & set(names))
    build = load_build(tmp_path / "copy" / "agent" / "build.py")
    for arch in set(build.ARCHES) - {build.machine_arch()}:
        other = build.DEFAULT_OUT / f"agent-{arch}"
        other.write_bytes(b"\x7fELF" + bytes(14) + ELF_MACHINE[arch].to_bytes(2, "little"))
        other.chmod(0o755)
        (tmp_path / "copy" / ".cache").mkdir()
        build.mark_of(other).write_text(build.stamp_of(build.command_for(arch)))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    (tmp_path / "empty").mkdir()
    env = {**os.environ, "PATH": str(tmp_path / "empty")}
    subprocess.run(command, cwd=tmp_path / "copy", env=env, check=True, capture_output=True, timeout=110)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        for arch, machine in ELF_MACHINE.items():
            entry = packed.getinfo(f"sandpty/agent/agent-{arch}")
            assert entry.external_attr >> 16 & 0o111, "it stays executable"
            head = packed.read(entry)[:20]
            assert head[:4] == b"\x7fELF"
            assert int.from_bytes(head[18:20], "little") == machine
    assert "sandpty/py.typed" in names
    assert "sandpty/isolation/seccomp-strict.json" in names
    assert not [name for name in names if name.endswith((".c", ".stamp", ".pyc"))]
