"""Giving up root: once the server listens it is a plain account without capabilities, for good.

After the drop, files under /root can no longer be read, and the interpreter may live there: `preimport` brings in every
module that could still be asked for.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pkgutil
import pwd
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from sandpty import config

_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAP = Path("/proc/sys/kernel/cap_last_cap")
_CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

# What the standard library and our dependencies import only when it is first needed.
_LAZY_MODULES = (
    "_strptime",
    "asyncio.staggered",
    "concurrent.futures.process",
    "concurrent.futures.thread",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.punycode",
    "encodings.unicode_escape",
    "encodings.utf_16",
    "encodings.utf_16_le",
    "encodings.utf_32",
    "encodings.utf_8",
    "encodings.utf_8_sig",
    "http.cookies",
    "linecache",
    "locale",
    "mimetypes",
    "multiprocessing.connection",
    "stringprep",
    "traceback",
    "unicodedata",
    "uuid",
    "uvloop",
)
# Packages of which every module is brought in: small, and used at run time by the server.
_WHOLE_PACKAGES = ("sandpty.server", "sandpty.terminal", "sandpty.wire", "aiohttp", "yarl", "multidict", "msgspec")
_SSH_DIALECT = "sandpty.server.dialects.ssh."
_SSH_PACKAGES = ("asyncssh", "cryptography.hazmat.primitives")  # a quarter of a second: only where they are used
_OPTIONAL_MODULES = frozenset(("aiohttp.pytest_plugin", "aiohttp.worker"))  # need packages that need not be here


class PrivilegeError(Exception):
    """Root could not be given up completely. Going on would break a promise, so nobody should."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the server runs as."""

    uid: int
    gid: int
    name: str


def server_account() -> Account:
    """The account `sandpty` if it exists, else a number that no account has. Without root: who we are."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), str(os.geteuid()))
    try:
        entry = pwd.getpwnam(config.SERVER_ACCOUNT)
    except KeyError:
        return Account(config.SERVER_UID, config.SERVER_UID, str(config.SERVER_UID))
    return Account(entry.pw_uid, entry.pw_gid, entry.pw_name)


def preimport(*, ssh: bool = False) -> None:
    """Import everything the server may come to need, while the files are readable. `ssh`: for its gateway too."""
    for name in _LAZY_MODULES:
        importlib.import_module(name)
    for name in (*_WHOLE_PACKAGES, *(_SSH_PACKAGES if ssh else ())):
        package = importlib.import_module(name)
        for found in pkgutil.walk_packages(package.__path__, name + "."):
            if ssh or not found.name.startswith(_SSH_DIALECT):
                _import_if_possible(found.name)


def _import_if_possible(name: str) -> ModuleType | None:
    if name in _OPTIONAL_MODULES or name.endswith(".__main__"):
        return None
    try:
        return importlib.import_module(name)
    except ImportError:
        # Ours must be importable; of others' packages only what this installation can use.
        if name.startswith("sandpty."):
            raise
        return None


def drop_to(account: Account) -> None:
    """Become `account`: no groups, no capability in any set, no way to gain one. Call it before starting threads.

    Raises PrivilegeError when the kernel does not confirm every point.
    """
    try:
        os.setgroups([])
        _drop_bounding_set()
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
        _clear_capabilities()
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise PrivilegeError(f"root could not be given up: {error}") from error
    verify_dropped(account)


def verify_dropped(account: Account) -> None:
    """Ask the kernel, for every thread of this process. Raises PrivilegeError naming what is left."""
    for status in Path("/proc/self/task").glob("*/status"):
        left = _privileges_left(_fields(status.read_text()), account)
        if left:
            raise PrivilegeError(f"root could not be given up: {', '.join(left)}")


def _privileges_left(fields: dict[str, str], account: Account) -> list[str]:
    left = [f"{name} is {fields[name]}" for name in _CAPABILITY_SETS if int(fields[name], 16)]
    if set(fields["Uid"].split()) != {str(account.uid)}:
        left.append(f"uids are {fields['Uid']}")
    if set(fields["Gid"].split()) != {str(account.gid)}:
        left.append(f"gids are {fields['Gid']}")
    if fields["Groups"].split():
        left.append(f"groups are {fields['Groups']}")
    if fields["NoNewPrivs"] != "1":
        left.append("new privileges can be gained")
    return left


def _fields(status: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in status.splitlines())
    return {name: " ".join(value.split()) for name, _, value in pairs}


def _drop_bounding_set() -> None:
    for capability in range(int(_LAST_CAP.read_text()) + 1):
        _prctl(_PR_CAPBSET_DROP, capability)


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _clear_capabilities() -> None:
    """Permitted and effective went with the uid; inheritable does not go by itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)()
    if libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capset: {os.strerror(code)}")
