"""On systems without POSIX's modules (Windows) the client works, and what cannot is said in a line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# An interpreter as there: modules that do not exist, functions that os does not have, loops without signal handlers.
ELSEWHERE = """
import asyncio, os, select, signal, sys
for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty", "uvloop", "readline"):
    sys.modules[name] = None
for name in ("geteuid", "getuid", "getgid", "fork", "setuid", "getpgid", "killpg"):
    delattr(os, name) if hasattr(os, name) else None
for name in ("SIGHUP", "SIGQUIT", "SIGWINCH", "SIGCONT", "SIGKILL", "SIGTSTP", "SIGSTOP"):
    delattr(signal, name)
for name in ("O_CLOEXEC", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "fchmod", "fchown", "mkfifo"):
    delattr(os, name)
del select.poll
def refuse(*_):
    raise NotImplementedError
asyncio.SelectorEventLoop.add_signal_handler = refuse
asyncio.SelectorEventLoop.add_reader = asyncio.SelectorEventLoop.add_writer = refuse
"""


def elsewhere(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code there."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SANDPTY_")}
    env |= {"SANDPTY_URL": "http://127.0.0.1:9", "SANDPTY_API_KEY": "k", "SANDPTY_CONFIG": str(tmp_path / "c.json")}
    return subprocess.run(
        [sys.executable, "-c", ELSEWHERE + code], env=env, capture_output=True, text=True, check=False, timeout=60
    )


def command(*words: str) -> str:
    """A command of ours, run in that process."""
    return f"from sandpty.cli import main\nsys.argv[1:] = {list(words)!r}\nmain.main()"


def test_every_name_of_the_sdk_can_be_imported(tmp_path: Path) -> None:
    """Also those of ports."""
    done = elsewhere(tmp_path, "import sandpty\nfor name in dir(sandpty): getattr(sandpty, name)\nprint('all')")
    assert (done.stdout, done.stderr) == ("all\n", "")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--help",), 0, "Commands:"),
        (("config",), 0, "SANDPTY_URL"),
        (("completion", "fish"), 0, "sandpty"),
        (("ls",), 69, "no sandpty server answers"),
        (("exec", "ID", "true"), 69, "no sandpty server answers"),
        (("port", "ID", "80:0"), 69, "no sandpty server answers"),
        (("attach", "ID"), 2, "need a POSIX system"),
        (("shell", "ID"), 2, "need a POSIX system"),
        (("exec", "-t", "ID", "true"), 2, "need a POSIX system"),
        (("ssh", "ID"), 2, "needs a POSIX system"),
        (("template", "build", "--help"), 0, "Dockerfile"),
        (("template", "ls"), 2, "needs Linux"),
        (("serve",), 2, "needs Linux"),
        (("doctor",), 2, "needs Linux"),
        (("down", "--url", "http://127.0.0.1:9"), 69, "no sandpty server answers"),
        (("keys", "list"), 2, "needs Linux"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_commands_work_or_say_why_not(tmp_path: Path, words: tuple[str, ...], status: int, said: str) -> None:
    """One line, never a traceback."""
    done = elsewhere(tmp_path, command(*words))
    assert said in done.stdout + done.stderr, done.stderr
    assert done.returncode == status
    assert done.stderr.count("\n") == (1 if status else 0)
