"""OCI runtimes on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sandpty.isolation import versions
from sandpty.isolation.driver import TierRefusedError

RUNTIME_PATH_VARIABLE = "SANDPTY_RUNTIME_PATH"  # for a runtime that is installed elsewhere
_SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ERROR_BYTES = 300  # of the runtime's own words


@dataclass(frozen=True, slots=True)
class Runtime:
    """An OCI runtime on this machine."""

    name: str
    path: str
    version: str


def find_runtime(name: str) -> Runtime:
    """The runtime for `auto`, `crun`, `runc` or `runsc`. Raises TierRefusedError: missing, or a known-bad version."""
    wanted = ["crun", "runc"] if name == "auto" else [name]
    for candidate in wanted:
        path = os.environ.get(RUNTIME_PATH_VARIABLE) or shutil.which(candidate, path=_SEARCHED)
        if path is None:
            continue
        try:
            done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            raise TierRefusedError(f"{candidate} does not run: {error}") from error
        version = versions.parse(done.stdout)
        if reason := versions.known_bad(candidate, version):
            raise TierRefusedError(f"{candidate} {version} is not usable: {reason}")
        return Runtime(candidate, path, version)
    raise TierRefusedError(f"{' or '.join(wanted)} is not installed (Debian: apt-get install {wanted[0]})")


def last_words(path: Path) -> str:
    """Of its log: the last line, shortened."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:_ERROR_BYTES] if lines else "it says nothing"
