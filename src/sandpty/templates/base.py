"""The tree below all templates: Debian with a shell, a user and the tools people type first."""

from __future__ import annotations

import os
from pathlib import Path

from sandpty.templates.guest import SUDOERS, USER, USER_ID, make_home
from sandpty.templates.names import BASE
from sandpty.templates.shell_files import BASH_BASHRC, HOME_BASHRC, HOME_PROFILE, PROFILE, write_shell_files
from sandpty.templates.tree import Tree

PACKAGES = (
    "attr",
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


TREE = Tree(BASE, " ".join((_RECIPE_VERSION, *PACKAGES, *EXCLUDED, *INCLUDED, SUDOERS, *SHELL_FILES)))


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
    clean(root)


def clean(root: Path) -> None:
    """Remove what package managers leave behind."""
    for directory in ("var/cache/apt", "var/cache/debconf", "var/log", "var/lib/apt/lists"):
        for path in (root / directory).glob("**/*"):
            if path.is_file() and not path.is_symlink() and path.name != "lock":
                path.unlink()
