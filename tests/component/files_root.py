"""A guest's root of the test's own, with an agent inside that serves its files.

The agent is chrooted into a temporary directory, in a mount namespace of its own: nothing it is asked to do can reach
the machine's files, and what is mounted for it (/proc, a file system of 1 MiB) goes with it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sandpty.terminal.files import Files, open_files
from tests.component.agent_peer import Agent, built_agent

USER, OTHER, GROUP = 1000, 1001, 50
PASSWD = f"""root:x:0:0:root:/root:/bin/sh
user:x:{USER}:{USER}:,,,:/home/user:/bin/sh
other:x:{OTHER}:{OTHER}::/home/other:/bin/sh
"""
GROUPS = f"root:x:0:\nuser:x:{USER}:\nother:x:{OTHER}:\nstaff:x:{GROUP}:user\n"
SHARED = ("usr", "lib", "lib64")  # of the machine, read-only: what a sanitizer build needs


class FilesRoot:
    """`root` is the guest's / as the test sees it; `agent` serves it."""

    def __init__(self, root: Path, agent: Agent) -> None:
        self.root = root
        self.agent = agent

    def path(self, guest: str) -> Path:
        """A guest path as the test sees it (not below what is mounted inside)."""
        assert guest.startswith("/")
        return self.root / guest[1:]

    async def open(self, user: str = "user") -> Files:
        """A files connection."""
        return await open_files(str(self.agent.path), user)

    def children(self) -> list[int]:
        """The agent's children."""
        return self.agent.children()


def _furnish(root: Path) -> None:
    for name in ("etc", "root", "home/user", "home/other", "proc", "dev", "small"):
        (root / name).mkdir(parents=True)
    for name in ("tmp", "var/tmp"):
        (root / name).mkdir(parents=True)
        (root / name).chmod(0o1777)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUPS)
    os.chown(root / "home/user", USER, USER)
    os.chown(root / "home/other", OTHER, OTHER)
    (root / "home/other").chmod(0o700)
    os.mknod(root / "dev/null", 0o666 | 0o020000, os.makedev(1, 3))
    os.mknod(root / "dev/zero", 0o666 | 0o020000, os.makedev(1, 5))
    (root / "dev/null").chmod(0o666)


def _script(root: Path, sanitized: bool) -> str:
    lines = [f"mount -t proc proc {root}/proc", f"mount -t tmpfs -o size=1m,mode=1777 tmpfs {root}/small"]
    for name in SHARED if sanitized else ():
        source = Path("/") / name
        if source.is_symlink():
            (root / name).symlink_to(source.readlink())
        elif source.is_dir():
            (root / name).mkdir()
            lines += [f"mount --bind {source} {root}/{name}", f"mount -o remount,bind,ro {root}/{name}"]
    lines.append(f'exec chroot {root} /agent "$1"')
    return f'exec unshare --mount --propagation private sh -ec {shlex.quote("; ".join(lines))} sh "$1"'


@contextlib.contextmanager
def files_root(sanitized: bool = False) -> Iterator[FilesRoot]:
    """A guest with an agent for the time of a test (needs root, as the whole suite does)."""
    sanitized = sanitized or bool(os.environ.get("SANDPTY_TEST_SANITIZED"))
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as directory:
        root = Path(directory) / "root"
        root.mkdir(mode=0o755)
        Path(directory).chmod(0o755)
        _furnish(root)
        shutil.copy(built_agent(sanitized=sanitized), root / "agent")
        with Agent(prepared=_script(root, sanitized)) as agent:
            yield FilesRoot(root, agent)
