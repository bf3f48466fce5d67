"""E2B's control plane through the unmodified Python SDK: sandboxes are made, found, timed, paused and ended."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import pytest
from e2b import AsyncSandbox, Sandbox, SandboxQuery, SandboxState
from e2b.exceptions import (
    AuthenticationException,
    InvalidArgumentException,
    SandboxException,
    SandboxNotFoundException,
)
from e2b_code_interpreter import AsyncSandbox as AsyncCodeSandbox
from e2b_code_interpreter import Sandbox as CodeSandbox

from tests.waiting import until, until_sync


def _listed(**query: object) -> list[str]:
    """The ids of every page."""
    paginator = Sandbox.list(query=SandboxQuery(**query))  # type: ignore[arg-type]
    found: list[str] = []
    while paginator.has_next:
        found += [item.sandbox_id for item in paginator.next_items()]
    return found


def test_a_sandbox_is_created_and_runs() -> None:
    """Create answers with an id of E2B's form; the sandbox answers on /health until it is killed."""
    with Sandbox.create() as sandbox:
        assert sandbox.sandbox_id[0] == "i"
        assert len(sandbox.sandbox_id) == 21
        assert sandbox.is_running()
    assert not sandbox.is_running()


async def test_a_sandbox_is_created_and_runs_through_the_async_sdk() -> None:
    """The same for asyncio."""
    async with await AsyncSandbox.create() as sandbox:
        assert await sandbox.is_running()
    assert not await sandbox.is_running()


def test_a_context_manager_of_the_code_interpreter_runs_in_its_template() -> None:
    """`code-interpreter-v1` is known, and commands run in it."""
    with CodeSandbox.create() as sandbox:
        assert sandbox.commands.run("echo code").stdout == "code\n"
        assert sandbox.get_info().name == "code-interpreter-v1"


async def test_the_async_code_interpreter_runs_in_its_template() -> None:
    """The same for asyncio."""
    async with await AsyncCodeSandbox.create() as sandbox:
        assert (await sandbox.commands.run("echo code")).stdout == "code\n"


def test_info_tells_what_was_asked_for(sandbox: Sandbox) -> None:
    """Id, template, metadata, state, times in order, the sandbox's size."""
    with Sandbox.create(metadata={"who": "me", "a b": "c&d"}, timeout=60) as other:
        info = other.get_info()
        assert info.sandbox_id == other.sandbox_id
        assert info.metadata == {"who": "me", "a b": "c&d"}
        assert info.state == SandboxState.RUNNING
        assert info.name == "base"
        assert timedelta(seconds=55) < info.end_at - info.started_at < timedelta(seconds=65)
        assert info.cpu_count >= 1
        assert info.memory_mb > 0


def test_an_unknown_template_is_told_by_name() -> None:
    """404, and the text names it."""
    with pytest.raises(SandboxException, match="no-such-template"):
        Sandbox.create("no-such-template")


def test_a_wrong_key_is_an_authentication_error() -> None:
    """On every call of the control plane."""
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_wrong")
    with pytest.raises(AuthenticationException):
        Sandbox.list(api_key="e2b_wrong").next_items()
    with pytest.raises(AuthenticationException):
        Sandbox.kill("i00000000000000000000", api_key="e2b_wrong")


def test_an_unknown_sandbox_is_not_found() -> None:
    """Connect and info raise, kill answers False."""
    unknown = "i00000000000000000000"
    with pytest.raises(SandboxNotFoundException):
        Sandbox.connect(unknown)
    with pytest.raises(SandboxNotFoundException):
        Sandbox.get_info(unknown)
    with pytest.raises(SandboxNotFoundException):
        Sandbox.set_timeout(unknown, 10)
    assert Sandbox.kill(unknown) is False


@pytest.mark.parametrize("timeout", [0, -1, 10**9])
def test_a_timeout_that_cannot_be_is_refused_at_create(timeout: int) -> None:
    """400 with a text, and no sandbox is left behind."""
    mark = uuid.uuid4().hex
    with pytest.raises((SandboxException, InvalidArgumentException), match=r"(?i)timeout"):
        Sandbox.create(timeout=timeout, metadata={"mark": mark})
    assert _listed(metadata={"mark": mark}) == []


@pytest.mark.parametrize("timeout", [-1, 10**12])
def test_a_timeout_that_cannot_be_is_refused_later_too(sandbox: Sandbox, timeout: int) -> None:
    """And the sandbox keeps the one it has."""
    before = sandbox.get_info().end_at
    with pytest.raises((SandboxException, InvalidArgumentException)):
        sandbox.set_timeout(timeout)
    assert sandbox.get_info().end_at == before


def test_connecting_gives_a_handle_that_works(sandbox: Sandbox) -> None:
    """Another client sees the same files and processes."""
    sandbox.commands.run("echo kept > /tmp/mark")
    other = Sandbox.connect(sandbox.sandbox_id)
    assert other.commands.run("cat /tmp/mark").stdout == "kept\n"


