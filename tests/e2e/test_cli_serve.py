"""`sandpty serve` and `sandpty down`: what is root and what is not, what lives on, what is refused."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cli_fixture import Cli
from tests.e2e.test_cli_commands import assert_one_line
from tests.server_fixture import RunningServer, running_server, sandpty
from tests.waiting import until_sync


@pytest.fixture(scope="module")
def own_server() -> Iterator[RunningServer]:
    """A server that these tests may stop and start."""
    with running_server() as running:
        yield running


@pytest.fixture
def cli(own_server: RunningServer, tmp_path: Path) -> Cli:
    """The command line, against that server."""
    return Cli(own_server, tmp_path)


def status_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def refused(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`sandpty serve` that must not come up."""
    return subprocess.run(
        sandpty("serve", *words),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=env,
    )


def test_the_server_is_root_no_more_when_it_serves(cli: Cli) -> None:
    """Every thread: another uid and gid, no groups, no capability in any set, no way to gain one."""
    assert cli.server.process is not None
    tasks = list(Path(f"/proc/{cli.server.process.pid}/task").iterdir())
    assert tasks
    for task in tasks:
        status = status_of(int(task.name))
        assert set(status["Uid"].split()) & {"0"} == set()
        assert set(status["Gid"].split()) & {"0"} == set()
        assert status["Groups"] == ""
        assert status["NoNewPrivs"] == "1"
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0, name
    assert status_of(cli.server.supervisor_pid())["Uid"].split()[0] == "0"


def test_the_start_says_where_what_and_how_to_go_on(cli: Cli) -> None:
    """Address, isolation, data directory, the line for the SDKs, how to stop."""
    said = cli.server.log.read_text()
    assert cli.server.url in said
    assert re.search(r"isolation +crun \(crun ", said)
    assert f'eval "$(sandpty env --data-dir {cli.server.data_dir})"' in said
    assert "sandboxes live on" in said


def test_nothing_but_its_sockets_is_open_to_the_servers_account(cli: Cli) -> None:
    """The key, the state and the logs are root's; what the server needs was given to it."""
    data = cli.server.data_dir
    for path in data.rglob("*"):
        if path.is_symlink() or "disk" in path.parts:
            continue
        inside = path.relative_to(data).parts[0]
        if inside in ("run", "server.json", "builds", "test-server.log"):  # builds: uploaded files and logs, its own
            continue
        assert path.stat().st_uid == 0, path
        if path.parent == data:
            assert path.stat().st_mode & 0o077 == 0, path
        else:
            assert not path.is_socket()


def test_control_c_stops_the_server_only_and_the_next_one_finds_everything(cli: Cli) -> None:
    """The last line says how many sandboxes live on; a terminal in one of them is as it was."""
    with cli.sandbox() as box:
        cli.out("shell", box, "--cmd", "echo kept > /tmp/kept")
        cli.server.kill(signal.SIGINT)
        last = cli.server.log.read_text().splitlines()[-1]
        assert "1 sandbox lives on" in last
        assert "sandpty down" in last
        assert cli.run("ls").returncode == 69
        cli.server.start()
        assert box in cli.sandboxes()
        assert "kept" in cli.out("shell", box, "--cmd", "cat /tmp/kept")


def test_the_key_stays_the_same_from_start_to_start(cli: Cli) -> None:
    """Programs that were pointed at the server keep working."""
    before = cli.server.api_key
    cli.server.kill(signal.SIGTERM)
    cli.server.start()
    assert cli.server.api_key == before


def test_two_servers_on_one_data_directory_are_one_line(cli: Cli) -> None:
    """The second does not start, and the first does not notice."""
    done = refused("--data-dir", str(cli.server.data_dir), "--port", "0")
    assert_one_line(done, 1, "already", str(cli.server.data_dir))
    assert cli.server.process is not None
    assert str(cli.server.process.pid) in done.stderr
    cli.out("ls")


def test_another_isolation_than_the_running_supervisors_is_one_line(cli: Cli) -> None:
    """No quiet mixture of tiers."""
    cli.server.kill(signal.SIGTERM)
    try:
        done = refused("--data-dir", str(cli.server.data_dir), "--port", "0", "--isolation", "process")
        assert_one_line(done, 1, "sandpty down", "crun")
    finally:
        cli.server.start()


