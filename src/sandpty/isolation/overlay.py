"""A sandbox's root file system: read-only layers with shifted owners below, one writable directory of its own above."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandpty.isolation import syscalls
from sandpty.isolation.driver import Layer
from sandpty.isolation.idmap import IdRange

READ_BYTES_MAX = 64 * 1024  # of a file that the guest may have written
_ESCAPED = re.compile(rb"\\([0-7]{3})")  # blanks, newlines and backslashes in /proc/self/mounts
_OPAQUE = "trusted.overlay.opaque"  # an upper directory with it hides the lower one


def _make_upper(upper: Path, work: Path, hidden_names: Sequence[str], ids: IdRange) -> None:
    upper.mkdir(mode=0o755)
    upper.chmod(0o755)
    os.chown(upper, ids.base, ids.base)
    work.mkdir(mode=0o700)
    for name in hidden_names:
        hidden = upper / name
        hidden.mkdir(mode=0o755)
        hidden.chmod(0o755)
        os.chown(hidden, ids.base, ids.base)
        os.setxattr(hidden, _OPAQUE, b"y")


def make_writable(disk: Path, layers: Sequence[Layer], ids: IdRange, *, hide: bool = True) -> None:
    """Make the upper and work directories below `disk`, unless an earlier run of the sandbox left them.

    Not `hide`: what stands on a copy finds the layers' hidden directories hidden, and perhaps filled, there.
    """
    for number, layer in enumerate(layers):
        upper = disk / f"upper{number}"
        if not upper.exists():
            _make_upper(upper, disk / f"work{number}", layer.hidden if hide else (), ids)


def write_files(disk: Path, files: dict[str, str], ids: IdRange) -> None:
    """Put text files (absolute paths in the sandbox) into the first layer's upper directory, as the guest's root.

    Only for a sandbox that has never run: afterwards what is in there is the guest's, links and all.
    """
    for path, text in files.items():
        target = disk / "upper0" / path.lstrip("/")
        for parent in reversed(target.relative_to(disk / "upper0").parents[:-1]):
            directory = disk / "upper0" / parent
            if not directory.exists():
                directory.mkdir()
                directory.chmod(0o755)
                os.chown(directory, ids.base, ids.base)
        target.write_text(text, encoding="utf-8", errors="surrogateescape")
        target.chmod(0o644)
        os.chown(target, ids.base, ids.base)


@dataclass(frozen=True, slots=True)
class Shifted:
    """A tree, and the user namespace whose map shifts its owners."""

    tree: Path
    userns_fd: int


def read_file(disks: Sequence[Path], path: str) -> str | None:
    """A small text file as the copies in `disks` (the topmost first) have it; None when there is no plain one.

    The trees are a guest's work: no link in them is followed, and nothing big is read.
    """
    for disk in disks:
        with contextlib.ExitStack() as opened:
            try:
                fd = _opened(disk / "upper0", os.O_PATH | os.O_DIRECTORY, None, opened)
                *parents, name = path.strip("/").split("/")
                for parent in parents:
                    fd = _opened(parent, os.O_PATH | os.O_DIRECTORY, fd, opened)
                fd = _opened(name, os.O_RDONLY | os.O_NONBLOCK, fd, opened)
            except FileNotFoundError:
                continue
            except OSError:
                return None
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            data = os.read(fd, READ_BYTES_MAX + 1)
            return data.decode("utf-8", "surrogateescape") if len(data) <= READ_BYTES_MAX else None
    return None


def _opened(path: Path | str, flags: int, directory: int | None, held: contextlib.ExitStack) -> int:
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    held.callback(os.close, fd)
    return fd


def mount(root: Path, disk: Path, layers: Sequence[Layer], userns_fd: int, copies: Sequence[Shifted] = ()) -> None:
    """Mount the layers on `root`; `copies` are disks of other sandboxes, which come between, the topmost first.

    Raises OSError; then nothing stays mounted.
    """
    try:
        for number, layer in enumerate(layers):
            trees = [Shifted(copy.tree / f"upper{number}", copy.userns_fd) for copy in copies]
            trees += [Shifted(tree, userns_fd) for tree in layer.trees]
            with contextlib.ExitStack() as mounted:
                lowers = [
                    _mount_lower(root.with_name(f"lower{number}-{place}"), tree, mounted)
                    for place, tree in enumerate(trees)
                ]
                _mount_layer(root / layer.target.lstrip("/"), disk, number, lowers)
    except OSError:
        unmount(root)
        raise


def _mount_lower(place: Path, shifted: Shifted, mounted: contextlib.ExitStack) -> Path:
    place.mkdir(mode=0o700, exist_ok=True)
    syscalls.mount_idmapped(str(shifted.tree), str(place), shifted.userns_fd)
    mounted.callback(syscalls.unmount, str(place))  # the overlay holds it by itself
    return place


def _mount_layer(target: Path, disk: Path, number: int, lowers: Sequence[Path]) -> None:
    # Named by descriptors: no path of the host shows in the guest's /proc/mounts, and no comma or colon in one hurts.
    with contextlib.ExitStack() as opened:
        names = []
        for path in (*lowers, disk / f"upper{number}", disk / f"work{number}"):
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            names.append(f"/proc/self/fd/{fd}")
        options = f"lowerdir={':'.join(names[:-2])},upperdir={names[-2]},workdir={names[-1]}"
        # On a resume the guest has had its hands on what is below the first layer: no link of its making is followed.
        place = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        opened.callback(os.close, place)
        syscalls.mount("overlay", f"/proc/self/fd/{place}", "overlay", syscalls.MS_NODEV, options)


def unmount(root: Path) -> None:
    """Take away what `mount` made (a running sandbox holds a copy); nothing there is fine."""
    with contextlib.suppress(OSError):
        syscalls.unmount(str(root))


def remove_mountpoints(stage: Path) -> None:
    """Remove a sandbox's empty mount points. Never recursively: what is still mounted there must not be touched."""
    for path in [*stage.glob("*"), stage]:
        with contextlib.suppress(OSError):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()


def unmount_below(directory: Path) -> None:
    """Take away every mount under `directory`, the last one first."""
    for line in reversed(Path("/proc/self/mounts").read_bytes().splitlines()):
        place = os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), line.split(b" ")[1]))
        if place.startswith(f"{directory}/"):
            with contextlib.suppress(OSError):
                syscalls.unmount(place)
