"""The registry: a view of the supervisor's truth that survives the supervisor."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from sandpty import config
from sandpty.server.auth import Authenticator, Principal
from sandpty.server.creation import CreateSpec
from sandpty.server.deadline import end_at
from sandpty.server.registry import Registry
from sandpty.wire.errors import SandptyError
from sandpty.wire.network_policy import NetworkPolicy
from sandpty.wire.verbs import Sandbox
from tests.component.fake_supervisor import FakeSupervisor
from tests.waiting import until

ME, OTHER = Principal("me"), Principal("other")
SOCKET = Path("/nonexistent")


@pytest_asyncio.fixture
async def supervisor() -> AsyncIterator[FakeSupervisor]:
    """A fake supervisor whose sandboxes are all mine."""
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as directory:
        async with FakeSupervisor(Path(directory) / "s", ME.id) as running:
            yield running


@pytest_asyncio.fixture
async def registry(supervisor: FakeSupervisor) -> AsyncIterator[Registry]:
    """A registry that has met the supervisor."""
    async with Registry(str(supervisor.path)) as connected:
        yield connected


def _ids(registry: Registry) -> list[str]:
    return [sandbox.id for sandbox in registry.list(ME)]


async def test_what_exists_before_the_server_starts_is_known_at_once(supervisor: FakeSupervisor) -> None:
    """A server that starts finds every sandbox: it keeps no state of its own."""
    supervisor.add("i1", SOCKET)
    supervisor.add("i2", SOCKET)
    async with Registry(str(supervisor.path)) as registry:
        assert _ids(registry) == ["i1", "i2"]


async def test_events_keep_the_view_current(supervisor: FakeSupervisor, registry: Registry) -> None:
    """What changes or ends is seen without asking."""
    sandbox = supervisor.add("i1", SOCKET)
    await until(lambda: _ids(registry) == ["i1"])
    supervisor._tell("changed", msgspec.structs.replace(sandbox, end_at=1.0))
    await until(lambda: registry.get("i1").end_at == 1.0)
    supervisor._tell("ended", sandbox)
    await until(lambda: _ids(registry) == [])


async def test_an_answer_that_comes_late_does_not_undo_what_happened_since(
    supervisor: FakeSupervisor, registry: Registry
) -> None:
    """A deadline is set and passes at once: the pause is told before the answer about the deadline is read."""
    sandbox = supervisor.add("i1", SOCKET)
    await until(lambda: _ids(registry) == ["i1"])
    supervisor._tell("changed", msgspec.structs.replace(sandbox, state="paused", revision=3))
    await until(lambda: registry.get("i1").state == "paused")
    registry.remember(msgspec.structs.replace(sandbox, state="running", revision=2))
    assert registry.get("i1").state == "paused"


async def test_what_ends_while_the_server_learns_of_it_is_not_taken_for_living(supervisor: FakeSupervisor) -> None:
    """The word of its end comes together with the list that has it, or with the answer to its create."""
    supervisor.add("i1", SOCKET)
    supervisor.after = {"list": [lambda: supervisor.end("i1")], "create": [lambda: supervisor.end("icreated")]}
    async with Registry(str(supervisor.path)) as registry:
        assert _ids(registry) == []
        await registry.create(CreateSpec(), ME)
        assert _ids(registry) == []


async def test_changes_of_a_sandboxs_metadata_at_the_same_time_all_count(
    supervisor: FakeSupervisor, registry: Registry
) -> None:
    """One after the other, however many wait and whenever they come."""
    supervisor.add("i1", SOCKET)
    await until(lambda: _ids(registry) == ["i1"])

    def add(word: str) -> asyncio.Task[Sandbox]:
        return asyncio.create_task(registry.annotate("i1", ME, lambda before: {**before, word: True}))

    first, second = add("one"), add("two")
    await first
    await asyncio.gather(second, add("three"))
    assert {"one", "two", "three"} <= registry.get("i1").annotations.keys()


async def test_more_memory_and_network_asked_for_at_the_same_time_all_count(
    supervisor: FakeSupervisor, registry: Registry
) -> None:
    """Each starts from what the one before it has made, however they come."""
    before = supervisor.add("i1", SOCKET).limits.memory_mb
    await until(lambda: _ids(registry) == ["i1"])

    def allow(address: str) -> Callable[[Sandbox], tuple[bool, NetworkPolicy]]:
        return lambda now: (now.internet, NetworkPolicy(allow_out=(*now.network.allow_out, address)))

    more = [registry.change_memory("i1", ME, lambda memory_mb: memory_mb + 64) for _ in range(3)]
    opened = [registry.change_network("i1", ME, allow(address)) for address in ("10.0.0.1", "10.0.0.2")]
    await asyncio.gather(*more, *opened)
    sandbox = registry.get("i1")
    assert sandbox.limits.memory_mb == before + 3 * 64
    assert sandbox.network.allow_out == ("10.0.0.1", "10.0.0.2")


async def test_a_sandbox_of_somebody_else_does_not_exist(supervisor: FakeSupervisor, registry: Registry) -> None:
    """Another principal gets the same no_such_sandbox as for an id that never was, on every question."""
    supervisor.add("i1", SOCKET)
    await until(lambda: _ids(registry) == ["i1"])
    assert registry.list(OTHER) == []
    for ask in (registry.get, registry.running):
        with pytest.raises(SandptyError, match="does not exist or is not yours"):
            ask("i1", OTHER)
    for change in (registry.kill("i1", OTHER), registry.pause("i1", OTHER), registry.set_deadline("i1", OTHER, 1)):
        with pytest.raises(SandptyError, match="does not exist or is not yours"):
            await change
    assert "i1" in supervisor.sandboxes


async def test_a_lost_supervisor_is_found_again_and_believed(supervisor: FakeSupervisor, registry: Registry) -> None:
    """After a reconnect the list is the truth: what ended meanwhile is gone, what is new is there."""
    supervisor.add("i1", SOCKET)
    await until(lambda: _ids(registry) == ["i1"])
    cut: list[str] = []
    with registry.cutting("i1", lambda: cut.append("i1")):
        del supervisor.sandboxes["i1"]
        supervisor.hang_up()
        await until(lambda: not registry.ready)
        with pytest.raises(SandptyError) as refused:
            await registry.create(CreateSpec(), ME)
        assert refused.value.reason.name == "supervisor_down"
        supervisor.add("i2", SOCKET)
        await until(lambda: registry.ready)
        assert _ids(registry) == ["i2"]
        assert cut == ["i1"]


async def test_reconnecting_stays_quick_however_often_it_is_needed(
    supervisor: FakeSupervisor, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause between attempts grows while there is no supervisor, and starts anew once there was one."""
    monkeypatch.setattr(config, "SUPERVISOR_RETRY_MIN_S", 0.01)
    monkeypatch.setattr(config, "SUPERVISOR_RETRY_MAX_S", 30.0)
    loop = asyncio.get_running_loop()
    for _ in range(12):  # doubled twelve times, 10 ms would be 40 s
        supervisor.hang_up()
        await until(lambda: not registry.ready)
        started = loop.time()
        await until(lambda: registry.ready)
        assert loop.time() - started < 2


