"""Network policies as a sandbox's owner sees them: what is allowed works, what is not does not, from one moment on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sandpty.wire.errors import SandptyError
from tests.component.network_policy_world import (
    ALL,
    ECHO,
    EVIL,
    OTHER_RESOLVER,
    OTHER_TLS,
    SITE,
    SPEAKS_FIRST,
    World,
    ask,
    policy_world,
)
from tests.component.supervisor_peer import Peer, attempt, supervised
from tests.waiting import until

NAMES = {"allow_out": ["good.test", "*.wild.test", "alias.test"], "deny_out": [ALL]}
WEB_ANSWER = "web good.test"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world() -> AsyncIterator[World]:
    """One for all tests here."""
    async with policy_world() as made:
        yield made


@pytest_asyncio.fixture
async def peer(world: World) -> AsyncIterator[Peer]:
    """A connection to the supervisor."""
    async with world.host.peer() as connected:
        yield connected


@asynccontextmanager
async def sandbox_with(peer: Peer, **args: Any) -> AsyncIterator[dict[str, Any]]:
    """A sandbox for one test."""
    sandbox = await peer.create(**args)
    try:
        yield sandbox
    finally:
        await peer.call("kill", id=sandbox["id"])


async def update(peer: Peer, sandbox: dict[str, Any], internet: bool = True, **policy: Any) -> dict[str, Any]:
    """Replace the policy."""
    changed: dict[str, Any] = await peer.call("network", id=sandbox["id"], internet=internet, policy=policy)
    return changed


async def reached(sandbox: dict[str, Any], address: str, port: int = SPEAKS_FIRST) -> bool:
    """Whether a server that speaks first is heard."""
    return bool(await ask(sandbox, f"fetch({address!r}, {port})") == "welcome")


@pytest.mark.parametrize("disk_mb", [10240, 64], ids=["warm", "cold"])
async def test_only_what_is_allowed_is_reached(peer: Peer, disk_mb: int) -> None:
    """Everything denied, one address allowed: from the first instruction on, warm or cold."""
    policy = {"allow_out": [SITE], "deny_out": [ALL]}
    async with sandbox_with(peer, network=policy, limits={"disk_mb": disk_mb}) as sandbox:
        assert await reached(sandbox, SITE)
        assert not await reached(sandbox, EVIL)
        assert sandbox["network"]["allow_out"] == [SITE]


async def test_only_what_is_denied_is_not_reached(peer: Peer) -> None:
    """An address; the rest, and names, work as before."""
    async with sandbox_with(peer, network={"deny_out": [EVIL]}) as sandbox:
        assert await reached(sandbox, "good.test")
        assert not await reached(sandbox, EVIL)
        assert await ask(sandbox, "resolve('evil.test')") == [EVIL]


async def test_what_is_allowed_wins_over_what_is_denied(peer: Peer) -> None:
    """A network denied, one address of it allowed."""
    policy = {"allow_out": [SITE], "deny_out": ["203.0.113.0/24"]}
    async with sandbox_with(peer, network=policy) as sandbox:
        assert await reached(sandbox, SITE)
        assert not await reached(sandbox, EVIL)


async def test_no_internet_with_exceptions(peer: Peer) -> None:
    """internet false is everything denied: what is allowed besides works."""
    async with sandbox_with(peer, internet=False, network={"allow_out": [SITE]}) as sandbox:
        assert await reached(sandbox, SITE)
        assert not await reached(sandbox, EVIL)


async def test_names_resolve_only_when_they_are_allowed(peer: Peer) -> None:
    """Exact names, wildcards at any depth and not their root, aliases by the name that was asked for; no IPv6."""
    async with sandbox_with(peer, network=NAMES) as sandbox:
        for name in ("good.test", "GOOD.test", "a.wild.test", "a.b.wild.test", "alias.test"):
            assert await ask(sandbox, f"resolve({name!r})") == [SITE], name
        for name in ("evil.test", "wild.test", "cdn.other.test", "x.good.test", "good.test.evil.test"):
            assert await ask(sandbox, f"resolve({name!r})") == "gaierror", name


@pytest.mark.parametrize("user", ["root", "user"])
async def test_allowed_names_work_on_every_tcp_port(peer: Peer, user: str) -> None:
    """HTTP, HTTPS, HTTPS elsewhere, a server that speaks first, one that only answers."""
    async with sandbox_with(peer, network=NAMES) as sandbox:
        assert WEB_ANSWER in await ask(sandbox, "fetch('good.test', 80, get('good.test'))", user)
        assert WEB_ANSWER in await ask(sandbox, "fetch('good.test', 443, get('good.test'), 'good.test')", user)
        secure = f"fetch('good.test', {OTHER_TLS}, get('good.test'), 'good.test')"
        assert WEB_ANSWER in await ask(sandbox, secure, user)
        assert await reached(sandbox, "good.test")
        told = f"__import__('socket').create_connection(('good.test', {ECHO})).sendall(b'SSH-2.0-x\\r\\n')"
        assert await ask(sandbox, told, user) is None


async def test_a_big_transfer_goes_through_whole(peer: Peer) -> None:
    """Eight MiB there and back through a port that is neither HTTP nor TLS."""
    script = f"""
