"""Headers that a policy gives requests on the way out, and proxies they go through, as a sandbox's owner sees them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from sandpty.config import DataDir
from sandpty.wire.errors import SandptyError
from tests.component.fake_internet import Listener, SocksProxy
from tests.component.network_policy_world import ALL, ECHO, EVIL, PROXY, SITE, SPEAKS_FIRST, World, ask
from tests.component.supervisor_peer import Peer, attempt
from tests.waiting import until

SECRET = "t0p-secret"
HEADERS = {"good.test": {"X-Key": SECRET, "X-Other": "two"}, "*.wild.test": {"X-Wild": "w"}, "b.wild.test": {}}
TRUST = "curl -s --max-time 20 --cacert /tmp/ca.pem"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guest(peer: Peer) -> dict[str, Any]:
    """It may reach everything; requests to some hosts are given headers. It trusts what the server would install."""
    sandbox = await peer.create(network={"headers": HEADERS})
    pem = (await peer.call("egress_authority"))["pem"]
    assert (await attempt(sandbox, f"cat > /tmp/ca.pem <<'END'\n{pem}END", "root"))[0] == 0
    return sandbox


async def curl(guest: dict[str, Any], words: str) -> str:
    """What curl says, trusting nobody else."""
    return (await attempt(guest, f"{TRUST} {words}", "user", 60))[1]


def fields(head: str) -> list[str]:
    """The lines of a request's head, without its first."""
    return head.strip().split("\r\n")[1:]


@pytest.mark.parametrize("url", ["http://good.test/a", "https://good.test/a"], ids=["http", "https"])
async def test_requests_are_given_the_headers(world: World, guest: dict[str, Any], url: str) -> None:
    """Added, and in place of what the program sent under that name, however it is spelled; the rest is as it was."""
    sent = "-H 'x-key: mine' -H 'X_Key: mine' -H 'X-Third: 3' -H 'Connection: keep-alive, X-Key' --data hello"
    assert await curl(guest, f"{sent} {url}") == "web good.test 5"
    head = fields(world.heads[-1])
    assert [line for line in head if line.lower().replace("_", "-").startswith("x-key")] == [f"X-Key: {SECRET}"]
    assert {"X-Other: two", "X-Third: 3", "Host: good.test", "Connection: keep-alive"} <= set(head)


async def test_the_most_exact_rule_counts_alone(world: World, guest: dict[str, Any]) -> None:
    """A wildcard's for what lies below it; the exact one's, even when it gives nothing; no other host's."""
    world.names.records[("b.wild.test", "A")] = [SITE]
    for host, expected in (("a.wild.test", ["X-Wild: w"]), ("b.wild.test", []), ("cdn.other.test", []), (SITE, [])):
        assert "web" in await curl(guest, f"http://{host}/")
        assert [line for line in fields(world.heads[-1]) if line.startswith("X-")] == expected


async def test_one_connection_carries_many_requests_and_bodies(world: World, guest: dict[str, Any]) -> None:
    """Kept alive, each request gets the headers; a megabyte passes with a length and in chunks."""
    before = len(world.heads)
    big = "head -c 1000000 /dev/zero | "
    for how in ("--data-binary @-", "-T - -H 'Transfer-Encoding: chunked'"):
        code, text = await attempt(guest, f"{big}{TRUST} {how} https://good.test/1", "user", 60)
        assert (code, text) == (0, "web good.test 1000000")
    assert await curl(guest, "https://good.test/1 https://good.test/2") == "web good.testweb good.test"
    assert all(f"X-Key: {SECRET}" in fields(head) for head in world.heads[before:])


async def test_only_named_hosts_are_looked_into(world: World, guest: dict[str, Any]) -> None:
    """Others' certificates are their own, on every port; what speaks first, or no HTTP, passes as it is."""
    assert await curl(guest, "https://cdn.other.test/") == ""
    assert "web" in await curl(guest, "-k https://cdn.other.test/ --resolve cdn.other.test:443:" + SITE)
    assert await ask(guest, f"fetch({SITE!r}, {SPEAKS_FIRST})") == "welcome"
    said = await ask(guest, f"fetch({SITE!r}, 443, get('x'), '')")  # a client that names no server
    assert "web x" in said


