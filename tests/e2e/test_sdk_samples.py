"""Every Python sample of the vendors' documents runs as printed with our own SDK: only the import line is another."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from sandpty import AsyncClient, AsyncSandbox
from tests.conformance.sample_runs import LATEST_S, Run, start_all
from tests.conformance.seeds import Sample, fenced
from tests.e2e.tmux import tmux
from tests.server_fixture import RunningServer
from tests.waiting import until

IMPORTS = r"^from (e2b_code_interpreter|novita_sandbox\.code_interpreter|hyperbrowser\.models) import"
PRELUDE = "from sandpty import Sandbox\nsandbox = Sandbox()\n"  # document 004 begins where there is a sandbox
INTERACTIVE = "004-create-interactive-terminal-python"
DEADLINE_S = 60.0  # of a terminal that asks for none


def ours(sample: Sample) -> Sample:
    """The sample with our import line."""
    code, changed = re.subn(IMPORTS, "from sandpty import", sample.code, flags=re.M)
    assert changed == 1, sample.name
    return replace(sample, code=(PRELUDE if sample.document == "004" else "") + code)


SAMPLES = {sample.name: ours(sample) for document in ("000", "002", "004") for sample in fenced(document, "python")}


@pytest_asyncio.fixture(scope="module")
async def runs(server: RunningServer) -> AsyncIterator[dict[str, Run]]:
    """All but the interactive one, side by side. Their sandboxes are ended at the end."""
    directory = Path(tempfile.mkdtemp(prefix="sp-samples-", dir="/tmp"))
    before = dict(os.environ)
    os.environ.update({**server.env, "PYTHONUNBUFFERED": "1"})
    client = AsyncClient(server.url, server.api_key)
    known = {sandbox.id for sandbox in await client.list_sandboxes()}
    started: dict[str, Run] = {}
    try:
        await start_all([sample for sample in SAMPLES.values() if sample.name != INTERACTIVE], directory, started)
        yield started
    finally:
        for run in started.values():
            await run.end()
        for sandbox in await client.list_sandboxes():
            if sandbox.id not in known:
                await client.kill_sandbox(sandbox.id)
        await client.close()
        shutil.rmtree(directory)
        os.environ.clear()
        os.environ.update(before)


def test_the_documents_hold_the_samples_that_are_known() -> None:
    """Seven each of E2B's and Novita's, five of Hyperbrowser's; documents 001 and 003 have none in Python."""
    assert len(SAMPLES) == 19
    assert len([name for name in SAMPLES if name.startswith("004")]) == 5


QUICK = {
    "000-create-a-pty-session-python": "Terminal PID:",
    "000-timeout-python": "",
    "000-send-input-to-pty-python": "",
    "000-resize-the-terminal-python": "",
    "000-kill-the-pty-python": "Killed: True",
    "000-wait-for-pty-to-exit-python": "Exit code: 0",
    "002-create-a-pty-session-python": "Terminal PID:",
    "002-timeout-python": "",
    "002-send-input-to-pty-python": "",
    "002-resize-the-terminal-python": "",
    "002-disconnect-and-reconnect-python": "Handler 2: ",
    "002-kill-the-pty-python": "Killed: True",
    "002-wait-for-pty-to-exit-python": "Exit code: 0",
    "004-write-input-and-resize-the-pty-python": "",
    "004-get-refresh-and-wait-python": "hello-from-terminal",
    "004-signal-and-kill-python": "Still running: False",
}


@pytest.mark.parametrize("name", QUICK)
async def test_a_sample_runs_to_its_end(runs: dict[str, Run], name: str) -> None:
    """With status 0, and it has said what it is to say."""
    assert await runs[name].exit_code() == 0, runs[name].text
    assert QUICK[name] in runs[name].text


async def test_get_refresh_and_wait_prints_what_the_program_said_and_its_status(runs: dict[str, Run]) -> None:
    """And nothing else."""
    run = runs["004-get-refresh-and-wait-python"]
    await run.exit_code()
    lines = [line.strip() for line in run.text.splitlines() if line.strip()]
    assert lines == ["hello-from-terminal", "False 0"]


