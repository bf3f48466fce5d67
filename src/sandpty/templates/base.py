"""The `base` template: what is in it, and where it is kept."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

from sandpty.isolation.driver import Layer
from sandpty.templates.catalog import BASE, Ready
from sandpty.templates.guest import SUDOERS, USER, USER_ID, make_home
from sandpty.templates.shell_files import BASH_BASHRC, HOME_BASHRC, HOME_PROFILE, PROFILE, write_shell_files

PACKAGES = (
    "bash",
    "ca-certificates",
    "coreutils",
    "curl",
    "git",
    "iproute2",
    "iputils-ping",
    "less",
    "nano",
    "ncurses-base",
    "ncurses-term",
    "procps",
    "psmisc",
    "python3",
    "sudo",
    "tzdata",
    "vim-tiny",
)
# What nobody reads in a sandbox; licences stay.
EXCLUDED = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*")
INCLUDED = ("/usr/share/doc/*/copyright",)
SHELL_FILES = (PROFILE, BASH_BASHRC, HOME_PROFILE, HOME_BASHRC)
_RECIPE_VERSION = "3"
# Names that people type and these small packages do not bring.
_ALSO_CALLED = (("python", "python3"), ("vim", "vim.tiny"))
_DESCRIPTION = "template.json"


def place(templates: Path) -> Path:
    """Where this recipe's result is; another recipe (a newer version of us) has another place."""
    recipe = " ".join((_RECIPE_VERSION, *PACKAGES, *EXCLUDED, *INCLUDED, SUDOERS, *SHELL_FILES))
    return templates / f"{BASE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def ready(templates: Path) -> Ready | None:
    """The template when it is complete; None while it is not built."""
    directory = place(templates)
    try:
        described = json.loads((directory / _DESCRIPTION).read_text(encoding="utf-8"))
        return Ready(BASE, (Layer(directory / "rootfs"),), float(described["created_at"]), int(described["size_bytes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def describe(directory: Path, created_at: float) -> None:
    """Say what is in `directory/rootfs`: the last step before it is moved into place."""
    done = subprocess.run(
        ["du", "-s", "--block-size=1", str(directory / "rootfs")], capture_output=True, text=True, check=True
    )
    size = int(done.stdout.split()[0])
    text = json.dumps({"created_at": created_at, "size_bytes": size})
    (directory / _DESCRIPTION).write_text(text, encoding="utf-8")


def _append(path: Path, line: str) -> None:
    with open(path, "a", encoding="ascii") as file:
        file.write(line + "\n")


def finish(root: Path) -> None:
    """Set up the guest's user and remove what belongs to the build."""
    etc = root / "etc"
    _append(etc / "passwd", f"{USER}:x:{USER_ID}:{USER_ID}:{USER}:/home/{USER}:/bin/bash")
    _append(etc / "shadow", f"{USER}:*:19000:0:99999:7:::")
    group = etc / "group"
    group.write_text(group.read_text().replace("\nsudo:x:27:\n", f"\nsudo:x:27:{USER}\n"), encoding="ascii")
    _append(group, f"{USER}:x:{USER_ID}:")
    _append(etc / "gshadow", f"{USER}:*::")
    sudoers = etc / "sudoers"
    sudoers.write_text(SUDOERS + "@includedir /etc/sudoers.d\n", encoding="ascii")
    sudoers.chmod(0o440)
    make_home(root)
    write_shell_files(root)
    for name, program in _ALSO_CALLED:
        link = root / "usr/bin" / name
        if not os.path.lexists(link):
            link.symlink_to(program)
    # The supervisor writes these for each sandbox; a build machine's own are nobody's business.
    for name in ("hostname", "resolv.conf", "hosts", "machine-id", "apt/apt.conf.d/99mmdebstrap"):
        (etc / name).unlink(missing_ok=True)
    (etc / "machine-id").touch()
    for directory in ("var/cache/apt", "var/cache/debconf", "var/log"):
        for path in (root / directory).glob("**/*"):
            if path.is_file() and not path.is_symlink():
                path.unlink()
