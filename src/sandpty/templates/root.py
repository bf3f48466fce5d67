"""The root file system of a template while it is built: the trees below it, with a new one on top that takes changes.

`python -m sandpty.templates.root TREE NEW BELOW...` fills the tree named TREE in NEW/rootfs above BELOW (the nearest
first). It is a program of its own in its own mount namespace (`unshare --mount`): its mounts end with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sandpty.isolation import syscalls
from sandpty.templates import apt
from sandpty.templates.progress import Progress
from sandpty.templates.running import BuildError, Program, environment

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_IN_ROOT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
# A tree must mean the same wherever it is stacked: no references from it to the trees below.
_PORTABLE = "redirect_dir=off,index=off,metacopy=off"


class Root:
    """`path`: where it is mounted. `work`: for files of the build itself."""

    def __init__(self, path: Path, work: Path) -> None:
        self.path = path
        self._work = work

    def run(self, argv: Sequence[str], *, what: str = "") -> None:
        """Run a program in it, as root, to its end. Raises BuildError."""
        Program(["chroot", str(self.path), *argv], _IN_ROOT).finish(what=what or argv[0])

    def output(self, argv: Sequence[str]) -> str:
        """What a program in it prints. Raises BuildError."""
        done = subprocess.run(
            ["chroot", str(self.path), *argv], capture_output=True, text=True, env=_IN_ROOT, check=False
        )
        if done.returncode != 0:
            raise BuildError(f"{argv[0]} fails in the template: {done.stderr.strip()[-200:]}")
        return done.stdout

    def apt_install(self, packages: Sequence[str]) -> None:
        """By the host's apt, from the template's sources (which are the host's). Raises BuildError."""
        conf = self._work / "apt.conf"
        lines = [
            f'Dir "{self.path}/";',
            f'Dir::State::Status "{self.path}/var/lib/dpkg/status";',
            'Dir::Etc::Trusted "/etc/apt/trusted.gpg";',
            'Dir::Etc::TrustedParts "/etc/apt/trusted.gpg.d/";',
            f'DPkg::Chroot-Directory "{self.path}";',
            'Dpkg::Use-Pty "false";',
            'APT::Sandbox::User "root";',
            'APT::Install-Recommends "false";',
            *apt.host_options(),
        ]
        conf.write_text("\n".join(lines) + "\n", encoding="utf-8")
        env = environment({"APT_CONFIG": str(conf)})
        Program(["apt-get", "update", "--quiet"], env).finish(what="apt-get update")
        Program(["apt-get", "install", "--yes", "--quiet", *packages], env).finish(what="apt-get install")

    @contextlib.contextmanager
    def bound(self, source: Path, target: str) -> Iterator[None]:
        """`source` shows at `target` (a directory in it) meanwhile."""
        place = str(self.path / target.lstrip("/"))
        syscalls.mount(str(source), place, "none", syscalls.MS_BIND)
        try:
            yield
        finally:
            syscalls.unmount(place)


@contextlib.contextmanager
def mounted(new: Path, below: Sequence[Path]) -> Iterator[Root]:
    """The root file system over `below`; what changes goes to `new`/rootfs."""
    upper, work, merged = new / "rootfs", new / "overlay-work", new / "merged"
    for directory in (upper, work, merged):
        directory.mkdir(mode=0o755)
    lower = ":".join(str(path) for path in below)
    options = f"lowerdir={lower},upperdir={upper},workdir={work},{_PORTABLE}"
    syscalls.mount("overlay", str(merged), "overlay", 0, options)
    syscalls.mount("proc", str(merged / "proc"), "proc")
    for name, mode in (("dev", "0755"), ("tmp", "1777"), ("run", "0755")):
        syscalls.mount("tmpfs", str(merged / name), "tmpfs", 0, f"mode={mode}")
    (merged / "dev/shm").mkdir(mode=0o1777)
    (merged / "dev/fd").symlink_to("/proc/self/fd")
    for name in _DEVICES:
        (merged / "dev" / name).touch()
        syscalls.mount(f"/dev/{name}", str(merged / "dev" / name), "none", syscalls.MS_BIND)
    # Services that packages bring must not start here.
    policy = merged / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    policy.chmod(0o755)
    yield Root(merged, new)
    policy.unlink()
    for mount in [*(f"dev/{name}" for name in _DEVICES), "run", "tmp", "dev", "proc", ""]:
        syscalls.unmount(str(merged / mount))
    merged.rmdir()
    shutil.rmtree(work)


def main(argv: list[str]) -> int:
    """Lines `progress <percent> <text>`; exit status 1 and one line when it fails."""
    from sandpty.templates.stacks import FILLERS

    name, new, *below = argv

    def show(progress: Progress) -> None:
        print(f"progress {progress.percent:.0f} {progress.text}", flush=True)

    os.umask(0o022)
    try:
        with mounted(Path(new), [Path(path) for path in below]) as root:
            FILLERS[name](root, Path(new), show)
    except (BuildError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
