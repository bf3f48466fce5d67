"""Every command explains itself: what it does, each option, examples."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sandpty.cli.main import cli


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The tree of commands, each with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, (*path, name))


ALL = dict(commands(cli))
REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md"


def test_the_commands_of_the_readme_are_there() -> None:
    """serve, env, ls, create, kill, shell, doctor, down."""
    assert {path[0] for path in ALL if path} >= {"serve", "env", "ls", "create", "kill", "shell", "doctor", "down"}


@pytest.mark.parametrize("path", list(ALL), ids=lambda path: " ".join(path) or "sandpty")
def test_help_is_complete(path: tuple[str, ...]) -> None:
    """A sentence, an explanation of every option, and at least one example that names the command."""
    command = ALL[path]
    shown = CliRunner().invoke(cli, [*path, "--help"])
    assert shown.exit_code == 0
    assert command.help
    assert command.get_short_help_str(200).endswith("."), "the list of commands shows whole sentences"
    assert "..." not in command.get_short_help_str(80), "and they fit in one line"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{option.opts} has no help"
    if path:
        assert "Examples:" in shown.output
        assert f"sandpty {' '.join(path)}" in shown.output


@pytest.mark.parametrize("path", [path for path in ALL if path], ids=" ".join)
def test_the_reference_names_every_command_and_option(path: tuple[str, ...]) -> None:
    """docs/reference/cli.md is complete."""
    text = REFERENCE.read_text()
    assert f"`{path[-1]}" in text or f"sandpty {' '.join(path)}" in text
    for option in ALL[path].params:
        if isinstance(option, click.Option):
            for name in option.opts:
                assert f"`{name}" in text, name


def test_help_comes_without_loading_servers_or_clients() -> None:
    """`sandpty --help` is quick: nothing heavy is imported for it."""
    heavy = ("aiohttp", "httpx", "websockets", "uvloop", "asyncio", "rich", "msgspec")
    script = (
        "import sys\nfrom sandpty.cli.main import run, cli\n"
        "run(lambda: cli.main(['--help'], prog_name='sandpty', standalone_mode=False))\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Commands:" in done.stdout


def test_exec_loads_only_what_it_needs() -> None:
    """A whole `sandpty exec` may take a quarter of a second, which is what these take to load."""
    script = (
        "import sys\nfrom sandpty.cli.main import run, cli\n"
        "run(lambda: cli.main(['exec', 'ID', 'true'], prog_name='sandpty', standalone_mode=False))\n"
        "heavy = ('aiohttp', 'httpx', 'rich', 'msgspec', 'uvloop', 'asyncio', 'ssl', 'sandpty.sdk._async')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    env = {**os.environ, "SANDPTY_URL": "http://127.0.0.1:9", "SANDPTY_API_KEY": "k"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "no sandpty server answers" in done.stderr


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["ls", "--nonsense"], ["kill"], ["serve", "--port", "x"], ["create", "--metadata", "x"]],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_status_2(words: list[str]) -> None:
    """It says what is wrong, and which --help to read."""
    done = subprocess.run(
        [sys.executable, "-m", "sandpty.cli.main", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("sandpty: ")
    assert "--help shows what there is)" in done.stderr