async def test_a_web_socket_opens_with_the_headers(world: World, guest: dict[str, Any]) -> None:
    """Inside TLS too; afterwards its bytes pass as they are."""
    program = """
import socket, ssl
context = ssl.create_default_context(cafile="/tmp/ca.pem")
link = context.wrap_socket(socket.create_connection(("good.test", 443), 20), server_hostname="good.test")
link.sendall(b"GET /ws HTTP/1.1\\r\\nHost: good.test\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n")
heard = b""
while b"\\r\\n\\r\\n" not in heard: heard += link.recv(4096)
link.sendall(b"\\x82\\x02hi")
print(heard[:12], link.recv(4), link.selected_alpn_protocol())
"""
    code, text = await attempt(guest, f"python3 - <<'END'\n{program}\nEND", "user", 60)
    assert (code, text.strip()) == (0, r"b'HTTP/1.1 101' b'\x82\x02hi' None")
    assert f"X-Key: {SECRET}" in fields(world.heads[-1])


async def test_credentials_go_to_nobody_but_the_named_host(world: World, guest: dict[str, Any]) -> None:
    """Whatever address is dialled, the host is resolved by us; a server that cannot prove it is one gets nothing."""
    before = len(world.heads)
    for scheme, port in (("http", 80), ("https", 443)):
        assert "web good.test" in await curl(guest, f"{scheme}://good.test/ --resolve good.test:{port}:{EVIL}")
    world.names.records[("c.wild.test", "A")] = [EVIL]
    world.names.records[("deep.a.wild.test", "A")] = [SITE]
    heads = len(world.heads)
    said = await curl(guest, "-w ' %{http_code}' https://deep.a.wild.test/")  # its certificate: *.wild.test
    assert "Hostname mismatch" in said
    assert said.endswith(" 502")
    assert len(world.heads) == heads == before + 2


@pytest.mark.parametrize(
    "said",
    [
        b"GET /1 HTTP/1.1\r\nHost: good.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"GET https://evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"CONNECT evil.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
        b"POST / HTTP/1.0\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nHELLO\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n5;\nx\r\nHELLO\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.test\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.test\r\nX-A: b\rX-Key: mine\r\n\r\n",
    ],
    ids=["second", "other", "absolute", "connect", "two lengths", "1.0", "chunk", "h2c", "http2", "bare cr"],
)
async def test_nothing_is_smuggled_past_the_headers(world: World, guest: dict[str, Any], said: bytes) -> None:
    """Inside TLS: no request arrives for another host, none without the headers, none with others of that name."""
    before = len(world.heads)
    program = f"""
import socket, ssl
context = ssl.create_default_context(cafile="/tmp/ca.pem")
link = context.wrap_socket(socket.create_connection(("good.test", 443), 20), server_hostname="good.test")
try:
    link.sendall({said!r})
    link.settimeout(1)
    while link.recv(4096): pass
except OSError: pass
"""
    assert (await attempt(guest, f"python3 - <<'END'\n{program}\nEND", "user", 60))[0] == 0
    for head in world.heads[before:]:
        assert "evil.test" not in head
        assert [line for line in fields(head) if "x-key" in line.lower()] == [f"X-Key: {SECRET}"]
        assert "upgrade" not in head.lower()


async def test_secrets_stay_where_they_are(world: World, peer: Peer, guest: dict[str, Any]) -> None:
    """Not in what is told of the sandbox, not in the log; the authority's key is root's, and no guest's."""
    listed = next(each for each in (await peer.call("list"))["sandboxes"] if each["id"] == guest["id"])
    assert listed["network"]["headers"]["good.test"] == {"X-Key": "<hidden>", "X-Other": "<hidden>"}
    assert SECRET not in str(guest)
    assert SECRET not in DataDir(world.host.path).supervisor_log.read_text()
    directory = world.host.path / "egress"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert ((directory / "ca.key").stat().st_mode & 0o777, (directory / "ca.key").stat().st_uid) == (0o600, 0)
    assert os.stat(f"/proc/{world.egress_pid()}/environ").st_uid == 0  # nobody but root looks into it
    assert (await attempt(guest, f"cat {directory}/ca.key", "root"))[0] != 0


