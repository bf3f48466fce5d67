"""`sandpty shell` as a person sees it: a real pseudo-terminal, keys, the screen."""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.e2e.cli_fixture import Cli
from tests.e2e.tmux import PROMPT, Tmux

DETACHED = "detached; the program goes on"


@pytest.fixture
def shell(cli: Cli, box: str, person: Tmux) -> Tmux:
    """A person in a shell of the sandbox, whose prompt is `guest>`."""
    enter(cli, box, person)
    return person


def enter(cli: Cli, box: str, person: Tmux, *options: str) -> None:
    """Open a shell in the sandbox and give it a prompt to recognise."""
    person.type(cli.line("shell", box, *options) + '; echo "status=$?"')
    person.wait(lambda screen: re.search(r"[$#] *$", screen.rstrip()))
    person.type("PS1='guest> '; clear")
    person.wait(lambda screen: screen.strip() == "guest>")


def leave(person: Tmux) -> None:
    """Press the keys that detach."""
    person.keys("Enter")
    person.type("~.", enter=False)
    person.wait_for("status=")


def test_what_is_typed_runs_in_the_sandbox_and_colours_come_back(shell: Tmux) -> None:
    """A shell prompt, echo, line editing, colours."""
    shell.type("echo $((6 * 7))x", enter=False)
    shell.keys("BSpace", "Enter")
    shell.wait_for("\n42\n")
    shell.type("printf '\\033[31mred\\033[0m\\n'")
    shell.wait_for("\nred\n")
    assert re.search(r"\x1b\[31mred", shell.screen(colours=True))


def test_the_terminal_has_the_size_of_the_window_and_follows_it(shell: Tmux) -> None:
    """Programs are told when the window is dragged."""
    shell.type("stty size")
    shell.wait_for("\n24 80\n")
    shell.type("trap 'stty size' WINCH; echo $((40 + 2))")
    shell.wait_for("\n42\n")
    shell.resize(100, 30)
    shell.keys("Enter")
    shell.wait_for("30 100\n")


def test_control_c_interrupts_the_program_not_the_shell_command(shell: Tmux) -> None:
    """Keys that signal go to the sandbox."""
    shell.type("echo $((40 + 3)); cat")
    shell.wait_for("\n43\n")  # the shell's line editor has left the terminal
    shell.type("still here")
    shell.wait(lambda screen: screen.count("still here") == 2)
    shell.keys("C-c")
    shell.type("echo status $?")
    shell.wait_for("status 130")


def test_detaching_keeps_the_program_and_coming_back_shows_what_was_missed(cli: Cli, box: str, shell: Tmux) -> None:
    """Enter ~ . leaves; the same terminal is there again, with what it said meanwhile."""
    shell.type("kept=state; rm -f /tmp/go; while ! [ -e /tmp/go ]; do sleep 0.02; done; echo missed $((20 + 3))")
    leave(shell)
    screen = shell.wait_for(PROMPT)
    assert DETACHED in screen
    assert box in screen
    assert "status=0" in screen
    shell.clear()
    cli.out("shell", box, "--cmd", "touch /tmp/go")
    shell.type(cli.line("shell", box))
    shell.wait_for("missed 23")
    shell.type("echo $kept")
    shell.wait_for("\nstate\n")


def test_more_than_a_screenful_that_was_missed_is_all_there(cli: Cli, box: str, shell: Tmux) -> None:
    """Every line once, in order, from where one left."""
    shell.type("rm -f /tmp/go; while ! [ -e /tmp/go ]; do sleep 0.02; done; seq 1000 1400; touch /tmp/said")
    leave(shell)
    shell.clear()
    cli.out("shell", box, "--cmd", "touch /tmp/go; while ! [ -e /tmp/said ]; do sleep 0.02; done; rm /tmp/said")
    shell.type(cli.line("shell", box))
    shell.wait_for("1400\n")
    lines = [int(line) for line in shell.screen(history=True).splitlines() if re.fullmatch(r"1\d{3}", line)]
    assert lines == list(range(1000, 1401))


def test_the_exit_status_is_the_programs(cli: Cli, box: str, shell: Tmux) -> None:
    """A code, or 128 + the signal."""
    shell.type("exit 7")
    shell.wait_for("status=7")
    shell.clear()
    shell.type(cli.line("shell", box, "--cmd", "kill -9 $$") + "; echo status=$?")
    shell.wait_for("status=137")


def test_vi_runs_and_detaching_from_it_gives_back_the_local_screen(cli: Cli, box: str, shell: Tmux) -> None:
    """A full-screen program is there again, as it was, after coming back; meanwhile the local shell is a shell."""
    shell.type("vi -u NONE -N /tmp/notes")
    shell.wait(lambda screen: screen.count("\n~") > 15)
    shell.type("iall my notes", enter=False)
    shell.wait_for("all my notes")
    assert shell.alternate_screen()
    leave(shell)
    shell.wait_for(DETACHED)
    assert not shell.alternate_screen()
    assert not shell.mouse_reports()
    shell.type("echo local $((1 + 1))")
    shell.wait_for("local 2")
    shell.type(cli.line("shell", box))
    shell.wait(lambda screen: "all my notes" in screen and screen.count("\n~") > 15)
    shell.keys("Escape")
    shell.type(":wq")
    shell.wait_for("guest>")
    shell.type("cat /tmp/notes")
    shell.wait_for("\nall my notes\n")


