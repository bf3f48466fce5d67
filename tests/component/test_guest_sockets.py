"""Sockets inside sandboxes' networks: what a guest serves is reached, and nothing else is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from sandpty.server.guest_sockets import GuestSockets
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox
from tests.component.supervisor_peer import SERVER_UID, Peer, Supervised, alive, fds, run, supervised
from tests.waiting import turn, until

STRANGER_UID = SERVER_UID + 1
DEADLINE_S = 30.0
SERVE = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.socket(family)
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen(5)
while True:
    peer, _ = listener.accept()
    peer.sendall(sys.argv[3].encode())
    peer.close()
"""


def never_cut(sandbox_id: str, callback: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """Stands for the registry, which tells when a sandbox goes."""
    return contextlib.nullcontext()


@pytest_asyncio.fixture(scope="module")
async def host() -> AsyncIterator[Supervised]:
    """One supervisor for this file."""
    async with supervised() as under_test:
        yield under_test


@pytest_asyncio.fixture(scope="module")
async def peer(host: Supervised) -> AsyncIterator[Peer]:
    """A connection for its verbs."""
    async with host.peer() as connected:
        yield connected


@pytest_asyncio.fixture
async def sockets(host: Supervised) -> AsyncIterator[GuestSockets]:
    """What the server uses."""
    under_test = GuestSockets(str(host.data.guest_sockets), never_cut)
    yield under_test
    under_test.close()


@contextlib.asynccontextmanager
async def created(peer: Peer, **args: Any) -> AsyncIterator[tuple[Sandbox, dict[str, Any]]]:
    """A sandbox as the server and as the tests know it."""
    plain = await peer.create(**args)
    try:
        yield msgspec.convert(plain, Sandbox), plain
    finally:
        with contextlib.suppress(SandptyError):
            await peer.call("kill", id=plain["id"])


@pytest_asyncio.fixture(scope="module")
async def both(peer: Peer) -> AsyncIterator[tuple[Sandbox, dict[str, Any]]]:
    """A sandbox that tests only add services to."""
    async with created(peer) as made:
        yield made


async def serve(plain: dict[str, Any], address: str, port: int, word: str) -> None:
    """Start a service in the sandbox that says `word` to whoever connects."""
    await run(plain, f"nohup python3 -c '{SERVE}' '{address}' {port} '{word}' >/dev/null 2>&1 &", user="user")


async def said(sockets: GuestSockets, sandbox: Sandbox, port: int) -> str:
    """What the service on the port says, once it listens."""

    async def attempt() -> str:
        try:
            reader, writer = await sockets.open(sandbox, port, DEADLINE_S)
        except SandptyError as error:
            if error.reason.name == "port_closed":
                return ""
            raise
        try:
            return (await reader.read()).decode()
        finally:
            writer.close()

    return str(await until(attempt, DEADLINE_S, f"port {port} answers"))


async def refusal(awaited: Any) -> str:
    """The reason for which it fails."""
    with pytest.raises(SandptyError) as caught:
        await awaited
    return caught.value.reason.name


async def test_a_service_on_loopback_only_is_reached(
    sockets: GuestSockets, both: tuple[Sandbox, dict[str, Any]]
) -> None:
    """127.0.0.1 and ::1 of the guest, at the first try and again."""
    sandbox, plain = both
    await serve(plain, "127.0.0.1", 8001, "four")
    await serve(plain, "::1", 8002, "six")
    for _ in range(3):
        assert await said(sockets, sandbox, 8001) == "four"
        assert await said(sockets, sandbox, 8002) == "six"


async def test_a_service_on_the_guests_own_address_is_reached(
    sockets: GuestSockets, both: tuple[Sandbox, dict[str, Any]]
) -> None:
    """Some programs listen on the address of eth0 only."""
    sandbox, plain = both
    own = (await run(plain, "ip -4 -o address show eth0 | awk '{print $4}' | cut -d/ -f1")).strip()
    assert own
    await serve(plain, own, 8003, "own")
    assert await said(sockets, sandbox, 8003) == "own"


async def test_a_closed_port_says_so_at_once(sockets: GuestSockets, both: tuple[Sandbox, dict[str, Any]]) -> None:
    """Also one that the host serves: its loopback is not the guest's."""
    with socket.create_server(("127.0.0.1", 0)) as of_host:
        for port in (8999, of_host.getsockname()[1]):
            assert await refusal(sockets.connect(both[0], port)) == "port_closed"
    for port in (0, -1, 65536):
        assert await refusal(sockets.connect(both[0], port)) == "bad_argument"


async def test_sandboxes_do_not_see_each_others_services(
    sockets: GuestSockets, peer: Peer, both: tuple[Sandbox, dict[str, Any]]
) -> None:
    """The same port of two sandboxes is two ports."""
    await serve(both[1], "127.0.0.1", 8004, "first")
    async with created(peer) as (other, plain):
        assert await said(sockets, both[0], 8004) == "first"
        assert await refusal(sockets.connect(other, 8004)) == "port_closed"
        await serve(plain, "127.0.0.1", 8004, "second")
        assert await said(sockets, other, 8004) == "second"
        assert await said(sockets, both[0], 8004) == "first"


async def test_the_server_listens_inside_a_sandbox(sockets: GuestSockets, both: tuple[Sandbox, dict[str, Any]]) -> None:
    """TCP and UDP, both families, any port and a privileged one; the guest reaches them and they are its own alone."""
    sandbox, plain = both
    loop = asyncio.get_running_loop()
    for kind, address in (("tcp4", "127.0.0.1"), ("tcp6", "::1")):
        with await sockets.bound(sandbox, kind, address, 0) as listener:  # type: ignore[arg-type]
            port = listener.getsockname()[1]
            asked = asyncio.create_task(run(plain, f"exec 3<>/dev/tcp/{address}/{port}; cat <&3", user="user"))
            accepted, _ = await asyncio.wait_for(loop.sock_accept(listener), DEADLINE_S)
            with accepted:
                await loop.sock_sendall(accepted, b"hello guest")
            assert await asked == "hello guest"
    with await sockets.bound(sandbox, "udp4", "127.0.0.1", 53) as datagrams:
        await run(plain, "echo -n question > /dev/udp/127.0.0.1/53", user="user")
        assert await asyncio.wait_for(loop.sock_recv(datagrams, 100), DEADLINE_S) == b"question"
        assert await refusal(sockets.bound(sandbox, "udp4", "127.0.0.1", 53)) == "conflict"
    for address in ("localhost", "203.0.113.9", "::1", "127.0.0.1%eth0"):
        assert await refusal(sockets.bound(sandbox, "tcp4", address, 0)) == "bad_argument"


async def test_paused_and_ended_sandboxes_give_no_sockets(host: Supervised, peer: Peer, sockets: GuestSockets) -> None:
    """Also when the server has not heard of it yet."""
    async with created(peer) as (sandbox, plain):
        await peer.call("pause", id=sandbox.id)
        assert await refusal(sockets.connect(sandbox, 80)) == "sandbox_paused"
        assert await refusal(sockets.connect(msgspec.structs.replace(sandbox, state="paused"), 80)) == "sandbox_paused"
        await peer.call("kill", id=plain["id"])
        assert await refusal(sockets.connect(sandbox, 80)) == "no_such_sandbox"
    assert await refusal(sockets.connect(msgspec.structs.replace(sandbox, id="../etc"), 80)) == "no_such_sandbox"


async def test_only_the_servers_account_is_answered(host: Supervised) -> None:
    """The socket is 0600 and the server's; a stranger who got at it is cut off."""
    status = os.stat(host.data.guest_sockets)
    assert (status.st_mode & 0o777, status.st_uid) == (0o600, SERVER_UID)
    connecting = (
        "import os,socket,sys;"
        "s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET);"
        "os.chdir(sys.argv[1]);"  # as root still; then by a name that needs no rights on the way
        "d=os.open('.',os.O_PATH);os.chmod('sockets.sock',0o666);"
        f"os.setresuid({STRANGER_UID},{STRANGER_UID},{STRANGER_UID});"
        "s.connect('sockets.sock');"
        "s.settimeout(30);print(len(s.recv(10)))"
    )
    mode = host.data.run.stat().st_mode
    os.chmod(host.data.run, 0o755)
    try:
        process = await asyncio.create_subprocess_exec(
            "python3", "-c", connecting, str(host.data.run), stdout=asyncio.subprocess.PIPE
        )
        said_, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    finally:
        os.chmod(host.data.run, mode & 0o777)
        os.chmod(host.data.guest_sockets, 0o600)
    assert said_ == b"0\n"


@pytest.mark.parametrize(
    "message",
    [b"garbage", b"[]", b"{}", b'{"id":"i","kinds":["raw"]}', b"[" * 4000, b'{"id":1,"kinds":["tcp4"],"port":70000}'],
)
async def test_nonsense_ends_only_its_own_connection(
    host: Supervised, sockets: GuestSockets, both: tuple[Sandbox, dict[str, Any]], message: bytes
) -> None:
    """Others go on."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as bad:
        bad.connect(str(host.data.guest_sockets))
        bad.send(message)
        assert await asyncio.wait_for(loop.sock_recv(bad, 100), DEADLINE_S) == b""
    assert await refusal(sockets.connect(both[0], 9)) == "port_closed"


async def test_spare_sockets_go_with_their_sandbox(host: Supervised, peer: Peer) -> None:
    """When it is paused or ends: a socket would keep its network alive. Without it they are asked for again."""
    cuts: dict[str, Callable[[], None]] = {}

    @contextlib.contextmanager
    def cutting(sandbox_id: str, callback: Callable[[], None]) -> Iterator[None]:
        cuts[sandbox_id] = callback
        yield
        del cuts[sandbox_id]

    async with created(peer) as (sandbox, plain):
        before = fds(os.getpid())
        under_test = GuestSockets(str(host.data.guest_sockets), cutting)
        await serve(plain, "127.0.0.1", 8005, "hello")
        for _ in range(20):
            assert await said(under_test, sandbox, 8005) == "hello"
        cuts[sandbox.id]()
        assert not cuts
        assert await said(under_test, sandbox, 8005) == "hello"
        under_test.close()
        assert not cuts
        await until(lambda: fds(os.getpid()) <= before, DEADLINE_S)


async def test_nothing_is_left_open_by_connects_that_fail_or_are_cancelled(
    host: Supervised, sockets: GuestSockets, both: tuple[Sandbox, dict[str, Any]]
) -> None:
    """Descriptors of server and supervisor are back where they were."""
    await refusal(sockets.connect(both[0], 9))  # the connection to the supervisor is there
    mine, theirs = fds(os.getpid()), fds(host.supervisor_pid)
    for _ in range(20):
        tasks = [asyncio.create_task(sockets.connect(both[0], 9)) for _ in range(20)]
        await turn()
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await refusal(sockets.connect(both[0], 9))  # the last answer is here, so all are
    await until(lambda: (fds(os.getpid()), fds(host.supervisor_pid)) <= (mine, theirs), DEADLINE_S)


async def test_a_new_supervisor_gives_sockets_again() -> None:
    """What is asked while there is none fails with a clear reason; the sandbox's services are still there."""
    async with supervised() as own:
        source = GuestSockets(str(own.data.guest_sockets), never_cut)
        async with own.peer() as before:
            plain = await before.create()
            sandbox = msgspec.convert(plain, Sandbox)
            await serve(plain, "::1", 8001, "still here")  # for which no socket is kept ready
            assert await said(source, sandbox, 8001) == "still here"
        old = own.kill_supervisor()
        await until(lambda: not alive(old), DEADLINE_S)

        async def again() -> str:
            try:
                return await said(source, sandbox, 8001)
            except SandptyError as error:
                if error.reason.name in ("supervisor_down", "no_such_sandbox"):
                    return ""
                raise

        async def serves() -> bool:
            with contextlib.suppress(OSError):
                async with own.peer() as peer:
                    return sandbox.id in await peer.ids()
            return False

        assert await until(again, DEADLINE_S) == "still here"
        await until(serves, DEADLINE_S)
        source.close()


async def test_the_process_tier_refuses() -> None:
    """Its network is the host's: no one may reach the host's loopback services by naming a sandbox."""
    async with supervised("process") as own, own.peer() as peer:
        source = GuestSockets(str(own.data.guest_sockets), never_cut)
        async with created(peer, template="base") as (sandbox, _):
            assert await refusal(source.connect(sandbox, 22)) == "unsupported"
            assert await refusal(source.bound(sandbox, "tcp4", "127.0.0.1", 0)) == "unsupported"
        source.close()