async def test_an_update_holds_at_once(world: World, peer: Peer, guest: dict[str, Any]) -> None:
    """New values, kept values, none: also for connections that are open."""
    sandbox = await peer.create(network={"headers": {"good.test": {"X-Key": "one", "X-Kept": "kept"}}})
    program = """
import socket
link = socket.create_connection(("good.test", 80), 20)
def ask():
    link.sendall(b"GET / HTTP/1.1\\r\\nHost: good.test\\r\\n\\r\\n")
    return link.recv(4096)
import os
os.mkfifo("/tmp/again")
ask(); open("/tmp/asked", "w").close()
open("/tmp/again").read()
ask(); print("asked")
"""
    asking = asyncio.create_task(attempt(sandbox, f"python3 - <<'END'\n{program}\nEND", "root", 60))

    async def asked() -> bool:
        return (await attempt(sandbox, "test -e /tmp/asked", "root"))[0] == 0

    await until(asked, 30)
    policy = {"headers": {"good.test": {"X-Key": "two", "X-Kept": "<hidden>"}}}
    await peer.call("network", id=sandbox["id"], policy=policy)
    await attempt(sandbox, "echo > /tmp/again", "root")
    assert "asked" in (await asking)[1]
    assert {"X-Key: two", "X-Kept: kept"} <= set(fields(world.heads[-1]))
    await peer.call("network", id=sandbox["id"], policy={})
    assert "web" in await curl(sandbox, "http://good.test/")
    assert not [line for line in fields(world.heads[-1]) if line.startswith("X-")]
    await peer.call("kill", id=sandbox["id"])


async def test_denied_destinations_stay_denied(world: World, peer: Peer) -> None:
    """A header opens nothing: not a name that is not allowed, not a name at a denied address."""
    for policy in (
        {"deny_out": [ALL], "allow_out": ["a.wild.test"]},
        {"deny_out": [f"{SITE}/32"]},
        {"deny_out": [ALL], "allow_out": [EVIL]},
    ):
        sandbox = await peer.create(network={**policy, "headers": HEADERS})
        for port in (80, 443):
            said = await ask(
                sandbox, f"fetch({EVIL!r}, {port}, get('good.test'), {'None' if port == 80 else repr('good.test')})"
            )
            assert "web" not in said, (policy, port)
        await peer.call("kill", id=sandbox["id"])


@pytest.mark.parametrize(
    "policy",
    [
        {"headers": {"good.test": {"X-A": "b\r\nX-B: c"}}},
        {"headers": {"good.test": {"X A": "b"}}},
        {"headers": {"good.test": {"Host": "evil.test"}}},
        {"headers": {"good.test": {"Transfer-Encoding": "chunked"}}},
        {"headers": {"*": {"X-A": "b"}}},
        {"headers": {"10.0.0.1": {"X-A": "b"}}},
        {"headers": {"good.test": {"X-A": "${e2b.identity.tokens.aws}"}}},
        {"headers": {"good.test": {"X-A": "<hidden>"}}},
        {"proxy": {"address": "proxy.test"}},
        {"proxy": {"address": "10.9.9.9:1080"}},
        {"proxy": {"address": "rebind.test:1080"}},
        {"proxy": {"address": "nowhere.test:1080"}},
        {"proxy": {"address": "proxy.test:1080", "password": "x"}},
    ],
)
async def test_what_cannot_be_held_is_refused(peer: Peer, policy: dict[str, Any]) -> None:
    """Before there is a sandbox, and without saying a value."""
    with pytest.raises(SandptyError) as refused:
        await peer.create(network=policy)
    assert refused.value.reason.name == "bad_argument"


# --- proxies ---


