"""Build templates: `python -m sandpty.templates.build --templates-dir T [NAME]`.

Shows a progress bar (or, with --plain, `progress <percent> <text>` lines). Builders of one directory wait for each
other; a finished tree is moved into place in one step, so nobody ever sees half of one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from sandpty.templates import bootstrap, collecting
from sandpty.templates.locking import locked
from sandpty.templates.names import BASE
from sandpty.templates.progress import Progress, Show, parse
from sandpty.templates.running import BuildError, Program
from sandpty.templates.stacks import STACKS
from sandpty.templates.tree import Tree, describe


def build(templates: Path, name: str, show: Show) -> None:
    """Build what template `name` is stacked from, as far as it is not there. Raises BuildError."""
    stack = STACKS[name]
    for number, tree in enumerate(stack):
        part = len(stack)

        def shown(progress: Progress, number: int = number, part: int = part, tree: Tree = tree) -> None:
            text = progress.text if part == 1 else f"{tree.name}: {progress.text}"
            show(Progress((number * 100 + progress.percent) / part, text))

        _build_tree(templates, tree, stack[:number], shown)
    collecting.collect(templates)
    show(Progress(100, f"{name} is ready"))


def _build_tree(templates: Path, tree: Tree, below: tuple[Tree, ...], show: Show) -> None:
    """Unless it is there. When it fails nothing is left."""
    if tree.description(templates) is not None:
        return
    with locked(templates, show):
        if tree.description(templates) is not None:
            return
        for left in templates.glob(".building-*"):  # of a builder that was killed
            shutil.rmtree(left, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=".building-", dir=templates))
        try:
            show(Progress(0, "starting"))
            if below:
                _fill_above(new, tree, [each.root(templates) for each in reversed(below)], show)
            else:
                bootstrap.fill(new, show)
            for path in new.iterdir():
                if path.name != "rootfs":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            describe(new, time.time())
            os.rename(new, tree.place(templates))
        except OSError as error:
            raise BuildError(f"{error.strerror or error}") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _fill_above(new: Path, tree: Tree, below: list[Path], show: Show) -> None:
    def line(text: str) -> None:
        if progress := parse(text):
            show(progress)

    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "sandpty.templates.root"]
    Program([*argv, tree.name, str(new), *map(str, below)]).finish(line, what=f"building {tree.name}")


def _plain(progress: Progress) -> None:
    print(f"progress {progress.percent:.0f} {progress.text}", flush=True)


def _with_bar(templates: Path, name: str) -> None:
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn(f"building template {name}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[phase]}"),
    )
    with Bar(*columns, TimeElapsedColumn()) as bar:
        task = bar.add_task(name, total=100, phase="")

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.percent, phase=progress.text)

        build(templates, name, show)


def main(argv: list[str] | None = None) -> int:
    """Exit status 0: the template is ready; 1: it could not be built, with one line that says why."""
    parser = argparse.ArgumentParser(prog="sandpty-build-template", description=__doc__)
    parser.add_argument("--templates-dir", type=Path, required=True)
    parser.add_argument("--plain", action="store_true", help="lines instead of a bar")
    parser.add_argument("template", nargs="?", choices=list(STACKS), default=BASE)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it cleans up
    templates, name = options.templates_dir.resolve(), options.template
    try:
        if options.plain:
            last: list[str] = []

            def show(progress: Progress) -> None:
                key = f"{progress.percent:.0f} {progress.text}"
                if last != [key]:
                    last[:] = [key]
                    _plain(progress)

            build(templates, name, show)
        else:
            _with_bar(templates, name)
    except BuildError as error:
        print(f"sandpty: template {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sandpty: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
