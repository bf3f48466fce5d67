"""Making the `base` tree with mmdebstrap."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sandpty.templates import apt, base
from sandpty.templates.progress import Progress, Reader, Show
from sandpty.templates.running import BuildError, Program


def _command(target: Path, work: Path) -> list[str]:
    if shutil.which("mmdebstrap") is None:
        raise BuildError("mmdebstrap is not installed (Debian: apt-get install mmdebstrap)")
    try:
        sources = apt.sources()
    except RuntimeError as error:
        raise BuildError(str(error)) from error
    argv = ["unshare", "--mount", "mmdebstrap", "--verbose", "--mode=root", "--variant=apt", "--format=directory"]
    argv += [f"--include={','.join(base.PACKAGES)}"]
    argv += [f"--aptopt={line}" for line in apt.host_options()]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in base.EXCLUDED]
    argv += [f"--dpkgopt=path-include={pattern}" for pattern in base.INCLUDED]
    argv += [sources.suite, str(target)]
    for name, text in (("host.sources", sources.deb822), ("host.list", sources.one_line)):
        if text:
            path = work / name
            path.write_text(text + "\n", encoding="utf-8")
            argv.append(str(path))
    return argv


def fill(new: Path, show: Show) -> None:
    """Make `new`/rootfs. Raises BuildError."""
    root = new / "rootfs"
    reader = Reader()
    umask = os.umask(0o022)  # what is made in the template is for its users to read
    try:
        Program(_command(root, new)).finish(lambda line: show(reader.feed(line)), what="mmdebstrap")
        show(Progress(98, "setting up users"))
        base.finish(root)
    finally:
        os.umask(umask)
