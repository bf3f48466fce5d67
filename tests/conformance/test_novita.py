"""Novita's unmodified Python SDK, sync and async: what differs from E2B's, and that the rest works."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio
from novita_sandbox.code_interpreter import AsyncSandbox, PtySize, Sandbox
from novita_sandbox.core import (
    AuthenticationException,
    CommandExitException,
    NotFoundException,
    SandboxException,
    TimeoutException,
)
from novita_sandbox.core.connection_config import ApiParams

from tests.server_fixture import RunningServer, sandpty
from tests.waiting import until, until_sync

UNKNOWN = "i00000000000000000000"
SIZE = PtySize(rows=24, cols=80)
WAIT_S = 30.0


@pytest.fixture(scope="module")
def sandbox(sdk_env: dict[str, str]) -> Iterator[Sandbox]:
    """A sandbox for all tests that leave it as it was."""
    created = Sandbox.create(timeout=300)
    yield created
    created.kill()


@pytest_asyncio.fixture(scope="module")
async def asandbox(sdk_env: dict[str, str]) -> AsyncIterator[AsyncSandbox]:
    """The same through asyncio."""
    created = await AsyncSandbox.create(timeout=300)
    yield created
    await created.kill()


def _ids() -> list[str]:
    pages = Sandbox.list()
    found: list[str] = []
    while pages.has_next:
        found += [item.sandbox_id for item in pages.next_items()]
    return found


def test_a_sandbox_is_created_found_and_killed(sdk_env: dict[str, str]) -> None:
    """Info, list, metadata and environment; `kill` is False the second time."""
    made = Sandbox.create(timeout=120, metadata={"who": "me"}, envs={"FROM": "create"})
    assert made.is_running()
    info = made.get_info()
    assert (info.metadata, info.state.value) == ({"who": "me"}, "running")
    assert made.sandbox_id in _ids()
    assert made.commands.run("echo $FROM").stdout == "create\n"
    made.set_timeout(200)
    assert (made.get_info().end_at - info.end_at).total_seconds() > 60
    assert made.kill() is True
    assert made.kill() is False
    assert not made.is_running()
    assert made.sandbox_id not in _ids()


def test_a_client_that_connects_is_known_by_its_token_alone(sandbox: Sandbox) -> None:
    """After connect() the SDK sends no sandbox's id: also for a sandbox that asked not to be secure."""
    sandbox.commands.run("echo kept > /tmp/kept")
    assert Sandbox.connect(sandbox.sandbox_id).commands.run("cat /tmp/kept").stdout == "kept\n"
    open_to_all = Sandbox.create(timeout=120, secure=False)
    other = Sandbox.connect(open_to_all.sandbox_id)
    assert other.commands.run("echo here").stdout == "here\n"
    assert other.kill() is True


def test_commands(sandbox: Sandbox) -> None:
    """Output apart, exit codes, the error that is an empty text on success, users, background and kill."""
    result = sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code, result.error) == ("out\n", "err\n", 0, "")
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("exit 3")
    assert caught.value.exit_code == 3
    assert sandbox.commands.run("id -un", user="root").stdout == "root\n"
    handle = sandbox.commands.run("sleep 600", background=True)
    assert handle.pid in [process.pid for process in sandbox.commands.list()]
    assert sandbox.commands.kill(handle.pid) is True
    assert sandbox.commands.kill(handle.pid) is False


def test_a_terminal_from_its_start_to_its_end(sandbox: Sandbox) -> None:
    """Each chunk is whole text, the size changes, `exit` ends it."""
    terminal = sandbox.pty.create(SIZE, timeout=60)
    sandbox.pty.resize(terminal.pid, PtySize(rows=40, cols=120))
    sandbox.pty.send_stdin(terminal.pid, "stty size; for i in $(seq 999); do printf 'é€😀'; done; exit\n".encode())
    text: list[str] = []
    result = terminal.wait(on_pty=lambda data: text.append(data.decode()))
    assert result.exit_code == 0
    assert "40 120" in "".join(text)
    assert "".join(text).count("é€😀") >= 999


