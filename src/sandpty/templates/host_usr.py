"""The `host-usr` template: the host's /usr, read-only, under a generated root. Ready in a fraction of a second.

An allow list: nothing of the host's /etc, /root, /home, /var or /usr/local is visible but what is named here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from sandpty.isolation.driver import Layer
from sandpty.templates.guest import write_users
from sandpty.templates.shell_files import write_shell_files

_VERSION = "4"  # of what this module makes; part of the directory's name
_DIRECTORIES = (
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "var/tmp",
    "var/log",
    "var/cache",
    "var/lib/dpkg",
    "var/lib/misc",
    "var/lib/sudo",
    "var/spool",
    "var/mail",
    "root",
    "home",
    "etc",
    "usr",
    "mnt",
    "opt",
    "srv",
    "media",
)
_LINKS = (
    "bin",
    "sbin",
    "lib",
    "lib32",
    "lib64",
    "libx32",
)
_ETC = (
    "alternatives",
    "bash_completion",
    "bash_completion.d",
    "ca-certificates",
    "debian_version",
    "gai.conf",
    "host.conf",
    "inputrc",
    "issue",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "login.defs",
    "lsb-release",
    "magic",
    "mime.types",
    "nanorc",
    "nsswitch.conf",
    "os-release",
    "pam.conf",
    "pam.d",
    "protocols",
    "python3",
    "python3.11",
    "python3.12",
    "python3.13",
    "rpc",
    "security",
    "services",
    "shells",
    "ssl/certs",
    "ssl/openssl.cnf",
    "sudo.conf",
    "terminfo",
    "timezone",
    "vim",
    "xattr.conf",
)
HIDDEN = ("local", "src")  # below /usr: what the host's admins put there is nobody's business


def _fingerprint() -> str:
    """Changes when the host's packages do, so that ld.so.cache and alternatives fit /usr."""
    digest = hashlib.sha256(_VERSION.encode())
    for name in ("/etc/ld.so.cache", "/etc/os-release", "/var/lib/dpkg/status"):
        try:
            info = os.stat(name)
            digest.update(f"{name} {info.st_mtime_ns} {info.st_size}".encode())
        except OSError:
            digest.update(name.encode())
    return digest.hexdigest()[:12]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink() or not source.is_dir():
        # A link out of /etc is followed unless it stays in /usr or /etc: elsewhere it would dangle inside.
        dangles = source.is_symlink() and not str(source.resolve()).startswith(("/usr/", "/etc/"))
        shutil.copy2(source, target, follow_symlinks=dangles)
    else:
        shutil.copytree(source, target, symlinks=True, ignore_dangling_symlinks=True)


def _skeleton(root: Path) -> None:
    for name in _DIRECTORIES:
        directory = root / name
        directory.mkdir(parents=True, exist_ok=True)
    for link in _LINKS:
        source = Path("/", link)
        if source.is_symlink():
            (root / link).symlink_to(os.readlink(source))
        elif source.is_dir():
            raise OSError(f"/{link} is not a link into /usr on this host")
    for name in _ETC:
        source = Path("/etc", name)
        if source.exists():
            _copy(source, root / "etc" / name)
    (root / "var/lib/dpkg/status").touch()
    write_users(root, with_service_accounts=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    (root / "root").chmod(0o700)
    write_shell_files(root)


def place(templates: Path) -> Path:
    """Where it is kept, for the host's packages of now."""
    return templates / f"host-usr-{_fingerprint()}"


def build(templates: Path) -> tuple[Layer, ...]:
    """The layers of host-usr, made when they are missing or the host's packages have changed. Raises OSError."""
    target = place(templates)
    if not target.exists():
        templates.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = templates / f".host-usr-{os.getpid()}"
        shutil.rmtree(new, ignore_errors=True)
        umask = os.umask(0o022)
        try:
            new.mkdir(mode=0o755)
            _skeleton(new)
        finally:
            os.umask(umask)
        try:
            os.rename(new, target)
        except OSError:
            if not target.exists():  # another supervisor was faster: the same content
                raise
            shutil.rmtree(new, ignore_errors=True)
    return Layer(target), Layer(Path("/usr"), "/usr", HIDDEN)
