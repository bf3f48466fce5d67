"""What a sandbox needs of an image: an account `user` who may become root, and places to mount on.

Runs where `/` is the image's tree (confined.py), after its last layer; nothing of the image is executed. What is added
is what E2B adds to its templates: `user`, with the next free id from 1000 on, and its right to sudo without a password.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import PurePosixPath

from sandpty import config
from sandpty.images.unpacking import hostile

USER = "user"
_FIRST_ID, _LAST_ID = 1000, 59_999
_DIGITS_MAX = 10  # of an id
_PLACES = {"dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o555, "root": 0o700, "run": 0o755, "sys": 0o555}
_TEMPORARY = {"tmp": 0o1777}
_SHELLS = ("/bin/bash", "/usr/bin/bash", "/bin/sh")
_ADMINISTRATORS = ("sudo", "wheel")
_SUDOERS = "/etc/sudoers.d/90-sandpty-user"
_SKEL = "/etc/skel"


@dataclass(frozen=True, slots=True)
class Prepared:
    """user: whom the image's processes run as, "" for `user`. workdir: "" for a home."""

    user: str
    workdir: str
    notices: tuple[str, ...]


def prepare(user: str, workdir: str) -> Prepared:
    """`user` and `workdir` as the image's configuration has them. Raises bad_image, OSError."""
    notices: list[str] = []
    for name, mode in {**_PLACES, **_TEMPORARY}.items():
        _place(f"/{name}", mode, notices)
    accounts = _Lines("/etc/passwd", 0o644)
    if accounts.find("root") is None:
        accounts.lines.insert(0, f"root:x:0:0:root:/root:{_shell()}")
    if accounts.find(USER) is None:
        _add_user(accounts)
        notices.append(f"the account `{USER}` was added")
    accounts.write()
    _allow_sudo()
    return Prepared(_name_of(user, accounts, notices), _working(workdir, notices), tuple(notices))


def _place(path: str, mode: int, notices: list[str]) -> None:
    """A directory, whatever the image has there."""
    try:
        there = os.lstat(path).st_mode
    except FileNotFoundError:
        there = 0
    if stat.S_ISDIR(there):
        return
    if there:
        os.unlink(path)
        notices.append(f"{path} was no directory and is an empty one now")
    os.mkdir(path)
    os.chmod(path, mode)


class _Lines:
    """A file of accounts: fields between colons. One that is missing, or no plain file, is empty."""

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        self._mode = mode
        data = _content(path, config.IMAGE_ACCOUNTS_BYTES)
        self.there = data is not None
        lines = (data or b"").decode("utf-8", "surrogateescape").split("\n")
        self.lines = [line for line in lines if line]

    @property
    def fields(self) -> list[list[str]]:
        return [line.split(":") for line in self.lines]

    def find(self, name: str) -> list[str] | None:
        return next((fields for fields in self.fields if fields[0] == name), None)

    def numbers(self, column: int) -> set[int]:
        told = (fields[column] for fields in self.fields if len(fields) > column)
        return {int(text) for text in told if text.isdecimal() and len(text) <= _DIGITS_MAX}

    def write(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(self._path).st_mode):
                os.unlink(self._path)
        if not self.there:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)  # a link to nowhere
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, self._mode)
        with open(fd, "wb") as file:
            file.write("".join(f"{line}\n" for line in self.lines).encode("utf-8", "surrogateescape"))


def _content(path: str, size_max: int, flags: int = 0) -> bytes | None:
    """None: no plain file there. Raises bad_image for one that is too large."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except OSError:
        return None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        data = file.read(size_max + 1)
    if len(data) > size_max:
        raise hostile("a file is too large", path)
    return data


def _add_user(accounts: _Lines) -> None:
    groups = _Lines("/etc/group", 0o644)
    taken = accounts.numbers(2) | groups.numbers(2)
    number = next((each for each in range(_FIRST_ID, _LAST_ID + 1) if each not in taken), None)
    if number is None:
        raise hostile("no id is free for an account", USER)
    home = f"/home/{USER}"
    accounts.lines.append(f"{USER}:x:{number}:{number}:{USER}:{home}:{_shell()}")
    if groups.find("root") is None:
        groups.lines.insert(0, "root:x:0:")
    own = groups.find(USER)
    if own is None:
        groups.lines.append(f"{USER}:x:{number}:")
    groups.lines = [_joined(line) for line in groups.lines]
    groups.write()
    for path, line in (("/etc/shadow", f"{USER}:*:19000:0:99999:7:::"), ("/etc/gshadow", f"{USER}:!::")):
        hidden = _Lines(path, 0o640)
        if hidden.there and hidden.find(USER) is None:
            hidden.lines.append(line)
            hidden.write()
    _make_home(home, number)


def _joined(line: str) -> str:
    """The line of a group of administrators, with the user in it."""
    fields = line.split(":")
    if fields[0] in _ADMINISTRATORS and len(fields) == 4:
        members = [name for name in fields[3].split(",") if name]
        return ":".join([*fields[:3], ",".join([*members, USER] if USER not in members else members)])
    return line


def _make_home(home: str, number: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(home)
    if not stat.S_ISDIR(os.lstat(home).st_mode):
        raise hostile("not a directory", home)
    os.chown(home, number, number)
    os.chmod(home, 0o755)
    names = sorted(os.listdir(_SKEL))[: config.IMAGE_SKEL_FILES_MAX] if os.path.isdir(_SKEL) else []
    for name in names:
        place = f"{home}/{name}"
        data = _content(f"{_SKEL}/{name}", config.IMAGE_SKEL_FILE_BYTES, os.O_NOFOLLOW)
        if data is None or os.path.lexists(place):
            continue
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as file:
            file.write(data)
            os.fchown(fd, number, number)


def _allow_sudo() -> None:
    """Also where there is no sudo yet: a package that brings it reads this directory."""
    directory = os.path.dirname(_SUDOERS)
    if not os.path.lexists(directory):
        os.mkdir(directory)
        os.chmod(directory, 0o750)
    if os.path.isdir(directory) and not os.path.lexists(_SUDOERS):
        fd = os.open(_SUDOERS, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o440)
        with open(fd, "wb") as file:
            file.write(f"{USER} ALL=(ALL:ALL) NOPASSWD: ALL\n".encode())


def _shell() -> str:
    return next((shell for shell in _SHELLS if os.path.isfile(shell)), "/bin/sh")


def _name_of(user: str, accounts: _Lines, notices: list[str]) -> str:
    """An image may name its user by number; processes of sandboxes are started by name."""
    wanted = user.partition(":")[0]
    if wanted in ("", "0", "root"):
        return ""
    for fields in accounts.fields:
        if len(fields) > 2 and wanted in (fields[0], fields[2]):
            return "" if fields[0] == USER else fields[0]
    notices.append(f"its user {wanted[:64]!r} has no account: processes start as `{USER}`")
    return ""


def _working(workdir: str, notices: list[str]) -> str:
    if not workdir:
        return ""
    path = str(PurePosixPath("/") / workdir)
    try:
        if path.count("/") > config.IMAGE_DEPTH_MAX:
            raise ValueError("too deep")
        os.makedirs(path, exist_ok=True)
    except (OSError, ValueError):
        notices.append(f"its working directory {path[:200]!r} is none")
        return ""
    return path