@pytest.mark.timeout(150)
async def test_disconnecting_and_reconnecting(runs: dict[str, Run]) -> None:
    """The second handler hears what follows; the sample waits for an exit that only the terminal's deadline brings."""
    run = runs["000-disconnect-and-reconnect-python"]
    assert await run.exit_code() == 1
    assert "Handler 1: " in run.text
    assert "world" in run.text.partition("Handler 2: ")[2]
    assert "ProcessTimeoutError" in run.text
    assert "timeout=" in run.text.splitlines()[-1]  # which knob to turn
    assert DEADLINE_S - 5 < run.lasted_s < LATEST_S


async def test_creating_and_attaching(runs: dict[str, Run], server: RunningServer) -> None:
    """It prints what the shell says for as long as the shell lives, then its exit code."""
    run = runs["004-create-and-attach-to-a-terminal-python"]
    await until(lambda: "$ " in run.text, LATEST_S, "the prompt")
    async with AsyncClient(server.url, server.api_key) as client:
        for sandbox in await client.list_sandboxes():
            shells = [each for each in await client.list_processes(sandbox.id) if each.argv == ("bash", "-l")]
            for each in shells:
                if each.running:
                    await client.signal_process(sandbox.id, each.process, "HUP", target="tree")
    assert await run.exit_code() == 0
    assert "Exit code: 129" in run.text


async def test_the_interactive_terminal(server: RunningServer) -> None:
    """A person types, interrupts and exits; the sandbox goes with the sample."""
    with tempfile.TemporaryDirectory(prefix="sp-sample-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        script = Path(directory) / "interactive.py"
        script.write_text(SAMPLES[INTERACTIVE].code, encoding="utf-8")
        env = {**server.env, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": directory, "TERM": "xterm"}
        with tmux(cols=90, rows=24, env=env) as person:
            person.type(shlex.join([sys.executable, str(script)]))
            person.wait_for("Sandbox PTY ID: ", 30)
            person.wait(lambda screen: re.search(r"user@\S+:~\$ *$", screen.rstrip()), 30)
            person.type("echo $((6*7))-typed; stty size")
            person.wait(lambda screen: "42-typed" in screen and "24 90" in screen, 30)
            person.type("sleep 1000")
            person.wait_for("sleep 1000", 30)
            person.keys("C-c")
            person.wait_for("^C", 30)
            person.type("echo rc=$?")
            person.wait_for("rc=130", 30)
            person.type("exit 7")
            person.wait_for("[remote exited: 7]", 30)
            person.type("")  # its thread still reads the keyboard: one more key lets the program end
            person.type("echo back-$((1+1))")
            person.wait_for("back-2", 30)


async def test_the_asynchronous_flavour_is_the_same_awaited(server: RunningServer) -> None:
    """One walk through all of it."""
    said = bytearray()
    made = await AsyncSandbox.create(url=server.url, api_key=server.api_key)
    async with made as sandbox:
        terminal = await sandbox.pty.create(cols=80, rows=24, on_data=said.extend)
        await sandbox.pty.send_stdin(terminal.pid, b"echo $((6*7))\n")
        await until(lambda: b"42\r\n" in said, 20)
        await sandbox.pty.resize(terminal.pid, cols=100, rows=30)
        await sandbox.pty.send_stdin(terminal.pid, "stty size; exit 0\n")
        assert (await terminal.wait()).exit_code == 0
        assert b"30 100\r\n" in said
        assert (await sandbox.commands.run("echo out; echo err >&2")).stdout == "out\n"
        handle = await sandbox.commands.run("sleep 100", background=True)
        assert handle.pid in {each.pid for each in await sandbox.commands.list()}
        assert await sandbox.commands.kill(handle.pid)
        assert not await sandbox.commands.kill(handle.pid)
    with pytest.raises(TypeError, match=r"await AsyncSandbox\.create"):
        AsyncSandbox()