def test_connecting_never_shortens_a_life(sandbox: Sandbox) -> None:
    """A smaller timeout leaves the end exactly where it was; a larger one moves it."""
    before = sandbox.get_info().end_at
    sandbox.connect(timeout=10)
    assert sandbox.get_info().end_at == before
    sandbox.connect(timeout=600)
    assert sandbox.get_info().end_at > before


def test_set_timeout_counts_from_now_and_may_shorten(sandbox: Sandbox) -> None:
    """Both ways."""
    sandbox.set_timeout(30)
    left_s = sandbox.get_info().end_at.timestamp() - time.time()
    assert 20 < left_s < 31
    sandbox.set_timeout(100)
    assert sandbox.get_info().end_at.timestamp() - time.time() > 90


def test_a_sandbox_ends_at_its_timeout() -> None:
    """And is then neither running nor listed."""
    sandbox = Sandbox.create(timeout=1)
    until_sync(lambda: not sandbox.is_running(), what="the sandbox expires")
    until_sync(lambda: sandbox.sandbox_id not in _listed(), what="it leaves the list")


def test_a_timeout_of_zero_ends_it_at_once(sandbox: Sandbox) -> None:
    """0 is legal for set_timeout."""
    sandbox.set_timeout(0)
    until_sync(lambda: not sandbox.is_running(), what="the sandbox ends")


def test_killing_is_complete_and_said_once(sandbox: Sandbox) -> None:
    """True the first time, False after; unlisted at once."""
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    assert sandbox.sandbox_id not in _listed()
    assert not sandbox.is_running()


def test_lists_are_filtered_by_metadata_state_template_and_start() -> None:
    """Every filter that the SDK knows, with values that need encoding."""
    mark = f"{uuid.uuid4().hex} &=+%é"
    first = Sandbox.create(metadata={"mark": mark, "n": "1"}, timeout=60)
    second = Sandbox.create(metadata={"mark": mark, "n": "2"}, timeout=60)
    try:
        assert _listed(metadata={"mark": mark}) == [second.sandbox_id, first.sandbox_id]
        assert _listed(metadata={"mark": mark, "n": "1"}) == [first.sandbox_id]
        assert _listed(metadata={"mark": mark}, state=[SandboxState.PAUSED]) == []
        assert _listed(metadata={"mark": mark}, state=[SandboxState.RUNNING, SandboxState.PAUSED]) != []
        started = second.get_info().started_at
        assert _listed(metadata={"mark": mark}, started_after=started) == [second.sandbox_id]
        assert _listed(metadata={"mark": mark}, started_after=started + timedelta(seconds=1)) == []
        template = second.get_info().template_id
        assert len(_listed(metadata={"mark": mark}, template=template)) == 2
        assert _listed(metadata={"mark": mark}, template="nothing") == []
    finally:
        first.kill()
        second.kill()


def test_pages_show_every_sandbox_once() -> None:
    """limit=1: a next token while there is more, none at the end."""
    mark = uuid.uuid4().hex
    made = [Sandbox.create(metadata={"mark": mark}, timeout=60) for _ in range(3)]
    try:
        paginator = Sandbox.list(query=SandboxQuery(metadata={"mark": mark}), limit=1)
        pages = []
        while paginator.has_next:
            pages.append([item.sandbox_id for item in paginator.next_items()])
        assert pages == [[sandbox.sandbox_id] for sandbox in reversed(made)]
    finally:
        for sandbox in made:
            sandbox.kill()


def test_a_paused_sandbox_keeps_its_processes_and_comes_back_by_connect(sandbox: Sandbox) -> None:
    """Same pid, same id, the old handle still good; listed as paused meanwhile; pausing twice answers False."""
    handle = sandbox.commands.run("echo first; sleep 600", background=True, timeout=0)
    pid = handle.pid
    sandbox.pause()
    assert not sandbox.is_running()
    assert sandbox.get_info().state == SandboxState.PAUSED
    assert sandbox.sandbox_id in _listed(state=[SandboxState.PAUSED])
    assert not sandbox.pause()
    Sandbox.connect(sandbox.sandbox_id)
    assert sandbox.is_running()
    assert pid in [process.pid for process in sandbox.commands.list()]
    assert sandbox.commands.run("echo back").stdout == "back\n"


def test_a_paused_sandbox_can_be_killed(sandbox: Sandbox) -> None:
    """Its saved state goes with it."""
    sandbox.pause()
    assert sandbox.kill() is True
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()


async def test_a_sandbox_that_pauses_at_its_timeout_waits_to_be_resumed() -> None:
    """`on_timeout: pause` instead of an end."""
    sandbox = await AsyncSandbox.create(timeout=1, lifecycle={"on_timeout": "pause"})
    try:

        async def paused() -> bool:
            return (await sandbox.get_info()).state == SandboxState.PAUSED

        await until(paused)
        await sandbox.connect(timeout=60)
        assert await sandbox.is_running()
        assert (await sandbox.commands.run("echo back")).stdout == "back\n"
    finally:
        await sandbox.kill()