import os, socket, threading
link, data = socket.create_connection(("good.test", {ECHO})), b"SSH-2.0-x\\r\\n" + os.urandom(8 << 20)
threading.Thread(target=lambda: (link.sendall(data), link.shutdown(socket.SHUT_WR))).start()
print(b"".join(iter(lambda: link.recv(65536), b"")) == data)
"""
    async with sandbox_with(peer, network=NAMES) as sandbox:
        assert (await attempt(sandbox, f"python3 - <<'END'{script}END", "root", 60))[1].strip() == "True"


async def test_an_allowed_address_needs_no_name(peer: Peer) -> None:
    """Beside names: its connections are not looked at."""
    policy = {"allow_out": ["good.test", EVIL], "deny_out": [ALL]}
    async with sandbox_with(peer, network=policy) as sandbox:
        assert "web anything" in await ask(sandbox, f"fetch({EVIL!r}, 80, get('anything'))")
        assert WEB_ANSWER in await ask(sandbox, "fetch('good.test', 80, get('good.test'))")


async def test_the_name_servers_of_a_policy_are_asked(peer: Peer, world: World) -> None:
    """Other answers come from there; an empty list asks nobody."""
    policy = {**NAMES, "dns_servers": [OTHER_RESOLVER]}
    async with sandbox_with(peer, network=policy) as sandbox:
        assert await ask(sandbox, "resolve('good.test')") == [EVIL]
        await update(peer, sandbox, **{**NAMES, "dns_servers": []})
        assert await ask(sandbox, "resolve('good.test')") == "gaierror"


async def test_an_update_replaces_everything(peer: Peer) -> None:
    """What it leaves out is cleared; the sandbox tells the new policy."""
    async with sandbox_with(peer, network={"deny_out": [SITE]}) as sandbox:
        assert not await reached(sandbox, SITE)
        changed = await update(peer, sandbox, allow_out=["good.test"], deny_out=[ALL])
        cleared = {"dns_servers": None, "headers": {}, "proxy": None}
        assert changed["network"] == {"allow_out": ["good.test"], "deny_out": [ALL], **cleared}
        assert await reached(sandbox, "good.test")
        assert not await reached(sandbox, EVIL)
        await update(peer, sandbox, internet=False)
        assert not await reached(sandbox, SITE)
        await update(peer, sandbox)
        assert await reached(sandbox, SITE)
        assert await reached(sandbox, EVIL)


@pytest.mark.parametrize(
    ("before", "target"),
    [({}, SITE), ({"allow_out": ["good.test"], "deny_out": [ALL]}, "good.test"), ({"deny_out": [EVIL]}, SITE)],
    ids=["free", "name", "address"],
)
async def test_an_update_cuts_connections_that_exist(peer: Peer, before: dict[str, Any], target: str) -> None:
    """A connection that has worked gives no echo any more."""
    script = (
        f"exec 3<>/dev/tcp/{target}/{ECHO}; echo SSH-1 >&3; read -t 20 line <&3; echo $line > /tmp/first; "
        "until [ -e /tmp/go ]; do sleep 0.05; done; echo again >&3; read -t 5 line <&3 || line=cut; echo $line"
    )
    async with sandbox_with(peer, network=before) as sandbox:
        running = asyncio.create_task(attempt(sandbox, script, "root", 60))
        await until(lambda: _said(sandbox, "/tmp/first"), 30)
        await update(peer, sandbox, deny_out=[ALL])
        assert (await attempt(sandbox, "touch /tmp/go"))[0] == 0
        assert (await running)[1].strip().splitlines()[-1] == "cut"


async def _said(sandbox: dict[str, Any], path: str) -> bool:
    return (await attempt(sandbox, f"grep -q . {path}"))[0] == 0


async def test_an_update_that_allows_it_still_leaves_a_connection_alone(peer: Peer) -> None:
    """The same name in the new policy: the echo goes on."""
    script = (
        f"exec 3<>/dev/tcp/good.test/{ECHO}; echo SSH-1 >&3; read -t 20 line <&3; echo $line > /tmp/first; "
        "until [ -e /tmp/go ]; do sleep 0.05; done; echo again >&3; read -t 20 line <&3 || line=cut; echo $line"
    )
    async with sandbox_with(peer, network=NAMES) as sandbox:
        running = asyncio.create_task(attempt(sandbox, script, "root", 60))
        await until(lambda: _said(sandbox, "/tmp/first"), 30)
        await update(peer, sandbox, allow_out=["good.test", EVIL], deny_out=[ALL])
        assert (await attempt(sandbox, "touch /tmp/go"))[0] == 0
        assert (await running)[1].strip().splitlines()[-1] == "again"


async def test_a_policy_outlives_a_pause(peer: Peer) -> None:
    """To disk and back; also one that was changed meanwhile."""
    async with sandbox_with(peer, network=NAMES) as sandbox:
        await peer.call("pause", id=sandbox["id"], memory=False)
        resumed = await peer.call("resume", id=sandbox["id"], end_at=sandbox["end_at"])
        assert await reached(resumed, "good.test")
        assert not await reached(resumed, EVIL)
        await peer.call("pause", id=sandbox["id"], memory=False)
        await update(peer, sandbox, deny_out=[SITE])
        resumed = await peer.call("resume", id=sandbox["id"], end_at=sandbox["end_at"])
        assert not await reached(resumed, SITE)
        assert await reached(resumed, EVIL)


async def test_the_next_sandbox_of_a_slot_inherits_no_policy(peer: Peer) -> None:
    """One after the other in the same place."""
    for network in (NAMES, {}, {"deny_out": [EVIL]}, {}):
        async with sandbox_with(peer, network=network, limits={"disk_mb": 64}) as sandbox:
            assert await reached(sandbox, "good.test")
            assert await reached(sandbox, EVIL) is (network == {})


async def test_a_policy_outlives_the_supervisor(world: World, tmp_path: Path) -> None:
    """Killed: nothing opens meanwhile, names go on, the policy can be changed afterwards.

    The process that goes on holds nothing of what was mounted; one that nobody came to use is ended.
    """
    idle = tmp_path / "sandpty" / "egress"
    idle.mkdir(parents=True)
    for path, text in ((idle.parent / "__init__.py", ""), (idle / "main.py", "import signal; signal.pause()")):
        path.write_text(text)
    (idle / "__init__.py").touch()
    async with world.host.peer() as peer:
        sandbox = await peer.create(network=NAMES)
        assert await reached(sandbox, "good.test")
        before = world.egress_pid()
        process = Path(f"/proc/{before}")
        assert "/run/sandpty-" not in (process / "mounts").read_text()
        argv = (process / "cmdline").read_bytes().split(b"\0")[:-1]
        stray = await asyncio.create_subprocess_exec(*argv, env={"PYTHONPATH": str(tmp_path)})
        heard = f"{{fetch({EVIL!r}, {SPEAKS_FIRST}, wait=0.2) for _ in range(20)}}"
        watching = asyncio.create_task(ask(sandbox, heard))
        killed = world.host.kill_supervisor()
        assert "welcome" not in await watching
    await until(lambda: world.host.supervisor_pid != killed, 30)
    peer = await until(lambda: _connected(world), 30)
    try:
        assert await reached(sandbox, "good.test")
        assert not await reached(sandbox, EVIL)
        assert world.egress_pid() == before
        assert await stray.wait() == -signal.SIGKILL
        await update(peer, sandbox, deny_out=[SITE])
        assert await reached(sandbox, EVIL)
        assert not await reached(sandbox, SITE)
        await peer.call("kill", id=sandbox["id"])
    finally:
        await peer.__aexit__()


async def _connected(world: World) -> Peer | None:
    try:
        return await world.host.peer().__aenter__()
    except OSError:
        return None


async def test_without_the_egress_process_names_are_closed_until_it_is_back(peer: Peer, world: World) -> None:
    """It is killed: nothing opens; it comes back with the rules it had."""
    async with sandbox_with(peer, network=NAMES) as sandbox:
        assert await reached(sandbox, "good.test")
        before = world.egress_pid()
        os.kill(before, signal.SIGSTOP)
        try:
            assert await ask(sandbox, "fetch('203.0.113.10', 80, get('good.test'), wait=1)") in (
                "TimeoutError",
                "timeout",
            )
            assert await ask(sandbox, f"fetch({EVIL!r}, {SPEAKS_FIRST}, wait=1)") != "welcome"
        finally:
            os.kill(before, signal.SIGKILL)
        await until(lambda: world.egress_pid() != before, 30)
        await until(lambda: reached(sandbox, "good.test"), 60)
        assert not await reached(sandbox, EVIL)


async def test_what_a_policy_cannot_mean_is_refused(peer: Peer) -> None:
    """At create and at update, which changes nothing then."""
    with pytest.raises(SandptyError, match="ALL_TRAFFIC"):
        await peer.create(network={"allow_out": ["good.test"]})
    async with sandbox_with(peer, network=NAMES) as sandbox:
        with pytest.raises(SandptyError, match="invalid denied CIDR"):
            await update(peer, sandbox, deny_out=["evil.test"])
        assert await reached(sandbox, "good.test")
        assert not await reached(sandbox, EVIL)


async def test_without_isolation_a_policy_is_refused() -> None:
    """The process tier has the host's network: it says so instead of ignoring what was asked for."""
    async with supervised("process") as host, host.peer() as peer:
        for args in ({"internet": False}, {"network": {"deny_out": [ALL]}}, {"network": NAMES}):
            with pytest.raises(SandptyError, match="holds no network policy") as refused:
                await peer.create(**args)
            assert refused.value.reason.name == "unsupported"
