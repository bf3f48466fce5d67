"""The README's tour runs as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server_fixture import RunningServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def environment(server: RunningServer) -> dict[str, str]:
    """What a reader's shell has after the README's `eval` line: it is run, not imitated."""
    env_command = shlex.join([sys.executable, "-m", "sandpty.cli.main", "env", "--data-dir", str(server.data_dir)])
    shown = subprocess.run(
        ["bash", "-c", f'eval "$({env_command})"; env -0'], check=True, capture_output=True, text=True, timeout=30
    )
    return dict(item.split("=", 1) for item in shown.stdout.split("\0") if "=" in item)


def test_the_tour_runs_as_printed(server: RunningServer) -> None:
    """The Python of the tour, by E2B's own SDK: the terminal's ticks are there once, and its exit code."""
    (tour,) = [text for language, text in BLOCKS if language == "python"]
    ran = subprocess.run(
        [sys.executable, "-c", tour], env=environment(server), capture_output=True, text=True, timeout=90, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "user" in ran.stdout
    for number in (1, 2, 3):
        assert ran.stdout.count(f"tick {number}\n") == 1
    assert "exited with code 7" in ran.stdout


def test_the_commands_of_the_readme_exist() -> None:
    """Every `sandpty` and `scripts/` command in the README's blocks is there, with the options it is given."""
    lines = [line.split("#")[0].strip() for language, text in BLOCKS if not language for line in text.splitlines()]
    commands = re.findall(r"(?:\.venv/bin/sandpty|scripts)[ /](\w+)", "\n".join(lines))
    assert {"serve", "env", "shell", "ls", "down"} <= set(commands)
    for line in lines:
        if line.startswith("scripts/"):
            assert os.access(ROOT / line.split()[0], os.X_OK)
    for name in set(re.findall(r"\.venv/bin/sandpty (\w+)", "\n".join(lines))):
        shown = subprocess.run(
            [sys.executable, "-m", "sandpty.cli.main", name, "--help"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert shown.returncode == 0, name


@pytest.mark.parametrize("page", sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("*.md")))
def test_every_link_leads_somewhere(page: str) -> None:
    """Links between the documents are not broken."""
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))
def test_every_link_of_the_docs_leads_somewhere(page: str) -> None:
    """The same for the pages in docs/."""
    test_every_link_leads_somewhere(page)


def programs(page: str) -> list[str]:
    """The Python of a page, program by program."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


PRINTED = {
    "docs/reference/sdk.md": [
        "Linux\n3 no\n0\n",
        "5\n",
        "buy milk\nb'\\x00\\xff' ['today.txt']\n{size} {size}\nroot -rw-r--r-- 5\nTrue\n".format(
            size=sum(len(f"{number},{number**2}\n") for number in range(1000))
        ),
    ],
    "docs/tutorials/sdk.md": [
        "hello, world 0\n",
        "CommandExitError 3\nTrue\n",
        "0 1\n",
        f"{64 * 1024 * 1024} True\n",
        "[0, 1, 4, 9, 16]\n",
    ],
}


@pytest.mark.parametrize(
    ("page", "number"), [(page, number) for page, printed in PRINTED.items() for number in range(len(printed))]
)
def test_the_programs_of_the_sdks_pages_run_as_printed(server: RunningServer, page: str, number: int) -> None:
    """With nothing but the environment that `sandpty env` prints."""
    assert len(programs(page)) == len(PRINTED[page])
    ran = subprocess.run(
        [sys.executable, "-c", programs(page)[number]],
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == (PRINTED[page][number], "")
