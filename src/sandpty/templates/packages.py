"""The tree above `base` that holds kernels and the packages people expect where code is run: Debian's and PyPI's.

What is fetched is fetched outside of it, by the host's own apt and pip with their proxies, mirrors and certificates.
Only wheels, each by its pinned hash: nothing of a package runs before it is in a sandbox.
"""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

from sandpty.templates import base
from sandpty.templates.progress import Progress, Show
from sandpty.templates.root import Root
from sandpty.templates.running import BuildError, Program, environment
from sandpty.templates.tree import Tree

DEBIAN_PACKAGES = ("file", "jq", "python3-venv", "unzip", "wget", "zip")
REQUIREMENTS = Path(__file__).with_name("packages.txt")
# Test suites of these are a tenth of the whole, and nobody imports them. (numpy.testing does import numpy's.)
WITHOUT_TESTS = ("matplotlib", "pandas", "scipy", "sklearn", "sympy")
_MACHINE = platform.machine()
# Wheels for the C library of Debian 12 and everything before it.
_GLIBC_MINORS = range(5, 37)
_VERSION = "1"  # of what this module makes
TREE = Tree(
    "packages",
    " ".join((_VERSION, _MACHINE, base.TREE.recipe, *DEBIAN_PACKAGES, *WITHOUT_TESTS, REQUIREMENTS.read_text("utf-8"))),
)


def install(root: Root, work: Path, show: Show) -> None:
    """Fill `root`; `work` is for what is fetched. Raises BuildError."""
    python = root.output(["python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    wheels = work / "wheels"
    show(Progress(1, "fetching Python packages, installing Debian's"))
    fetching = _fetch(wheels, python)
    try:
        root.apt_install(DEBIAN_PACKAGES)
        show(Progress(15, "fetching Python packages"))
        _follow_fetching(fetching, show)
    finally:
        fetching.end()
    show(Progress(45, "installing Python packages"))
    with root.bound(wheels, "/mnt"):
        root.run(_pip(wheels), what="pip")
    show(Progress(70, "compiling Python packages"))
    libraries = f"/usr/local/lib/python{python}/dist-packages"
    for name in WITHOUT_TESTS:
        for tests in (root.path / libraries.lstrip("/") / name).rglob("tests"):
            shutil.rmtree(tests)
    # Without it every start of a kernel would compile them anew. Syntax errors of test data are theirs.
    compiling = ["python3", "-m", "compileall", "-q", "-j", "0", "-x", "/tests?/", libraries]
    root.run(compiling, what="compiling Python packages")
    show(Progress(98, "cleaning up"))
    base.clean(root.path)


def _fetch(wheels: Path, python: str) -> Program:
    argv = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    argv += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(wheels)]
    argv += ["--python-version", python, "--implementation", "cp"]
    for name in (*(f"manylinux_2_{minor}" for minor in reversed(_GLIBC_MINORS)), "manylinux2014", "manylinux1"):
        argv += ["--platform", f"{name}_{_MACHINE}"]
    argv += ["--requirement", str(REQUIREMENTS)]
    return Program(argv, environment({"PYTHONUNBUFFERED": "1"}))


def _follow_fetching(fetching: Program, show: Show) -> None:
    wanted = REQUIREMENTS.read_text("utf-8").count("==")
    seen = 0

    def line(text: str) -> None:
        nonlocal seen
        if text.startswith("Collecting "):
            seen += 1
            show(Progress(15 + 30 * min(1.0, seen / wanted), "fetching Python packages"))

    fetching.finish(line, what="pip")


def _pip(wheels: Path) -> list[str]:
    """pip is among the wheels, and runs from its own."""
    names = sorted(path.name for path in wheels.glob("*.whl"))
    pip = next((name for name in names if name.startswith("pip-")), None)
    if pip is None:
        raise BuildError("pip is not among the packages")
    argv = ["python3", f"/mnt/{pip}/pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    argv += ["--no-cache-dir", "--disable-pip-version-check", "--break-system-packages", "--root-user-action=ignore"]
    return [*argv, *(f"/mnt/{name}" for name in names)]
