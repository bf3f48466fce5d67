"""Every sample of Hyperbrowser's terminal document runs as printed, in both languages, with the unmodified SDKs.

The samples presuppose a `sandbox`: a prelude of two lines makes one, and nothing else is added. The last sample is a
program for a person at a terminal, and a person drives it.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from hyperbrowser import Hyperbrowser
from hyperbrowser.client.managers.sync_manager.sandboxes.sandbox_terminal import SandboxTerminalHandle

from tests.conformance.conftest import VENDOR_JS
from tests.conformance.seeds import Sample, fenced
from tests.e2e.tmux import Tmux, tmux
from tests.waiting import until_sync

PRELUDES = {
    "node": (
        'import { Hyperbrowser } from "@hyperbrowser/sdk";\n'
        "const sandbox = await new Hyperbrowser({ baseUrl: process.env.HYPERBROWSER_BASE_URL })"
        '.sandboxes.create({ imageName: "node" });\n'
    ),
    "python": (
        'from hyperbrowser import Hyperbrowser\nsandbox = Hyperbrowser().sandboxes.create({"image_name": "node"})\n'
    ),
}
FENCES = {"node": "typescript", "python": "python"}
SAMPLES = {name: {sample.title: sample for sample in fenced("004", fence)} for name, fence in FENCES.items()}
LANGUAGES = tuple(PRELUDES)
# Node's own way to run TypeScript: what is only a type becomes spaces.
STRIP = "const f=require('fs');process.stdout.write(require('amaro').transformSync(f.readFileSync(0,'utf8')).code)"
DEADLINE_S = 60.0


@dataclass
class Programs:
    """The samples as programs in files."""

    directory: Path
    env: dict[str, str]

    def command(self, language: str, sample: Sample) -> list[str]:
        """What runs the sample."""
        code = PRELUDES[language] + sample.code
        if language == "python":
            path = self.directory / f"{sample.name}.py"
            path.write_text(code, encoding="utf-8")
            return [sys.executable, str(path)]
        stripped = subprocess.run(
            ["node", "-e", STRIP],
            input=code,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            cwd=self.directory,
        )
        path = self.directory / f"{sample.name}.mjs"
        path.write_text(stripped.stdout, encoding="utf-8")
        return ["node", str(path)]

    def run(self, language: str, title: str) -> str:
        """What the sample prints; it must end well."""
        command = self.command(language, SAMPLES[language][title])
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=DEADLINE_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def programs(sdk_env: dict[str, str], hyperbrowser: Hyperbrowser) -> Iterator[Programs]:
    """In a directory below the SDKs, because Node looks for packages upwards from the script."""
    directory = Path(tempfile.mkdtemp(prefix="samples-", dir=VENDOR_JS))
    yield Programs(directory, sdk_env)
    shutil.rmtree(directory)
    for sandbox in hyperbrowser.sandboxes.list({"status": "active", "limit": 100}).sandboxes:
        hyperbrowser.sandboxes.stop(sandbox.id)


def newest_sandbox(hyperbrowser: Hyperbrowser) -> str:
    """The one that a sample has just made; "" for none."""
    return next((sandbox.id for sandbox in hyperbrowser.sandboxes.list({"limit": 1}).sandboxes), "")


def only_terminal(programs: Programs, hyperbrowser: Hyperbrowser, sandbox_id: str) -> SandboxTerminalHandle | None:
    """The terminal that a sample has made. Neither SDK lists terminals, so the native API is asked."""
    url = f"{programs.env['SANDPTY_URL']}/v1/sandboxes/{sandbox_id}/processes"
    headers = {"X-API-Key": programs.env["SANDPTY_API_KEY"]}
    listed = httpx.get(url, headers=headers, timeout=30).json()["processes"]
    tags = [item["tag"] for item in listed if item["pty"]]
    return hyperbrowser.sandboxes.get(sandbox_id).terminal.get(tags[0]) if tags else None


def output_of(terminal: SandboxTerminalHandle) -> str:
    """All that it has said."""
    return "".join(chunk.data for chunk in terminal.refresh(include_output=True).current.output or [])


def test_the_document_holds_the_samples_that_are_known() -> None:
    """Five under five headings, in both languages."""
    titles = [
        "Create and Attach to a Terminal",
        "Write Input and Resize the PTY",
        "Get, Refresh, and Wait",
        "Signal and Kill",
        "Create Interactive Terminal",
    ]
    assert [list(samples) for samples in SAMPLES.values()] == [titles, titles]


@pytest.mark.parametrize("language", LANGUAGES)
def test_get_refresh_and_wait(programs: Programs, language: str) -> None:
    """What the terminal said is there when it is asked for; then its end."""
    lines = programs.run(language, "Get, Refresh, and Wait").split("\n")
    assert [line.strip() for line in lines if line.strip()] == [
        "hello-from-terminal",
        {"node": "false 0", "python": "False 0"}[language],
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_signal_and_kill(programs: Programs, language: str) -> None:
    """TERM ends the sleep; the code says by what."""
    false = {"node": "false", "python": "False"}[language]
    assert programs.run(language, "Signal and Kill") == f"Still running: {false}\nExit code: 143\n"


@pytest.mark.parametrize("language", LANGUAGES)
def test_write_input_and_resize(programs: Programs, hyperbrowser: Hyperbrowser, language: str) -> None:
    """The sample closes at once after writing: the shell still gets every line and its window size, and exits."""
    assert programs.run(language, "Write Input and Resize the PTY") == ""
    status = only_terminal(programs, hyperbrowser, newest_sandbox(hyperbrowser)).wait(20_000, include_output=True)
    assert (status.exit_code, status.rows, status.cols) == (0, 32, 110)
    said = "".join(chunk.data for chunk in status.output or [])
    assert "/home/user\r\n" in said
    assert re.search(r"[\r\n]terminal-ok\r\n", said)


@pytest.mark.parametrize("language", LANGUAGES)
def test_create_and_attach(programs: Programs, hyperbrowser: Hyperbrowser, language: str) -> None:
    """Output is printed as it comes, until the terminal ends: here because somebody hangs it up."""
    before = newest_sandbox(hyperbrowser)
    command = programs.command(language, SAMPLES[language]["Create and Attach to a Terminal"])
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        sandbox_id = until_sync(lambda: (found := newest_sandbox(hyperbrowser)) != before and found, DEADLINE_S)
        terminal = until_sync(lambda: only_terminal(programs, hyperbrowser, sandbox_id), DEADLINE_S)
        until_sync(lambda: "$ " in output_of(terminal), DEADLINE_S)
        terminal.signal("HUP")
        output, _ = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "$ " in output
    assert "Exit code: 129" in output


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_interactive_terminal(programs: Programs, hyperbrowser: Hyperbrowser, language: str) -> None:
    """A person types, drags the window (Node's sample follows it), interrupts, and exits: the sandbox goes too."""
    command = programs.command(language, SAMPLES[language]["Create Interactive Terminal"])
    env = {**programs.env, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(programs.directory), "TERM": "xterm"}
    with tmux(cols=90, rows=24, env=env) as person:
        person.type(shlex.join(command))
        person.wait_for("Sandbox PTY ID: pty_", DEADLINE_S)
        person.wait(lambda screen: re.search(r"user@\S+:~\$ *$", screen.rstrip()), DEADLINE_S)
        said(person, "echo $((6*7))-typed", "42-typed")
        said(person, "stty size", "24 90")
        if language == "node":
            person.type("until [ \"$(stty size)\" = '30 101' ]; do sleep 0.1; done; echo resized-$((1+1))")
            person.resize(101, 30)
            person.wait_for("resized-2", DEADLINE_S)
        said(person, "tput cols; echo é$((1+1))€", "é2€")
        person.type("sleep 1000")
        person.wait_for("sleep 1000", DEADLINE_S)
        person.keys("C-c")
        person.wait_for("^C", DEADLINE_S)
        said(person, "echo rc=$?", "rc=130")
        sandbox_id = newest_sandbox(hyperbrowser)
        person.type("exit 7")
        person.wait_for("[remote exited: 7]", DEADLINE_S)
        if language == "python":  # its thread still reads the keyboard: one more key lets the program end
            person.type("")
        until_sync(lambda: hyperbrowser.sandboxes.get_detail(sandbox_id).status == "closed", DEADLINE_S)
        person.type("echo back-$((1+1))")
        person.wait_for("back-2", DEADLINE_S)


def said(person: Tmux, line: str, answer: str) -> str:
    """Type a line; the screen once its answer is on it."""
    person.type(line)
    return person.wait(lambda screen: answer in screen, DEADLINE_S)