def test_the_local_terminal_is_as_it_was_however_one_leaves(cli: Cli, box: str, person: Tmux) -> None:
    """Exit, detach, an error at the start: line editing, echo and signals work as before."""
    before = cli.home / "before"
    person.type(f"stty -g > {before}")
    for number, way in enumerate(("exit", "detach", "error")):
        if way == "error":
            person.type(cli.line("shell", box, "--user", "nobody-here", "--new") + "; echo status=$?")
        else:
            enter(cli, box, person, "--new")
            if way == "exit":
                person.type("exit")
            else:
                person.type("~.", enter=False)
        person.wait_for("status=")
        person.type(f"stty -g | cmp - {before} && echo same-{number}")
        person.wait_for(f"\nsame-{number}")
        person.clear()


def test_a_killed_client_gives_the_terminal_back_and_leaves_the_program(cli: Cli, box: str, shell: Tmux) -> None:
    """SIGTERM is a way to leave like any other."""
    shell.type("echo $$ > /tmp/pid")
    leave(shell)
    shell.clear()
    shell.type(f'(echo $BASHPID > {cli.home}/client; exec {cli.line("shell", box)}); echo "status=$?"')
    shell.wait_for("guest>")
    cli_pid = int((cli.home / "client").read_text())
    os.kill(cli_pid, signal.SIGTERM)
    shell.wait_for("status=143")
    shell.type("stty -a | grep -c ' echo '")
    shell.wait_for("\n1\n")
    processes = cli.out("shell", box, "--cmd", "kill -0 $(cat /tmp/pid) && echo alive")
    assert "alive" in processes


def test_a_viewer_sees_and_cannot_type(cli: Cli, box: str, shell: Tmux) -> None:
    """--read-only: output arrives, keys do not, Ctrl-C leaves."""
    shell.type("echo seen by both; rm -f /tmp/typed")
    leave(shell)
    shell.clear()
    shell.type(cli.line("shell", box, "--read-only") + "; echo status=$?")
    shell.wait_for("seen by both")
    shell.type("touch /tmp/typed")
    shell.keys("C-c")
    shell.wait_for("status=0")
    assert cli.run("shell", box, "--cmd", "test -e /tmp/typed").returncode == 1


def test_pid_comes_back_to_that_process_and_not_the_newest(cli: Cli, box: str, shell: Tmux) -> None:
    """Several terminals in one sandbox are told apart by pid."""
    shell.type("echo pid=$$; name=first")
    pid = re.search(r"pid=(\d+)", shell.wait(lambda screen: re.search(r"pid=\d+", screen)))
    assert pid
    leave(shell)
    shell.clear()
    enter(cli, box, shell, "--new")
    shell.type("name=second")
    leave(shell)
    shell.clear()
    shell.type(cli.line("shell", box, "--pid", pid[1]))
    shell.wait_for("guest>")
    shell.type("echo this is $name")
    shell.wait_for("this is first")


def test_help_is_one_key_away_and_does_not_reach_the_program(shell: Tmux) -> None:
    """Enter ~ ? explains the keys; ~~ types a tilde."""
    shell.type("cat > /tmp/keys")
    shell.type("~?", enter=False)
    shell.wait_for("~.  detach")
    shell.type("~~home")
    shell.keys("C-d")
    shell.type("cat /tmp/keys")
    shell.wait_for("\n~home\n")


def test_a_script_can_use_it_without_a_terminal(cli: Cli, box: str) -> None:
    """Input from a pipe, output to a pipe, the exit status passes."""
    done = cli.run("shell", box, "--new", stdin="echo from-$((40 + 2)); exit 3\n")
    assert done.returncode == 3
    assert "from-42" in done.stdout
    done = cli.run("shell", box, "--cmd", "cat", stdin="to the end\n")
    assert done.returncode == 0
    assert "to the end" in done.stdout


def test_a_sandbox_made_for_a_shell_ends_with_it_unless_one_detached(cli: Cli, person: Tmux) -> None:
    """No ID: a new sandbox; nothing is left behind by `exit`, everything by detaching or --keep."""
    before = set(cli.sandboxes())
    assert cli.run("shell", "--cmd", "true").returncode == 0
    assert set(cli.sandboxes()) == before
    assert cli.run("shell", "--keep", "--cmd", "exit 4").returncode == 4
    (kept,) = set(cli.sandboxes()) - before
    cli.out("kill", kept)
    person.type(cli.line("shell"))
    person.wait(lambda screen: re.search(r"[$#] *$", screen.rstrip()))
    person.keys("Enter")
    person.type("~.", enter=False)
    person.wait_for(DETACHED)
    (left,) = set(cli.sandboxes()) - before
    cli.out("kill", left)
