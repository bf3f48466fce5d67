"""Building templates: the host's sources, progress, failures, and builders that wait for each other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandpty.isolation.driver import Layer
from sandpty.templates import apt, base, build, packages, stacks
from sandpty.templates.catalog import Catalog, Ready
from sandpty.templates.progress import Progress, Reader
from sandpty.templates.tree import Tree, describe
from sandpty.wire.errors import SandptyError

SOURCES = """# our mirror
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://vendor.example
Suites: nodistro
Components: main

Types: deb
Enabled: no
URIs: http://mirror.example/other
Suites: bookworm-backports
Components: main
"""

FAKE_MMDEBSTRAP = """#!/bin/sh
echo "I: running apt-get update..."
for word in "$@"; do case "$word" in */rootfs) root="$word";; esac; done
[ -n "$FAIL" ] && { echo "E: Unable to locate package nonsense"; exit 1; }
mkdir -p "$root/etc/skel" "$root/usr/bin" "$root/root" "$root/var/log"
for file in passwd shadow group gshadow; do touch "$root/etc/$file"; done
echo built >> "$COUNT"
"""


def host_apt(tmp_path: Path) -> Path:
    """An /etc/apt with sources of the release and of others."""
    directory = tmp_path / "apt"
    (directory / "sources.list.d").mkdir(parents=True)
    (directory / "sources.list.d" / "debian.sources").write_text(SOURCES)
    (directory / "sources.list.d" / "vendor.list.disabled").write_text("deb http://x.example bookworm main\n")
    lines = "# c\ndeb [signed-by=/k] http://s.example bookworm-security main\ndeb http://y.example stable main\n"
    (directory / "sources.list").write_text(lines)
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_CODENAME=bookworm\nNAME="Debian"\n')
    return directory


def test_the_hosts_own_sources_are_used(tmp_path: Path) -> None:
    """Those of its release, in both formats; not other vendors', not disabled ones."""
    found = apt.sources(host_apt(tmp_path), tmp_path / "os-release")
    assert found.suite == "bookworm"
    assert "mirror.example/debian" in found.deb822
    assert "vendor.example" not in found.deb822
    assert "other" not in found.deb822
    assert found.one_line == "deb [signed-by=/k] http://s.example bookworm-security main"


def test_a_host_without_sources_says_so(tmp_path: Path) -> None:
    """One readable line."""
    (tmp_path / "sources.list.d").mkdir()
    with pytest.raises(RuntimeError, match="no apt sources"):
        apt.sources(tmp_path, tmp_path / "os-release")


def test_what_apt_needs_to_fetch_here_is_taken_over() -> None:
    """Proxies, certificates and clocks; nothing else."""
    dump = (
        'Acquire "";\nAcquire::http::Proxy "http://p.example:3128";\nAcquire::https::CaInfo "/ca.pem";\n'
        'Acquire::Check-Valid-Until "false";\nAPT::Install-Recommends "1";\nAcquire::Languages "en";\n'
    )
    assert apt.options(dump) == [
        'Acquire::http::Proxy "http://p.example:3128";',
        'Acquire::https::CaInfo "/ca.pem";',
        'Acquire::Check-Valid-Until "false";',
    ]


def test_progress_goes_forward_through_the_phases() -> None:
    """Whatever the builder prints, the percentage never falls and ends below 100."""
    reader = Reader()
    lines = [
        "I: running apt-get update...",
        "I: downloading packages with apt...",
        *["Get:1 x"] * 200,
        "I: extracting archives...",
        "I: installing essential packages...",
        *["Setting up x"] * 30,
        "I: installing remaining packages inside the chroot...",
        "0 upgraded, 10 newly installed, 0 to remove",
        *["Unpacking y", "Setting up y"] * 20,
        "I: cleaning package lists and apt cache...",
    ]
    seen = [reader.feed(line) for line in lines]
    percents = [progress.percent for progress in seen]
    assert percents == sorted(percents)
    assert percents[-1] < 100
    assert seen[-1].text == "cleaning up"


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A builder that takes no time, and the file that counts its runs."""
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "mmdebstrap").write_text(FAKE_MMDEBSTRAP)
    (directory / "mmdebstrap").chmod(0o755)
    (directory / "unshare").write_text('#!/bin/sh\nshift; exec "$@"\n')
    (directory / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    monkeypatch.setattr(apt, "sources", lambda: apt.Sources("bookworm", SOURCES, ""))
    return tmp_path / "count"


def test_a_built_template_is_complete_and_not_built_again(tmp_path: Path, builder: Path) -> None:
    """The user is there; the second call does nothing."""
    shown: list[Progress] = []
    templates = tmp_path / "templates"
    assert stacks.ready(templates, "base") is None
    for _ in range(2):
        build.build(templates, "base", shown.append)
    ready = stacks.ready(templates, "base")
    assert ready is not None
    root = ready.layers[0].source
    assert "user:x:1000:1000" in (root / "etc/passwd").read_text()
    assert "NOPASSWD" in (root / "etc/sudoers").read_text()
    assert (root / "usr/bin/python").is_symlink()
    assert (root / "home/user").is_dir()
    assert builder.read_text() == "built\n"
    assert shown[-1] == Progress(100, "base is ready")
    assert [path for path in templates.iterdir() if path.name.startswith(".")] == []


def test_a_failed_build_gives_one_line_and_leaves_nothing(
    tmp_path: Path, builder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says what failed; the next build can succeed."""
    monkeypatch.setenv("FAIL", "1")
    templates = tmp_path / "templates"
    with pytest.raises(build.BuildError, match="Unable to locate package nonsense"):
        build.build(templates, "base", lambda _: None)
    assert [path.name for path in templates.iterdir()] == ["build.lock"]
    monkeypatch.delenv("FAIL")
    build.build(templates, "base", lambda _: None)
    assert stacks.ready(templates, "base") is not None


