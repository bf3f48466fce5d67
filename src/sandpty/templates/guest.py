"""The accounts of a guest: `root`, and `user` (uid 1000) who may become root without a password."""

from __future__ import annotations

import os
from pathlib import Path

USER = "user"
USER_ID = 1000
_HOME = f"/home/{USER}"
_ACCOUNTS = (
    "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin",
    "bin:x:2:2:bin:/bin:/usr/sbin/nologin",
    "sys:x:3:3:sys:/dev:/usr/sbin/nologin",
    "man:x:6:12:man:/var/cache/man:/usr/sbin/nologin",
    "mail:x:8:8:mail:/var/mail:/usr/sbin/nologin",
    "www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin",
    "_apt:x:42:65534::/nonexistent:/usr/sbin/nologin",
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin",
)
_GROUPS = "daemon:1 bin:2 sys:3 adm:4 tty:5 disk:6 mail:8 man:12 www-data:33 utmp:43 staff:50 users:100 nogroup:65534"
SUDOERS = f"""Defaults env_reset
Defaults secure_path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
root ALL=(ALL:ALL) ALL
{USER} ALL=(ALL:ALL) NOPASSWD: ALL
"""


def _write(path: Path, text: str, mode: int) -> None:
    path.write_text(text, encoding="ascii")
    path.chmod(mode)


def make_home(root: Path) -> None:
    """/home/user; its shell's start files come from `shell_files`."""
    home = root / _HOME.lstrip("/")
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o755)
    os.chown(home, USER_ID, USER_ID)


def write_users(root: Path, *, with_service_accounts: bool) -> None:
    """A fresh /etc/passwd, group, shadow and sudoers, and the home directories."""
    etc = root / "etc"
    accounts = ["root:x:0:0:root:/root:/bin/bash", *(_ACCOUNTS if with_service_accounts else ())]
    accounts.append(f"{USER}:x:{USER_ID}:{USER_ID}:{USER}:{_HOME}:/bin/bash")
    _write(etc / "passwd", "\n".join(accounts) + "\n", 0o644)
    groups = [f"{name}:x:{number}:" for name, _, number in (item.partition(":") for item in _GROUPS.split())]
    lines = ["root:x:0:", *groups, f"sudo:x:27:{USER}", f"{USER}:x:{USER_ID}:"]
    _write(etc / "group", "\n".join(lines) + "\n", 0o644)
    shadow = [f"{line.split(':')[0]}:*:19000:0:99999:7:::" for line in accounts]
    _write(etc / "shadow", "\n".join(shadow) + "\n", 0o640)
    _write(etc / "gshadow", "".join(f"{line.split(':')[0]}:*::\n" for line in lines), 0o640)
    (etc / "sudoers.d").mkdir(exist_ok=True)
    _write(etc / "sudoers", SUDOERS, 0o440)
    make_home(root)