async def test_a_lost_supervisor_is_not_a_lost_sandbox(supervisor: FakeSupervisor, registry: Registry) -> None:
    """While the supervisor is away sandboxes stay known and nobody's attachment is cut."""
    supervisor.add("i1", SOCKET)
    await until(lambda: _ids(registry) == ["i1"])
    cut: list[str] = []
    with registry.cutting("i1", lambda: cut.append("i1")):
        supervisor.hang_up()
        await until(lambda: not registry.ready)
        assert _ids(registry) == ["i1"]
        await until(lambda: registry.ready)
        assert cut == []


async def test_kill_and_pause_cut_every_stream_once(supervisor: FakeSupervisor, registry: Registry) -> None:
    """All who look at a sandbox are told, and one who fails keeps nobody else from it."""
    supervisor.add("i1", SOCKET)
    await until(lambda: _ids(registry) == ["i1"])
    cut: list[str] = []

    def failing() -> None:
        raise RuntimeError

    with (
        registry.cutting("i1", failing),
        registry.cutting("i1", lambda: cut.append("a")),
        registry.cutting("i1", lambda: cut.append("b")),
    ):
        assert (await registry.pause("i1", ME)).state == "paused"
        await until(lambda: sorted(cut) == ["a", "b"])
        with pytest.raises(SandptyError) as refused:
            registry.running("i1", ME)
        assert refused.value.reason.name == "sandbox_paused"
        with pytest.raises(SandptyError) as refused:
            await registry.pause("i1", ME)
        assert refused.value.reason.name == "already_paused"
        cut.clear()
        await registry.kill("i1", ME)
        assert set(cut) == {"a", "b"}
    assert registry._cuts == {}