@asynccontextmanager
async def tunneled(
    world: World, peer: Peer, *, tls: bool = False, **policy: Any
) -> AsyncIterator[tuple[SocksProxy, Any]]:
    """A proxy for one user, and a sandbox that is to use it."""
    proxy = SocksProxy(world.internet_pid, "me", "pa55")
    server = await proxy.open(PROXY, 1080, world.authority.context("proxy.test") if tls else None)
    wanted = {"address": "proxy.test:1080", "username": "me", "password": "pa55", **({"tls": {}} if tls else {})}
    try:
        sandbox = await peer.create(network={"proxy": wanted, **policy})
        yield proxy, sandbox
        await peer.call("kill", id=sandbox["id"])
    finally:
        server.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_tcp_goes_through_the_proxy(world: World, peer: Peer, tls: bool) -> None:
    """All of it, whatever is spoken, to the proxy by name and with its password, over TLS where that is asked for."""
    async with tunneled(world, peer, tls=tls) as (proxy, sandbox):
        with Listener(world.internet_pid) as listener:
            assert "web good.test" in await ask(sandbox, "fetch('good.test', 80, get('good.test'))")
            assert "web x" in await ask(sandbox, f"fetch({SITE!r}, 443, get('x'), 'any.test')")
            assert await ask(sandbox, f"fetch({SITE!r}, {SPEAKS_FIRST})") == "welcome"
            heard = {each[2] for each in listener.heard() if each[1] == 6}
        assert heard == {PROXY}
        assert proxy.asked == [(SITE, 80), (SITE, 443), (SITE, SPEAKS_FIRST)]
        assert "pa55" not in str((await peer.call("list"))["sandboxes"])


async def test_policy_and_headers_come_before_the_proxy(world: World, peer: Peer) -> None:
    """What is denied never reaches it; requests have their headers when they do."""
    policy = {"deny_out": [ALL], "allow_out": ["good.test"], "headers": {"good.test": {"X-Key": SECRET}}}
    async with tunneled(world, peer, tls=True, **policy) as (proxy, sandbox):
        assert "web" not in await ask(sandbox, "fetch('203.0.113.20', 80, get('evil.test'))")
        assert "web good.test" in await ask(sandbox, "fetch('good.test', 443, get('good.test'), 'good.test')")
        assert f"X-Key: {SECRET}" in fields(world.heads[-1])
        assert proxy.asked == [(SITE, 443)]


async def test_without_its_proxy_a_sandbox_reaches_nothing(world: World, peer: Peer) -> None:
    """It is gone, it does not take the password, it has another certificate: nothing goes around it."""
    good = {"address": "proxy.test:1080", "username": "me", "password": "pa55"}
    proxy = SocksProxy(world.internet_pid, "me", "other")
    server = await proxy.open(PROXY, 1080)
    sandbox = await peer.create(network={"proxy": good})
    with Listener(world.internet_pid) as listener:
        assert "web" not in await ask(sandbox, "fetch('good.test', 80, get('good.test'))")
        assert proxy.refused == 1
        await peer.call("network", id=sandbox["id"], policy={"proxy": {**good, "tls": {}}})
        assert "web" not in await ask(sandbox, "fetch('good.test', 80, get('good.test'))")
        server.close()
        assert "web" not in await ask(sandbox, "fetch('good.test', 80, get('good.test'))")
        assert SITE not in {each[2] for each in listener.heard()}
    await peer.call("kill", id=sandbox["id"])


async def test_connections_from_before_a_proxy_do_not_go_around_it(world: World, peer: Peer) -> None:
    """A connection that is open when the proxy is set ends."""
    sandbox = await peer.create()
    program = f"""
import socket, os
os.mkfifo("/tmp/again")
link = socket.create_connection(({SITE!r}, {ECHO}), 20); link.sendall(b"a"); link.recv(1)
open("/tmp/asked", "w").close()
open("/tmp/again").read()
link.settimeout(5)
try: link.sendall(b"b"); print("heard", link.recv(1))
except OSError as error: print(type(error).__name__)
"""
    asking = asyncio.create_task(attempt(sandbox, f"python3 - <<'END'\n{program}\nEND", "root", 60))

    async def asked() -> bool:
        return (await attempt(sandbox, "test -e /tmp/asked", "root"))[0] == 0

    await until(asked, 30)
    await peer.call("network", id=sandbox["id"], policy={"proxy": {"address": f"{PROXY}:1080"}})
    await attempt(sandbox, "echo > /tmp/again", "root")
    assert "heard b'b'" not in (await asking)[1]
    await peer.call("kill", id=sandbox["id"])