def test_a_terminal_goes_on_after_a_disconnect(sandbox: Sandbox) -> None:
    """What was said meanwhile comes to the next handle."""
    terminal = sandbox.pty.create(SIZE, timeout=0)
    terminal.disconnect()
    sandbox.pty.send_stdin(terminal.pid, b"echo mean''while; exit\n")
    text: list[str] = []
    assert sandbox.pty.connect(terminal.pid).wait(on_pty=lambda data: text.append(data.decode())).exit_code == 0
    assert "meanwhile" in "".join(text)


def test_a_terminal_ends_at_its_timeout(sandbox: Sandbox) -> None:
    """The server has to end the stream: this client does not, as long as something comes."""
    terminal = sandbox.pty.create(SIZE, timeout=2)
    began = time.monotonic()
    with pytest.raises(TimeoutException):
        terminal.wait()
    assert time.monotonic() - began < WAIT_S
    assert terminal.pid not in [process.pid for process in sandbox.commands.list()]


async def test_the_async_client(asandbox: AsyncSandbox) -> None:
    """A command and a terminal with a callback."""
    assert (await asandbox.commands.run("echo one")).stdout == "one\n"
    seen = bytearray()
    terminal = await asandbox.pty.create(SIZE, on_data=seen.extend)
    await asandbox.pty.send_stdin(terminal.pid, b"echo tw''o; exit\n")
    assert (await asyncio.wait_for(terminal.wait(), WAIT_S)).exit_code == 0
    assert b"two" in seen
    again = await AsyncSandbox.connect(asandbox.sandbox_id)
    assert (await again.commands.run("echo three")).stdout == "three\n"


def test_errors_are_the_sdks_own(sandbox: Sandbox) -> None:
    """Nothing raw: wrong keys, unknown sandboxes, processes that are not there."""
    wrong: ApiParams = {"api_key": "wrong"}
    with pytest.raises(AuthenticationException):
        Sandbox.create(**wrong)
    for act in (
        lambda: Sandbox.connect(UNKNOWN),
        lambda: Sandbox.get_info(UNKNOWN),
        lambda: Sandbox.set_timeout(UNKNOWN, 60),
        lambda: Sandbox.reset(UNKNOWN),
    ):
        with pytest.raises(SandboxException, match=r"not found|Not found|doesn't exist"):
            act()
    assert Sandbox.kill(UNKNOWN) is False
    with pytest.raises(NotFoundException):
        sandbox.pty.connect(999_999).wait()
    with pytest.raises(SandboxException, match="template 'nothing' not found"):
        Sandbox.create("nothing")


def test_pause_and_connect(sdk_env: dict[str, str]) -> None:
    """Processes go on where they stood."""
    made = Sandbox.create(timeout=120)
    handle = made.commands.run("sleep 600", background=True)
    made.pause()
    made.pause()  # a second time is no error
    assert made.get_info().state.value == "paused"
    again = Sandbox.connect(made.sandbox_id)
    assert handle.pid in [process.pid for process in again.commands.list()]
    again.kill()


def test_reset_keeps_the_files_and_ends_everything_else(sdk_env: dict[str, str]) -> None:
    """A new boot of the same files; also of a sandbox that was paused."""
    made = Sandbox.create(timeout=120)
    made.commands.run("echo kept > /home/user/kept")
    handle = made.commands.run("sleep 600", background=True)
    boot_id = made.commands.run("cat /proc/sys/kernel/random/boot_id").stdout
    assert made.reset() is True
    assert made.commands.run("cat /home/user/kept").stdout == "kept\n"
    assert made.commands.run("cat /proc/sys/kernel/random/boot_id").stdout != boot_id
    assert handle.pid not in [process.pid for process in made.commands.list()]
    made.pause()
    assert made.reset(timeout=100) is True
    assert made.get_info().state.value == "running"
    assert made.reset(resume=False) is True
    assert made.get_info().state.value == "paused"
    assert made.reset(resume=False) is False
    made.kill()


