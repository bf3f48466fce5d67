"""Compile the agent with the C compiler of the `ziglang` wheel: static, no system compiler needed.

    python agent/build.py [--arch x86_64|aarch64 ...] [--out DIR] [--sanitize]

Also imported by hatch_build.py: `build(out_dir, arches)`.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
REPOSITORY = SOURCES.parent
DEFAULT_OUT = REPOSITORY / "src" / "sandpty" / "agent"
ARCHES = ("x86_64", "aarch64")
WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wshadow")
RELEASE = ("-static", "-Os", "-s", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections")
SANITIZE = ("-g", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")


def machine_arch() -> str:
    """This machine's name among ARCHES."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def _files() -> list[Path]:
    return sorted(SOURCES.glob("*.[ch]"))


def stamp_of(command: Sequence[str]) -> str:
    """A hash of the command and of all sources."""
    digest = hashlib.sha256(repr(list(command)).encode())
    for file in _files():
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def _cache_dir() -> Path:
    """What belongs to this checkout."""
    local = REPOSITORY / ".cache"
    return local if _writable(local) else Path(tempfile.gettempdir()) / f"sandpty-build-{os.getuid()}"


def _zig_cache(cache: Path) -> Path:
    """Where zig keeps its C library, compiled: a minute's work that all checkouts share. HOME may not be writable."""
    if named := os.environ.get("ZIG_GLOBAL_CACHE_DIR"):
        return Path(named)
    shared = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "zig"
    return shared if shared.is_absolute() and _writable(shared) else cache / "zig"


def _run(command: Sequence[str], output: Path, cache: Path) -> None:
    environment = os.environ | {
        "ZIG_GLOBAL_CACHE_DIR": str(_zig_cache(cache)),
        "ZIG_LOCAL_CACHE_DIR": str(cache / "zig-local"),
    }
    # Beside the target, then renamed: whoever runs the old binary keeps it, and nobody ever sees half of the new one.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".agent-") as scratch:
        made = Path(scratch) / output.name
        # Of a compiler below the working directory zig keeps other C libraries than of the same one elsewhere.
        result = subprocess.run(
            [*command, "-o", str(made.absolute())],
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise RuntimeError(f"compiling the agent failed:\n{' '.join(command)}\n{result.stderr}")
        made.chmod(0o755)
        made.rename(output)


def mark_of(output: Path) -> Path:
    """Where the stamp of an output lies: in the cache, not in the package; several outputs have several."""
    return _cache_dir() / f"agent-{hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:16]}.stamp"


def _compile(command: Sequence[str], output: Path) -> Path:
    """Run the compiler unless `output` was made from the same sources by the same command."""
    output.parent.mkdir(parents=True, exist_ok=True)
    cache = _cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    stamp, mark = stamp_of(command), mark_of(output)
    with (cache / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs may start at once
        if not (output.is_file() and mark.is_file() and mark.read_text() == stamp):
            _run(command, output, cache)
            mark.write_text(stamp)
    return output


def build(out_dir: Path = DEFAULT_OUT, arches: Sequence[str] = ARCHES) -> list[Path]:
    """Make `agent-<arch>` in `out_dir` for each of `arches`; skip those that are up to date.

    Raises ValueError for an unknown architecture, RuntimeError with the compiler's words when it fails.
    """
    return [_compile(command_for(arch), Path(out_dir) / f"agent-{arch}") for arch in arches]


def command_for(arch: str) -> list[str]:
    """What compiles the agent, but for its output. Raises ValueError for an unknown architecture."""
    if arch not in ARCHES:
        raise ValueError(f"no agent for architecture {arch!r}: choose from {', '.join(ARCHES)}")
    sources = [str(file) for file in _files() if file.suffix == ".c"]
    return [sys.executable, "-m", "ziglang", "cc", "-target", f"{arch}-linux-musl", *RELEASE, *WARNINGS, *sources]


def build_sanitized(out_dir: Path) -> Path:
    """Make `agent-sanitize` for this machine: bad memory access and undefined behaviour end it with a report.

    With gcc or clang both are checked; without one, zig checks undefined behaviour alone.
    """
    sources = [str(file) for file in _files() if file.suffix == ".c"]
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is not None:
        command = [compiler, *SANITIZE, "-fsanitize=address,undefined", *WARNINGS, *sources]
    else:
        target = f"{machine_arch()}-linux-musl"
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-static", *SANITIZE]
        command += ["-fsanitize=undefined", *WARNINGS, *sources]
    return _compile(command, Path(out_dir) / "agent-sanitize")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compile the sandpty agent.")
    parser.add_argument("--arch", action="append", choices=ARCHES, help="repeatable; default: all")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="directory of the binaries")
    parser.add_argument("--sanitize", action="store_true", help="a build for tests instead, with sanitizers")
    arguments = parser.parse_args()
    out, arches = arguments.out, arguments.arch or ARCHES
    made = [build_sanitized(out)] if arguments.sanitize else build(out, arches)
    for path in made:
        print(f"{path} {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
