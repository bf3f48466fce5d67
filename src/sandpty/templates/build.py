"""Build templates: `python -m sandpty.templates.build --templates-dir T [base]`.

Shows a progress bar (or, with --plain, `progress <percent> <text>` lines). Builders of one directory wait for each
other; a finished template is moved into place in one step, so nobody ever sees half of one.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from sandpty.templates import apt, base
from sandpty.templates.progress import Progress, Reader

Show = Callable[[Progress], None]
_LINES_KEPT = 40  # of the build's output, to find the reason of a failure
_LINE_BYTES_MAX = 300


class BuildError(Exception):
    """The template could not be built; the message is one readable line."""


@contextlib.contextmanager
def _locked(templates: Path, show: Show) -> Iterator[None]:
    templates.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(templates / "build.lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            show(Progress(0, "waiting for another build"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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


def _reason(lines: deque[str]) -> str:
    """The most telling of the last lines."""
    for mark in ("E: ", "error: ", "dpkg: error"):
        for line in lines:
            if line.startswith(mark) and "apt-get" not in line:
                return line.removeprefix("E: ")
    return lines[-1] if lines else "it said nothing"


def _run(argv: list[str], show: Show) -> None:
    reader = Reader()
    kept: deque[str] = deque(maxlen=_LINES_KEPT)
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "TMPDIR": "/tmp"}
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                kept.append(line.strip()[:_LINE_BYTES_MAX])
                show(reader.feed(line))
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise
    if process.returncode != 0:
        raise BuildError(f"mmdebstrap fails: {_reason(kept)}")


def build_base(templates: Path, show: Show) -> None:
    """Build `base` unless it is there. Raises BuildError; then nothing is left."""
    if base.ready(templates) is not None:
        show(Progress(100, "base is ready"))
        return
    with _locked(templates, show):
        if base.ready(templates) is not None:
            show(Progress(100, "base is ready"))
            return
        for left in templates.glob(".building-*"):  # of a builder that was killed
            shutil.rmtree(left, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=".building-", dir=templates))
        try:
            _build_into(new, templates, show)
        except OSError as error:
            raise BuildError(f"{error.strerror or error}") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)
    show(Progress(100, "base is ready"))


def _build_into(new: Path, templates: Path, show: Show) -> None:
    root = new / "rootfs"
    show(Progress(0, "starting"))
    umask = os.umask(0o022)  # what is made in the template is for its users to read
    try:
        _run(_command(root, new), show)
        show(Progress(98, "setting up users"))
        base.finish(root)
    finally:
        os.umask(umask)
    for path in new.iterdir():
        if path.is_file():
            path.unlink()
    base.describe(new, time.time())
    os.rename(new, base.place(templates))


def _plain(progress: Progress) -> None:
    print(f"progress {progress.percent:.0f} {progress.text}", flush=True)


def _with_bar(templates: Path) -> None:
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("building template base"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[phase]}"),
    )
    with Bar(*columns, TimeElapsedColumn()) as bar:
        task = bar.add_task("base", total=100, phase="")

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.percent, phase=progress.text)

        build_base(templates, show)


def main(argv: list[str] | None = None) -> int:
    """Exit status 0: the template is ready; 1: it could not be built, with one line that says why."""
    parser = argparse.ArgumentParser(prog="sandpty-build-template", description=__doc__)
    parser.add_argument("--templates-dir", type=Path, required=True)
    parser.add_argument("--plain", action="store_true", help="lines instead of a bar")
    parser.add_argument("template", nargs="?", choices=["base"], default="base")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it cleans up
    templates = options.templates_dir.resolve()
    try:
        if options.plain:
            last: list[str] = []

            def show(progress: Progress) -> None:
                key = f"{progress.percent:.0f} {progress.text}"
                if last != [key]:
                    last[:] = [key]
                    _plain(progress)

            build_base(templates, show)
        else:
            _with_bar(templates)
    except BuildError as error:
        print(f"sandpty: template base: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sandpty: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