def test_a_missing_builder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="apt-get install mmdebstrap"):
        build.build(tmp_path / "templates", "base", lambda _: None)


def test_two_builders_build_once(tmp_path: Path, builder: Path) -> None:
    """The second waits for the first and finds the result."""
    templates = tmp_path / "templates"
    script = (
        "import sys; from pathlib import Path; from sandpty.templates import apt, build; "
        "apt.sources = lambda: apt.Sources('bookworm', 'Types: deb', ''); "
        "build.build(Path(sys.argv[1]), 'base', lambda _: None)"
    )
    builders = [subprocess.Popen([sys.executable, "-c", script, str(templates)]) for _ in range(3)]
    assert [process.wait(30) for process in builders] == [0, 0, 0]
    assert builder.read_text() == "built\n"


def test_base_always_resolves_and_says_who_stands_in() -> None:
    """host-usr until it is built, then itself; unknown names are no_such_template."""
    quick = Ready("host-usr", (Layer(Path("/q")),))
    catalog = Catalog(quick)
    catalog.progress("base", "40 %, downloading")
    missed: list[str] = []
    catalog.missed = missed.append
    assert catalog.resolve("base") is catalog.resolve("code-interpreter-v1") is quick
    assert missed == ["base", "code-interpreter-v1"]
    shown = {template.name: template for template in catalog.list()}
    assert shown["base"].detail == "host-usr stands in for it: 40 %, downloading"
    built = Ready("base", (Layer(Path("/b")),))
    catalog.add(built)
    assert catalog.resolve("base") is catalog.resolve("code-interpreter-v1") is built
    interpreter = Ready("code-interpreter-v1", (Layer(Path("/i"), below=(Path("/b"),)),))
    catalog.add(interpreter)
    assert catalog.resolve("code-interpreter-v1") is interpreter
    assert {template.detail for template in catalog.list()} == {""}
    assert catalog.resolve("host-usr") is quick
    with pytest.raises(SandptyError, match="does not exist"):
        catalog.resolve("nope")


def test_a_template_is_a_stack_that_is_ready_when_every_tree_of_it_is(tmp_path: Path) -> None:
    """The topmost tree first; the sizes together; a tree that is missing means that nothing is ready."""
    stack = stacks.STACKS["code-interpreter-v1"]
    for number, tree in enumerate(stack):
        assert stacks.ready(tmp_path, "code-interpreter-v1") is None
        tree.root(tmp_path).mkdir(parents=True)
        describe(tree.place(tmp_path), 10.0 + number)
    ready = stacks.ready(tmp_path, "code-interpreter-v1")
    assert ready is not None
    assert ready.layers[0].trees == tuple(tree.root(tmp_path) for tree in reversed(stack))
    assert ready.created_at == 12.0
    assert ready.size_bytes >= 0


def test_every_package_is_pinned_by_hash_and_no_registry_is_named() -> None:
    """What is asked for is pinned; whoever installs it decides where it comes from."""
    text = packages.REQUIREMENTS.read_text()
    asked = packages.REQUIREMENTS.with_suffix(".in").read_text().splitlines()
    wanted = {line.replace("_", "-") for line in asked if line and not line.startswith("#")}
    pinned = re.findall(r"^([a-z0-9.-]+)==[^ ]+ \\\n    --hash=sha256:", text, re.MULTILINE)
    assert wanted <= set(pinned)
    assert len(pinned) == text.count("==")
    assert "://" not in text
    assert ";" not in text


def test_another_recipe_has_another_place(tmp_path: Path) -> None:
    """And so has whatever is stacked on it."""
    assert Tree("x", "one").place(tmp_path) != Tree("x", "two").place(tmp_path)
    assert base.TREE.recipe in packages.TREE.recipe
