"""The topmost tree of `code-interpreter-v1`: our program that serves `run_code`, its kernels and their settings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import sandpty.interpreter
from sandpty.templates import packages
from sandpty.templates.guest import USER_ID
from sandpty.templates.progress import Progress, Show
from sandpty.templates.root import Root
from sandpty.templates.tree import Tree
from sandpty.wire.interpreter import PROGRAM

PACKAGE = "sandpty_interpreter"  # its name inside: people may install `sandpty` itself there
_SOURCES = Path(sandpty.interpreter.__file__).parent
_KERNELS = "usr/local/share/jupyter/kernels"
_VERSION = "1"  # of what this module makes
_SCRIPT = f"#!/bin/sh\nexec /usr/bin/python3 -s -m {PACKAGE}\n"
# `pip install` just works, also for `user`, whose packages go to ~/.local.
_PIP = "[global]\nbreak-system-packages = true\ndisable-pip-version-check = true\nroot-user-action = ignore\n"
# -Xfrozen_modules=off: debugpy, which the kernel knows of, warns otherwise.
_KERNEL_SPECS: dict[str, dict[str, object]] = {
    "python3": {
        "argv": [
            "/usr/bin/python3",
            "-Xfrozen_modules=off",
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
            f"--IPKernelApp.extensions={PACKAGE}.in_kernel",
            f"--IPKernelApp.outstream_class={PACKAGE}.streams.OrderedStream",
            "--InteractiveShell.colors=nocolor",
            "--HistoryManager.enabled=False",
        ],
        "display_name": "Python 3",
        "language": "python",
        "metadata": {"transport": "ipc"},
    },
    "bash": {
        "argv": ["/usr/bin/python3", "-m", "bash_kernel", "-f", "{connection_file}"],
        "display_name": "Bash",
        "language": "bash",
        "metadata": {"transport": "ipc"},
    },
    "deno": {
        "argv": ["/usr/local/bin/deno", "jupyter", "--kernel", "--conn", "{connection_file}"],
        "display_name": "Deno (JavaScript and TypeScript)",
        "language": "typescript",
        "env": {"NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1"},
    },
}


def _sources() -> list[Path]:
    return sorted(_SOURCES.glob("*.py"))


def _recipe() -> str:
    texts = [path.name + "\n" + path.read_text("utf-8") for path in _sources()]
    return "\n".join((_VERSION, packages.TREE.fingerprint, _SCRIPT, _PIP, json.dumps(_KERNEL_SPECS), *texts))


TREE = Tree("interpreter", _recipe())


def install(root: Root, work: Path, show: Show) -> None:
    """Fill `root`. Raises BuildError."""
    show(Progress(1, "installing the interpreter"))
    find = "import site; print(site.getsitepackages()[0]); print(site.USER_SITE)"
    libraries, user_packages = root.output(["env", "HOME=/home/user", "python3", "-c", find]).split()
    package = root.path / libraries.lstrip("/") / PACKAGE
    package.mkdir()
    for source in _sources():
        (package / source.name).write_text(source.read_text("utf-8"), encoding="utf-8")
    root.run(["python3", "-m", "compileall", "-q", f"{libraries}/{PACKAGE}"], what="compiling the interpreter")
    script = root.path / PROGRAM[0].lstrip("/")
    script.write_text(_SCRIPT, encoding="ascii")
    script.chmod(0o755)
    (root.path / "etc/pip.conf").write_text(_PIP, encoding="ascii")
    for name, spec in _KERNEL_SPECS.items():
        directory = root.path / _KERNELS / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "kernel.json").write_text(json.dumps(spec, indent=1), encoding="utf-8")
    # Python looks there for packages only if it is there when a kernel starts.
    _make_users(root.path, user_packages)
    # Contexts may have any directory as their working directory, and `user` may become root anyway.
    (root.path / "root").chmod(0o755)


def _make_users(root: Path, directory: str) -> None:
    path = root
    for name in Path(directory).parts[1:]:
        path = path / name
        if not path.exists():
            path.mkdir()
            os.chown(path, USER_ID, USER_ID)