def test_a_port_in_use_is_one_line_and_starts_nothing() -> None:
    """Found before a supervisor was started for it."""
    with socket.socket() as taken, tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as data:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = refused("--data-dir", data, "--port", str(taken.getsockname()[1]))
        assert_one_line(done, 1, "in use", "--port")
        assert not (Path(data) / "supervisor.pid").exists()


@pytest.mark.parametrize("place", ["/proc/sandpty", "/dev/null/x", "a file"])
def test_a_data_directory_that_cannot_be_is_one_line(place: str, tmp_path: Path) -> None:
    """Named, with the reason."""
    if place == "a file":
        (tmp_path / "file").write_text("")
        place = str(tmp_path / "file" / "inside")
    assert_one_line(refused("--data-dir", place, "--port", "0"), 2, place)


@pytest.mark.parametrize("host", ["256.0.0.1", "192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_ours_is_one_line(host: str) -> None:
    """Nothing was started for it."""
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as data:
        assert_one_line(refused("--data-dir", data, "--port", "0", "--host", host), 2, host)
        assert not (Path(data) / "supervisor.pid").exists()


def test_no_isolation_is_never_served_beyond_loopback() -> None:
    """Asked for by name, it still stays on this machine."""
    assert_one_line(refused("--isolation", "process", "--host", "0.0.0.0"), 2, "loopback")


def test_beyond_loopback_it_warns_and_env_names_an_address_that_can_be_reached() -> None:
    """--host is enough to ask for it."""
    with running_server("--host", "0.0.0.0", "--pool", "0") as server:
        assert "warning: listening on 0.0.0.0" in server.log.read_text()
        said = subprocess.run(
            sandpty("env", "--data-dir", str(server.data_dir)), capture_output=True, text=True, check=True
        ).stdout
        assert f"E2B_API_URL=http://127.0.0.1:{server.port}" in said


def as_nobody(*words: str) -> subprocess.CompletedProcess[str]:
    """A command without root. The interpreter may lie where only root reads, so it starts as root and gives it up."""
    script = (
        "import os, sys, encodings.idna\nfrom sandpty.cli import examination, main\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"sys.argv = {['sandpty', *words]!r}\nmain.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )


def test_without_root_it_says_which_tier_it_can_offer() -> None:
    """`process`, by name; never by itself."""
    assert_one_line(as_nobody("serve", "--data-dir", "/tmp/sp-nobody"), 77, "root", "--isolation process")
    assert_one_line(as_nobody("serve", "--isolation", "runsc"), 77, "runsc", "root")


def test_without_root_the_key_of_a_server_cannot_be_read(cli: Cli) -> None:
    """One line, no traceback; doctor tells what a plain user can know."""
    assert_one_line(as_nobody("ls", "--data-dir", str(cli.server.data_dir)), 77, "cannot be read")
    done = as_nobody("doctor", "--data-dir", str(cli.server.data_dir))
    assert "only root may ask" in done.stdout
    assert "--isolation process" in done.stdout


def test_down_ends_every_sandbox_and_the_supervisor_and_says_so() -> None:
    """Nothing of this data directory runs any more; the server, which still listens, says that it has nothing."""
    with running_server("--pool", "1") as server, tempfile.TemporaryDirectory() as home:
        cli = Cli(server, Path(home))
        first, second = cli.out("create"), cli.out("create")
        supervisor = server.supervisor_pid()
        before = os.times().elapsed
        done = cli.run("down")
        assert os.times().elapsed - before < 8.0, "a server that watches the supervisor does not hold it up"
        assert done.returncode == 0
        assert first in done.stdout
        assert second in done.stdout
        assert "[2/2]" in done.stdout
        assert server.process is not None
        assert f"process {server.process.pid}" in done.stderr
        assert not Path(f"/proc/{supervisor}").exists()
        command_lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        assert sum(str(server.data_dir).encode() in line for line in command_lines) == 1, "only the server is left"
        until_sync(lambda: cli.run("create").returncode == 69, what="the server knows that the supervisor is gone")
        again = cli.run("down")
        assert again.returncode == 0
        assert "nothing runs" in again.stdout


def test_the_second_start_is_quick(cli: Cli) -> None:
    """A server for a supervisor that runs answers within two seconds: of its own, others may have the processors."""
    took_s = []
    for _ in range(3):
        cli.server.kill(signal.SIGTERM)
        cli.server.start()
        assert cli.server.process is not None
        fields = Path(f"/proc/{cli.server.process.pid}/stat").read_text().rpartition(")")[2].split()
        took_s.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    assert min(took_s) < 2.0