async def test_a_token_finds_its_sandbox_while_it_lives(supervisor: FakeSupervisor, registry: Registry) -> None:
    """And nothing else: not the empty token, not one of a sandbox that ended."""
    supervisor.add("i1", SOCKET)
    await until(lambda: registry.by_token("token-i1") is not None)
    assert registry.by_token("") is None
    assert registry.by_token("token-i2") is None
    await registry.kill("i1", ME)
    assert registry.by_token("token-i1") is None


@pytest.mark.parametrize("timeout_s", [-1, -0.001, math.nan, math.inf, -math.inf, config.TIMEOUT_MAX_S + 1, 1e300])
def test_an_absurd_timeout_is_refused(timeout_s: float) -> None:
    """Negative, infinite, not a number, beyond thirty days."""
    with pytest.raises(SandptyError) as refused:
        end_at(timeout_s)
    assert refused.value.reason.name == "bad_timeout"


async def test_metadata_has_a_limit(registry: Registry) -> None:
    """64 KiB of metadata and environment, then too_large; the supervisor is not asked."""
    with pytest.raises(SandptyError) as refused:
        await registry.create(CreateSpec(metadata={"k": "v" * config.METADATA_BYTES}), ME)
    assert refused.value.reason.name == "too_large"


async def test_a_host_has_room_for_so_many_sandboxes(
    supervisor: FakeSupervisor, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit create is refused with `limit`."""
    monkeypatch.setattr(config, "SANDBOXES_MAX", 1)
    supervisor.add("i1", SOCKET)
    await until(lambda: _ids(registry) == ["i1"])
    with pytest.raises(SandptyError) as refused:
        await registry.create(CreateSpec(), ME)
    assert refused.value.reason.name == "limit"


async def test_without_a_supervisor_there_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """supervisor_down after a bounded time, and no task left behind."""
    monkeypatch.setattr(config, "SUPERVISOR_START_TIMEOUT_S", 0.2)
    before = len(asyncio.all_tasks())
    with pytest.raises(SandptyError) as refused:
        async with Registry("/nonexistent/supervisor.sock"):
            pass
    assert refused.value.reason.name == "supervisor_down"
    assert len(asyncio.all_tasks()) == before


async def test_keys_that_cannot_be_learned_do_not_part_the_server_from_its_supervisor(
    supervisor: FakeSupervisor,
) -> None:
    """A key file that somebody broke, a supervisor of an older version: the keys that are known still count."""
    auth = Authenticator("first")
    learned: list[object] = []
    supervisor.failing = {"keys": "bad_argument"}
    async with Registry(str(supervisor.path), learned.append) as registry:
        assert registry.ready
    assert learned == []
    assert auth.principal("first").id