def test_clones_have_the_files_and_go_their_own_ways(sdk_env: dict[str, str]) -> None:
    """The source goes on; each clone has a token of its own, which is all that this client names it by."""
    source = Sandbox.create(timeout=600)
    source.commands.run("echo kept > /home/user/kept")
    result = Sandbox.clone(source.sandbox_id, count=2, strict=True)
    assert result.count == 2
    clones = result.sandboxes
    for number, clone in enumerate(clones):
        clone.commands.run(f"echo {number} >> /home/user/kept")
    assert [clone.commands.run("cat /home/user/kept").stdout for clone in clones] == ["kept\n0\n", "kept\n1\n"]
    assert source.commands.run("cat /home/user/kept").stdout == "kept\n"
    later_s = (clones[0].get_info().end_at - source.get_info().end_at).total_seconds()
    assert abs(later_s) < 30, "without a timeout it ends when its source does"
    with pytest.raises(SandboxException, match="count"):
        Sandbox.clone(source.sandbox_id, count=0)
    for each in (source, *clones):
        assert each.kill()


def test_more_memory_while_it_runs(sdk_env: dict[str, str]) -> None:
    """`resize` adds; what needs it then fits; too much is refused."""
    made = Sandbox.create(timeout=300)
    before = made.get_info().memory_mb
    made.resize(memory_mib=256)
    assert made.get_info().memory_mb == before + 256
    assert made.commands.run("echo still here").stdout == "still here\n"
    with pytest.raises(SandboxException, match="requested_size_mib"):
        made.resize(memory_mib=10**9)
    made.kill()


def test_the_network_changes_while_it_runs(sdk_env: dict[str, str]) -> None:
    """Denied and allowed again; the sandbox says so."""
    made = Sandbox.create(timeout=300)
    made.set_network(deny_out=["0.0.0.0/0"])
    network = made.get_info().network
    assert network
    assert network["deny_out"] == ["0.0.0.0/0"]
    made.set_network()
    assert not (made.get_info().network or {}).get("deny_out")
    made.kill()


def test_snapshots(sdk_env: dict[str, str]) -> None:
    """Made, listed, started from, deleted."""
    source = Sandbox.create(timeout=600)
    source.commands.run("echo kept > /home/user/kept")
    snapshot = source.create_snapshot()
    pages = Sandbox.list_snapshots(sandbox_id=source.sandbox_id)
    assert [item.snapshot_id for item in pages.next_items()] == [snapshot.snapshot_id]
    made = Sandbox.create(snapshot.snapshot_id, timeout=600)
    assert made.commands.run("cat /home/user/kept").stdout == "kept\n"
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is False
    for each in (source, made):
        assert each.kill()


def test_files(sandbox: Sandbox) -> None:
    """Written, read, listed, moved, removed; also by a client that connected, which has nothing but the token."""
    other = Sandbox.connect(sandbox.sandbox_id)
    for number, client in enumerate((sandbox, other)):
        home = f"/home/user/files-{number}"
        assert client.files.make_dir(home) is True
        info = client.files.write(f"{home}/one.txt", "eins\n")
        assert (info.name, info.path) == ("one.txt", f"{home}/one.txt")
        written = client.files.write_files(
            [{"path": f"{home}/two.bin", "data": bytes(range(256))}, {"path": f"{home}/deep/three", "data": "drei"}]
        )
        assert [each.path for each in written] == [f"{home}/two.bin", f"{home}/deep/three"]
        assert client.files.read(f"{home}/one.txt") == "eins\n"
        assert bytes(client.files.read(f"{home}/two.bin", format="bytes")) == bytes(range(256))
        client.commands.run(f"ln -s one.txt {home}/link && ln -s deep {home}/way")
        listed = {entry.name: entry.type.value if entry.type else None for entry in client.files.list(home)}
        assert listed == {"one.txt": "file", "two.bin": "file", "deep": "dir", "link": "file", "way": "dir"}
        assert client.files.rename(f"{home}/one.txt", f"{home}/moved").path == f"{home}/moved"
        assert not client.files.exists(f"{home}/one.txt")
        assert client.files.get_info(f"{home}/moved").size == 5
        client.files.remove(home)
        assert not client.files.exists(home)
    with pytest.raises(NotFoundException):
        sandbox.files.read("/home/user/nothing")


def test_signed_addresses(sandbox: Sandbox) -> None:
    """Nothing but the signature says whose file it is; a wrong one is refused."""
    content = b"signed\n" * 1000
    sandbox.files.write("/home/user/signed", content)
    address = sandbox.download_url("/home/user/signed")
    assert httpx.get(address, timeout=WAIT_S).content == content
    answer = httpx.post(sandbox.upload_url("/home/user/up"), files={"file": ("up", b"uploaded")}, timeout=WAIT_S)
    assert answer.status_code == 200
    assert sandbox.files.read("/home/user/up") == "uploaded"
    assert httpx.get(address.replace("signature=v1_", "signature=v1_x"), timeout=WAIT_S).status_code in (401, 502)


