"""Tab in real shells: commands, options, and the sandboxes that are there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cli_fixture import Cli
from tests.e2e.tmux import tmux
from tests.server_fixture import RunningServer
from tests.waiting import until_sync

SETTING_UP = {
    "bash": ("bash --norc --noprofile", 'eval "$(sandpty completion bash)"'),
    "zsh": ("zsh -f", 'autoload -Uz compinit; compinit -u -D; eval "$(sandpty completion zsh)"'),
    "fish": ("fish --no-config", "sandpty completion fish | source"),
}


@pytest.fixture(scope="module")
def cli(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command line, as `sandpty` on the PATH."""
    return Cli(server, Path(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def box(cli: Cli) -> Iterator[str]:
    """One sandbox for this file."""
    with cli.sandbox("--metadata", "owner=ann") as made:
        yield made


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_tab_completes_commands_options_and_sandboxes(cli: Cli, box: str, shell: str) -> None:
    """In the shell itself, with what `sandpty completion` prints, by pressing Tab."""
    env = {**cli.env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(cli.home)}
    start, set_up = SETTING_UP[shell]
    with tmux(cols=120, env=env) as person:
        person.type(f"exec {start}")
        person.type(
            f"clear; {set_up}; echo set $((40 + 2))" if shell != "fish" else f"clear; {set_up}; echo set (math 40+2)"
        )
        person.wait_for("set 42", 30)
        for typed, whole in (
            ("sandpty compl", "sandpty completion "),
            ("sandpty attach --from-s", "sandpty attach --from-start "),
            (f"sandpty attach {box[:-2]}", f"sandpty attach {box} "),
        ):
            person.type(typed, enter=False)
            person.keys("Tab")
            person.type("#", enter=False)  # what follows stands behind what was completed
            person.wait_for(f"{whole}#", 30)
            person.keys("C-u")


def test_terminals_complete_once_the_sandbox_is_known(cli: Cli, box: str) -> None:
    """`sandpty attach ID <Tab>` offers pids; `sandpty kill ID <Tab>` not the same sandbox again."""
    with subprocess.Popen(
        shlex.split(cli.line("exec", "-t", box, "sleep", "600")),
        env=cli.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            found = until_sync(lambda: [line for line in cli.out("ps", box).splitlines() if "80x24" in line], 30)
            assert offered(cli, f"sandpty attach {box} ") == [found[0].split()[0]]
        finally:
            process.kill()
    assert box in offered(cli, "sandpty kill i")
    assert box not in offered(cli, f"sandpty kill {box} i")


def offered(cli: Cli, line: str) -> list[str]:
    """What click tells bash."""
    env = {"_SANDPTY_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = cli.run(env=env)
    assert (done.stderr, done.returncode) == ("", 0)
    return [each.removeprefix("plain,") for each in done.stdout.split()]


def test_a_server_that_is_away_costs_a_tab_nothing(cli: Cli) -> None:
    """No error at a prompt, no long wait: nothing is offered."""
    away = {"SANDPTY_URL": "http://127.0.0.1:9", "SANDPTY_API_KEY": "k"}
    env = {**away, "_SANDPTY_COMPLETE": "bash_complete", "COMP_WORDS": "sandpty kill i", "COMP_CWORD": "2"}
    done = cli.run(env=env)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("", "", 0)


def test_a_shell_that_is_not_known_is_refused(cli: Cli) -> None:
    """Usage, and which there are."""
    done = cli.run("completion", "tcsh")
    assert done.returncode == 2
    assert "bash" in done.stderr
