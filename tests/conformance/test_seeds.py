"""Every JavaScript sample of E2B's and Novita's documents, and every Python sample of Novita's, runs as printed.

With the unmodified SDKs. Those that last until the terminal's default deadline of 60 s run side by side.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from e2b import AsyncSandbox

from tests.conformance.conftest import VENDOR_JS
from tests.conformance.sample_runs import LATEST_S, Run, start_all
from tests.conformance.seeds import all_samples
from tests.waiting import until

DEADLINE_S = 60.0  # of a terminal that asks for none
SAMPLES = all_samples()


async def _ids() -> set[str]:
    paginator = AsyncSandbox.list()
    found: set[str] = set()
    while paginator.has_next:
        found |= {item.sandbox_id for item in await paginator.next_items()}
    return found


@pytest_asyncio.fixture(scope="module")
async def runs(sdk_env: dict[str, str]) -> AsyncIterator[dict[str, Run]]:
    """All samples, started at once. What is left of them at the end is ended."""
    assert (VENDOR_JS / "node_modules" / "e2b").is_dir(), "scripts/setup --test installs the SDKs"
    before = await _ids()
    # Below the SDKs, because Node looks for packages upwards from the script.
    directory = Path(tempfile.mkdtemp(prefix="samples-", dir=VENDOR_JS))
    started: dict[str, Run] = {}
    try:
        await start_all(SAMPLES, directory, started)
        yield started
    finally:
        for run in started.values():
            await run.end()
        shutil.rmtree(directory)
        for sandbox_id in await _ids() - before:
            await AsyncSandbox.kill(sandbox_id)


def _named(*words: str) -> list[str]:
    names = [sample.name for sample in SAMPLES if sample.language == "js"]
    return [name for name in names if any(word in name for word in words)]


def test_the_documents_hold_the_samples_that_are_known() -> None:
    """Seven of each, five of 003, both languages of 002; a changed document or extraction is noticed."""
    counted = [sum(sample.document == document for sample in SAMPLES) for document in ("000", "001", "002", "003")]
    assert counted == [7, 7, 14, 5]
    assert len({sample.name for sample in SAMPLES}) == 33


@pytest.mark.parametrize("name", _named("kill-the-pty"))
async def test_killing_a_terminal(runs: dict[str, Run], name: str) -> None:
    """`Killed: true`, and Node has nothing left to wait for."""
    run = runs[name]
    assert await run.exit_code() == 0, run.text
    assert "Killed: true" in run.text
    assert run.lasted_s < DEADLINE_S


@pytest.mark.parametrize("name", _named("wait-for-pty-to-exit"))
async def test_waiting_for_a_terminal_to_exit(runs: dict[str, Run], name: str) -> None:
    """`Exit code: 0`."""
    run = runs[name]
    assert await run.exit_code() == 0, run.text
    assert "Exit code: 0" in run.text
    assert run.lasted_s < DEADLINE_S


async def test_killing_a_background_command(runs: dict[str, Run]) -> None:
    """It never comes to the second echo."""
    run = runs["003-sample-a"]
    assert await run.exit_code() == 0, run.text
    assert "world" not in run.text
    assert run.lasted_s < DEADLINE_S


async def test_listing_and_killing_commands(runs: dict[str, Run]) -> None:
    """The command shows as /bin/bash, and the first of the list is the one to kill."""
    run = runs["003-sample-b"]
    assert await run.exit_code() == 0, run.text
    assert re.fullmatch(r"PID: \d+, Command: /bin/bash\n", run.text)
    assert run.lasted_s < DEADLINE_S


@pytest.mark.parametrize("name", _named("create-a-pty-session"))
async def test_creating_a_terminal(runs: dict[str, Run], name: str) -> None:
    """The pid, a prompt of root in /home/user; Node ends in peace at the terminal's deadline."""
    run = runs[name]
    assert await run.exit_code() == 0, run.text
    assert re.search(r"Terminal PID: \d+", run.text)
    assert re.search(r"root@\S+:/home/user# ", run.text)
    assert DEADLINE_S - 2 < run.lasted_s < LATEST_S


@pytest.mark.parametrize("name", [*_named("send-input-to-pty"), "003-sample-d"])
async def test_sending_input(runs: dict[str, Run], name: str) -> None:
    """The echo of what was typed, and the command's own output."""
    run = runs[name]
    assert await run.exit_code() == 0, run.text
    assert 'echo "Hello from PTY"' in run.text
    assert re.search(r"\rHello from PTY\r\n|\nHello from PTY\r\n", run.text)
    assert DEADLINE_S - 2 < run.lasted_s < LATEST_S


@pytest.mark.parametrize("name", _named("resize-the-terminal"))
async def test_resizing(runs: dict[str, Run], name: str) -> None:
    """A prompt, no error, the end at the deadline."""
    run = runs[name]
    assert await run.exit_code() == 0, run.text
    assert "$ " in run.text
    assert DEADLINE_S - 2 < run.lasted_s < LATEST_S


@pytest.mark.parametrize("name", [*_named("disconnect-and-reconnect"), "003-sample-e"])
async def test_disconnecting_and_reconnecting(runs: dict[str, Run], name: str) -> None:
    """The second handler sees what follows; nobody exits the shell, so wait() rejects at the deadline."""
    run = runs[name]
    assert await run.exit_code() == 1, run.text
    assert "Handler 2:" in run.text
    assert re.search(r"world", run.text.partition("Handler 2:")[2])
    assert "TimeoutError" in run.text
    assert "deadline_exceeded" in run.text
    assert DEADLINE_S - 2 < run.lasted_s < LATEST_S


@pytest.mark.parametrize("name", [*_named("-timeout"), "003-sample-c"])
async def test_a_terminal_without_a_timeout(runs: dict[str, Run], name: str) -> None:
    """A prompt, and past the default deadline it still lives."""
    run = runs[name]
    await until(lambda: "$ " in run.text, LATEST_S)
    await until(lambda: time.monotonic() - run.started > DEADLINE_S + 3, LATEST_S)
    assert run.process.returncode is None, run.text


# --- Python, as Novita's documents have it: a thread reads, and the program ends without waiting for it ---------------

PYTHON = [sample.name for sample in SAMPLES if sample.language == "python"]


@pytest.mark.parametrize("name", PYTHON)
async def test_a_python_sample_ends_well_and_soon(runs: dict[str, Run], name: str) -> None:
    """Without an exception, also in its threads."""
    run = runs[name]
    assert await run.exit_code() == 0, run.text
    assert "Traceback" not in run.text
    assert run.lasted_s < DEADLINE_S


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("002-create-a-pty-session-python", r"Terminal PID: \d+"),
        ("002-disconnect-and-reconnect-python", r"Handler 2: [\s\S]*world"),
        ("002-kill-the-pty-python", r"Killed: True"),
        ("002-wait-for-pty-to-exit-python", r"exit[\s\S]*Exit code: 0"),
    ],
)
async def test_a_python_sample_prints_what_its_document_says(runs: dict[str, Run], name: str, printed: str) -> None:
    """Of those whose output does not depend on how soon the program ends."""
    run = runs[name]
    await run.exit_code()
    assert re.search(printed, run.text), run.text