def test_a_watched_directory(sandbox: Sandbox) -> None:
    """What happens in it is told, by the kind that Novita's client knows."""
    sandbox.files.make_dir("/home/user/watched")
    handle = sandbox.files.watch_dir("/home/user/watched")
    sandbox.files.write("/home/user/watched/new", "x")
    seen: list[str] = []

    def told() -> bool:
        seen.extend(f"{event.type.value} {event.name}" for event in handle.get_new_events())
        return any("new" in each for each in seen)

    until_sync(told, WAIT_S, "an event")
    handle.stop()


def test_quota_tells_what_the_team_uses(sandbox: Sandbox) -> None:
    """And what this host can give."""
    quota = Sandbox.get_quota()
    assert 1 <= quota.usage.concurrent_instances < quota.limit.concurrent_instances
    assert quota.usage.concurrent_ram_mb >= 1024
    assert quota.limit.max_vcpu >= 1
    assert quota.limit.max_length_hours == 720


def test_events_tell_what_became_of_sandboxes(sdk_env: dict[str, str]) -> None:
    """Also after their end; filtered, ordered, page by page."""
    made = Sandbox.create(timeout=120)
    made.pause()
    Sandbox.connect(made.sandbox_id)
    made.kill()
    found = Sandbox.get_events(sandbox_id=made.sandbox_id)
    assert [item.event_name for item in found.items] == ["delete", "resume", "pause", "create"]
    assert (found.total, found.has_more) == (4, False)
    assert {item.state for item in found.items} == {"success"}
    assert {item.template_id for item in found.items} == {found.items[0].template_id}
    page = Sandbox.get_events(sandbox_id=made.sandbox_id, order_asc=True, offset=1, limit=2)
    assert [item.event_name for item in page.items] == ["pause", "resume"]
    assert page.has_more
    one = Sandbox.get_events(sandbox_id=made.sandbox_id, events="create,delete", order_asc=True)
    assert [item.event_name for item in one.items] == ["create", "delete"]
    last = found.items[0].record_at
    assert Sandbox.get_events(sandbox_id=made.sandbox_id, start_time=last + 1).items == []
    assert len(Sandbox.get_events(sandbox_id=made.sandbox_id, end_time=last).items) == 4
    assert Sandbox.get_events(state="failed", sandbox_id=made.sandbox_id).items == []


def test_metrics(sandbox: Sandbox) -> None:
    """The same as E2B's."""
    first = sandbox.get_metrics()[0]
    assert 0 < first.mem_used < first.mem_total


async def test_many_handles_at_once(sandbox: Sandbox) -> None:
    """Ten terminals, each read in a thread of its own, as the documents have it."""
    seen: dict[int, bytearray] = {}
    threads = []
    for _ in range(10):
        terminal = sandbox.pty.create(SIZE, timeout=0)
        seen[terminal.pid] = bytearray()
        reader = threading.Thread(target=terminal.wait, kwargs={"on_pty": seen[terminal.pid].extend}, daemon=True)
        reader.start()
        threads.append(reader)
    for pid in seen:
        sandbox.pty.send_stdin(pid, f"echo mine-$(({pid} * 2)); exit\n".encode())
    for reader in threads:
        await asyncio.to_thread(reader.join, WAIT_S)
    for pid, output in seen.items():
        await until(lambda o=output, p=pid: f"mine-{p * 2}".encode() in o, WAIT_S)  # type: ignore[misc]


def test_the_environment_that_is_printed_reaches_this_server(server: RunningServer) -> None:
    """`sandpty env` names what Novita's SDKs look for."""
    command = sandpty("env", "--data-dir", str(server.data_dir))
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    for name in ("NOVITA_API_KEY", "NOVITA_API_URL", "NOVITA_SANDBOX_URL"):
        assert f"export {name}={server.env[name]}" in printed
    assert "unset E2B_DEBUG E2B_DOMAIN NOVITA_DEBUG NOVITA_DOMAIN" in printed
