"""A person at a terminal: tmux runs a local shell in a real pseudo-terminal, tests type and look at the screen."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import until_sync

PROMPT = "local>"
_numbers = itertools.count(1)


class Tmux:
    """One window of a tmux server of its own, with a shell in it whose prompt is `local>`."""

    def __init__(self, cols: int, rows: int, env: Mapping[str, str]) -> None:
        self._socket = f"sp-{os.getpid()}-{next(_numbers)}"
        self._env = {**env, "LC_ALL": "C.UTF-8"}
        self._env.pop("TMUX", None)
        size = ("-x", str(cols), "-y", str(rows))
        self._run("-f", "/dev/null", "new-session", "-d", *size, f"env PS1='{PROMPT} ' bash --norc --noprofile -i")
        self._run("set-option", "-g", "history-limit", "20000")
        self._run("set-window-option", "-g", "window-size", "manual")
        self.wait_for(PROMPT)

    def _run(self, *words: str) -> str:
        command = ["tmux", "-L", self._socket, *words]
        return subprocess.run(command, env=self._env, capture_output=True, text=True, check=True, timeout=20).stdout

    def type(self, text: str, *, enter: bool = True) -> None:
        """Type text, as it is, and Enter."""
        self._run("send-keys", "-l", text)
        if enter:
            self.keys("Enter")

    def keys(self, *names: str) -> None:
        """Press keys by tmux's names: Enter, Escape, C-c."""
        self._run("send-keys", *names)

    def paste(self, text: str) -> None:
        """Paste text, as a terminal does: in brackets when the program asked for them."""
        self._run("set-buffer", text)
        self._run("paste-buffer", "-p")

    def screen(self, *, colours: bool = False, history: bool = False) -> str:
        """What is seen; with `history` also what has scrolled out."""
        options = (["-e"] if colours else []) + (["-S", "-"] if history else [])
        return self._run("capture-pane", "-p", "-J", *options)

    def alternate_screen(self) -> bool:
        """Whether a full-screen program has the terminal."""
        return self._run("display-message", "-p", "#{alternate_on}").strip() == "1"

    def mouse_reports(self) -> bool:
        """Whether a program gets the mouse."""
        return self._run("display-message", "-p", "#{mouse_any_flag}").strip() == "1"

    def resize(self, cols: int, rows: int) -> None:
        """The person drags the window."""
        self._run("resize-window", "-x", str(cols), "-y", str(rows))

    def wait(self, condition: Callable[[str], object], timeout_s: float = 15.0) -> str:
        """The screen, once `condition` of it holds."""
        seen = [""]

        def looks_right() -> bool:
            seen[0] = self.screen()
            return bool(condition(seen[0]))

        try:
            until_sync(looks_right, timeout_s)
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s} s; the screen:\n{seen[0].rstrip()}") from None
        return seen[0]

    def wait_for(self, text: str, timeout_s: float = 15.0) -> str:
        """The screen, once it shows `text`."""
        return self.wait(lambda screen: text in screen, timeout_s)

    def clear(self) -> None:
        """An empty screen with a local prompt."""
        self.type("clear")
        self.wait(lambda screen: screen.strip() == PROMPT)
        self._run("clear-history")

    def close(self) -> None:
        """The person goes away, and everything that ran in the window."""
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], capture_output=True, check=False, timeout=20)
        directory = Path(os.environ.get("TMUX_TMPDIR", "/tmp")) / f"tmux-{os.getuid()}"
        (directory / self._socket).unlink(missing_ok=True)  # tmux leaves it


@contextmanager
def tmux(*, cols: int = 80, rows: int = 24, env: Mapping[str, str]) -> Iterator[Tmux]:
    """A person at a terminal with this environment and no other, who goes away at the end."""
    person = Tmux(cols, rows, env)
    try:
        yield person
    finally:
        person.close()
