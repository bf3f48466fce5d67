"""ssh: commands, terminals and who may log in, by OpenSSH's own client."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.e2e.ssh_client import TIMEOUT_S, Client, client_of
from tests.server_fixture import RunningServer, sandpty
from tests.waiting import until_sync

FLOOD_BYTES = 50_000_000


@pytest.fixture(scope="module")
def ssh(ssh_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """OpenSSH for the key of this machine."""
    return client_of(ssh_server, tmp_path_factory.mktemp("ssh"))


@pytest.fixture(scope="module")
def box(ssh: Client) -> Iterator[str]:
    """A sandbox for all tests that leave it as they found it, as ssh names it."""
    made = ssh.cli("create").stdout.strip()
    yield f"{made}@sandpty"
    ssh.cli("kill", made)


def with_words(box: str, words: str) -> str:
    """The same sandbox, with words behind its ID."""
    sandbox, _, host = box.partition("@")
    return f"{sandbox}+{words}@{host}"


def processes(ssh: Client, box: str) -> list[dict[str, object]]:
    """What runs there."""
    found: list[dict[str, object]] = json.loads(ssh.cli("ps", "--json", box.partition("@")[0]).stdout)
    return found


@dataclass
class Person:
    """Somebody in front of ssh in a terminal of 80 x 24."""

    process: subprocess.Popen[bytes]
    terminal: int
    seen: bytearray = field(default_factory=bytearray)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.terminal, text.encode())

    def reads(self, size: int = 65536) -> bytes:
        """What there is to see next; b"" at the end."""
        if not select.select([self.terminal], [], [], TIMEOUT_S)[0]:
            raise TimeoutError(f"nothing more is said: {bytes(self.seen[-500:])!r}")
        try:
            data = os.read(self.terminal, size)
        except OSError:
            data = b""
        self.seen += data
        return data

    def until(self, pattern: str, start: int = 0) -> re.Match[bytes]:
        """Look until it is there."""
        while (found := re.search(pattern.encode(), bytes(self.seen[start:]))) is None:
            if not self.reads():
                raise AssertionError(f"ended without {pattern!r}: {bytes(self.seen[-500:])!r}")
        return found

    def until_end(self) -> int:
        """Look until ssh ends; its exit status."""
        while self.reads():
            pass
        return self.process.wait(TIMEOUT_S)


@contextmanager
def person(ssh: Client, *words: str, stty: tuple[str, ...] = ()) -> Iterator[Person]:
    """Calls ssh, and is gone at the end as a laptop is: without a goodbye. `stty`: how the terminal is set before."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    if stty:
        subprocess.run(["stty", *stty], stdin=theirs, check=True)
    process = subprocess.Popen(
        ["setsid", "--ctty", *ssh.command(*words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**ssh.env, "TERM": "xterm"},
    )
    os.close(theirs)
    try:
        yield Person(process, ours)
    finally:
        process.kill()
        process.wait(TIMEOUT_S)
        os.close(ours)


# --- commands ---


def test_a_command_says_what_it_says_where_it_says_it(ssh: Client, box: str) -> None:
    """stdout and stderr apart, the exit status the command's."""
    done = ssh.run(box, "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)


def test_input_ends_where_it_ends(ssh: Client, box: str) -> None:
    """What is piped into ssh arrives whole, and so does its end: every byte value, a million of them."""
    data = bytes(range(256)) * 4096
    assert ssh.out(box, "cat", stdin=data) == data
    assert ssh.out(box, stdin=b"echo $((6 * 7)) from a shell without a terminal\n").startswith(b"42 from")


def test_what_a_signal_ended_was_ended_by_a_signal(ssh: Client, box: str) -> None:
    """ssh says so with its own exit status."""
    assert ssh.run(box, "kill -KILL $$").returncode == 255


def test_a_command_need_not_be_text(ssh: Client, box: str) -> None:
    """Bytes that are no UTF-8 arrive as they are."""
    done = subprocess.run(
        [*map(os.fsencode, ssh.command(box)), b"printf %s '\xff\xfe'"],
        env=ssh.env,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    assert done.stdout == b"\xff\xfe"


def test_variables_go_along(ssh: Client, box: str) -> None:
    """As far as the client sends them."""
    sent = ssh.out("-o", "SetEnv=LC_TIME=C.UTF-8 SEVEN=7", box, "echo $LC_TIME $SEVEN $USER $HOME $TERM.")
    assert sent == b"C.UTF-8 7 user /home/user dumb.\n"  # bash's word for none


def test_a_command_with_a_terminal_has_one_of_the_right_size(ssh: Client, box: str) -> None:
    """-t: a PTY, its size, its TERM, and the exit status."""
    with person(ssh, "-t", box, "tty; stty size; echo TERM=$TERM; exit 5") as somebody:
        assert somebody.until_end() == 5
        assert re.search(rb"/dev/pts/\d+\r\n24 80\r\nTERM=xterm\r\n", somebody.seen)


def test_nothing_of_fifty_megabytes_is_lost(ssh: Client, box: str) -> None:
    """There and back, with a reader that reads in its own time."""
    data = os.urandom(1_000_000) * (FLOOD_BYTES // 1_000_000)
    digest = hashlib.sha256(data).hexdigest().encode()
    assert digest in ssh.out(box, "tee /tmp/flood | sha256sum", stdin=data)
    assert hashlib.sha256(ssh.out(box, "cat /tmp/flood; rm /tmp/flood")).hexdigest().encode() == digest


def test_a_terminal_loses_nothing_of_a_flood(ssh: Client, box: str) -> None:
    """50 MB through a PTY: every byte, once, in order."""
    data = os.urandom(1_000_000).hex().encode() * (FLOOD_BYTES // 2_000_000)
    ssh.out(box, "cat >/tmp/lines", stdin=data)
    said = ssh.out("-tt", box, "stty -opost; cat /tmp/lines; rm /tmp/lines")
    assert len(said) == len(data)
    assert hashlib.sha256(said).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("cipher", ["aes128-gcm", "aes256-gcm"])
def test_what_is_typed_comes_back_while_keys_are_exchanged(ssh: Client, box: str, cipher: str) -> None:
    """Under every cipher, in pieces of all sizes; new keys are agreed on every few kilobytes."""
    pieces = [os.urandom(1 + at % 90) for at in range(180)]
    wishes = ("-tt", "-e", "none", "-c", f"{cipher}@openssh.com", "-o", "RekeyLimit=4K", "-o", "LogLevel=DEBUG1")
    with ssh.running(*wishes, box, "stty raw -echo; printf R; exec cat") as client:
        assert client.stdin
        assert client.stdout
        assert client.stdout.read(1) == b"R"
        for piece in pieces:
            client.stdin.write(piece)
            client.stdin.flush()
            assert client.stdout.read(len(piece)) == piece
        client.terminate()
        said = client.communicate(timeout=TIMEOUT_S)[1]
    assert said.count(b"SSH2_MSG_NEWKEYS received") > 3


def test_a_command_whose_client_has_gone_ends_as_at_a_broken_pipe(ssh: Client, box: str) -> None:
    """It hears the end of its input, and SIGPIPE when it speaks: nothing runs on for nobody."""
    with ssh.running(box, "echo here; cat >/dev/null; echo later; exec sleep 1000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        process.kill()
        until_sync(
            lambda: not [each for each in processes(ssh, box) if "echo later" in str(each["argv"])],
            TIMEOUT_S,
            "it ended",
        )


def test_many_channels_share_a_connection(ssh: Client, box: str, tmp_path: Path) -> None:
    """ControlMaster, as editors use it: one login, several commands at once, fed by stdin."""
    path = tmp_path / "control"
    shared = ("-o", f"ControlPath={path}")
    with ssh.running("-M", "-N", *shared, box):
        until_sync(path.exists, TIMEOUT_S, "the master is there")
        waiting = [
            subprocess.Popen(
                ssh.command(*shared, box, "bash -s"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ssh.env
            )
            for _ in range(8)
        ]
        said = [each.communicate(b"read x <<< $(seq 3 | tail -1); echo $x\n", TIMEOUT_S)[0] for each in waiting]
    assert said == [b"3\n"] * 8


# --- terminals ---


def test_a_terminal_outlives_its_connection(ssh: Client, box: str) -> None:
    """ssh again: the same shell, with what was said meanwhile; then it ends, and the next one is new."""
    with person(ssh, box) as somebody:
        somebody.until(r"\$ ")
        somebody.type("MARK=kept; (sleep 1; echo said-$((40 + 2))-meanwhile) &\r")
        somebody.until("meanwhile\\) &")
    with person(ssh, box) as somebody:
        somebody.until("said-42-meanwhile")
        somebody.type("echo again-$MARK; exit 3\r")
        somebody.until("again-kept")
        assert somebody.until_end() == 3
    with person(ssh, box) as somebody:
        somebody.until(r"\$ ")
        somebody.type("echo new-$MARK-one; exit\r")
        somebody.until("new--one")
        assert somebody.until_end() == 0


def test_a_second_window_is_a_second_terminal(ssh: Client, box: str) -> None:
    """Only a terminal that nobody looks at is come back to; `new` never comes back."""
    with person(ssh, box) as one, person(ssh, with_words(box, "new")) as two:
        for each in (one, two):
            each.until(r"\$ ")  # both, before one ends: its number would be free
        for each in (one, two):
            each.type("tty; exit\r")
        first, second = (each.until(r"/dev/pts/\d+") for each in (one, two))
        assert first[0] != second[0]


def test_what_somebody_else_started_can_be_joined_and_watched(ssh: Client, box: str) -> None:
    """By its number: a process of `sandpty exec`'s kind is typed into by ssh; a viewer sees it and types nothing."""
    with person(ssh, "-t", box, "cat") as owner:
        owner.type("hello\r")
        owner.until("hello\r\n.*hello")
        number = next(each["process"] for each in processes(ssh, box) if each["argv"] == ["/bin/bash", "-c", "cat"])
        with (
            person(ssh, with_words(box, f"{number}")) as joined,
            person(ssh, with_words(box, f"{number}+ro")) as viewer,
        ):
            for each in (joined, viewer):
                each.until("hello")
            viewer.type("not this\r")
            joined.type("from the other side\r")
            for each in (owner, viewer):
                each.until("from the other side\r\n.*from the other side")
            assert b"not this" not in owner.seen
            viewer.type("\x03")
            assert viewer.until_end() == 0
            joined.type("\x04")
            assert joined.until_end() == 0
        assert owner.until_end() == 0


def test_a_window_that_changes_changes_the_terminal(ssh: Client, box: str) -> None:
    """And the program hears of it."""
    with person(ssh, "-t", box, "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done") as somebody:
        somebody.until("ready")
        termios.tcsetwinsize(somebody.terminal, (33, 99))
        somebody.until("33 99")


def test_a_new_terminal_is_set_as_the_one_before_it(ssh: Client, box: str) -> None:
    """Its keys and modes are those of the person's own; a terminal that is come back to stays as it is."""
    own = ("intr", "^X", "erase", "^H", "eol2", "undef", "-echoctl", "-ixon", "iutf8", "-onlcr", "tostop")
    with person(ssh, with_words(box, "new"), stty=own) as somebody:
        somebody.type("stty -a; echo $((6 * 7))set\n")
        somebody.until("42set")
        said = somebody.seen.decode()
        assert all(key in said for key in ("intr = ^X;", "erase = ^H;", "eol2 = <undef>;"))
        assert {"-echoctl", "-ixon", "iutf8", "-onlcr", "tostop"} <= set(said.split())
    with person(ssh, box, stty=("intr", "^A")) as somebody:
        somebody.type("stty -a; echo $((7 * 7))again; exit\n")
        somebody.until("49again")
        again = somebody.seen.rpartition(b"42set")[2].decode()
        assert "intr = ^X;" in again
        assert {"-echoctl", "-onlcr"} <= set(again.split())
        assert somebody.until_end() == 0
    plain = ssh.out("-tt", box, "stty -a", stdin=b"").decode()
    assert "intr = ^C;" in plain
    assert "echoctl" in plain.split()


def test_ctrl_c_lands_under_a_flood(ssh: Client, box: str) -> None:
    """Though the terminal is slower than the program: the prompt comes after little that is stale."""
    with person(ssh, with_words(box, "new")) as somebody:
        somebody.until(r"\$ ")
        somebody.type("PS1=prom''pt; yes\r")
        somebody.until("y\r\ny\r\ny")
        while len(somebody.seen) < 2_000_000:
            somebody.reads(4096)
        somebody.type("\x03")
        at = len(somebody.seen)
        while b"prompt" not in somebody.seen[at - 10 :]:
            somebody.reads(4096)
        assert len(somebody.seen) - at < 600_000
        somebody.type("exit\r")
        somebody.until_end()


def test_a_stuck_viewer_stalls_nobody(ssh: Client, box: str) -> None:
    """An ssh that is stopped takes nothing; who reads beside it gets everything, at once."""
    with person(ssh, "-t", box, "read go; head -c 8000000 /dev/zero | tr '\\0' x") as owner:
        until_sync(lambda: [each for each in processes(ssh, box) if "read go" in str(each["argv"])], TIMEOUT_S)
        number = next(each["process"] for each in processes(ssh, box) if "read go" in str(each["argv"]))
        with person(ssh, with_words(box, f"{number}+ro")):  # never reads
            until_sync(
                lambda: [
                    each for each in processes(ssh, box) if each["process"] == number and each["attachments"] == 2
                ],
                TIMEOUT_S,
            )
            owner.type("\r")
            assert owner.until_end() == 0
    assert owner.seen.count(b"x") == 8_000_000


def test_a_pause_is_said_and_traffic_wakes_what_may_be_woken(ssh: Client) -> None:
    """Who is inside is told; whoever comes wakes a sandbox that was created so, and finds the same terminal."""
    answer = httpx.post(
        f"{ssh.server.url}/v1/sandboxes", json={"auto_resume": True}, headers=ssh.server.headers, timeout=TIMEOUT_S
    )
    made = answer.json()["id"]
    with person(ssh, f"{made}@sandpty") as somebody:
        somebody.until(r"\$ ")
        somebody.type("MARK=slept; echo rea''dy\r")
        somebody.until("ready")
        assert ssh.cli("pause", made).returncode == 0
        somebody.until("is paused")
        assert somebody.until_end() == 1
    with person(ssh, f"{made}@sandpty") as somebody:
        somebody.until("ready")
        somebody.type("echo it-$MARK\r")
        somebody.until("it-slept")
        assert ssh.cli("kill", made).returncode == 0
        somebody.until("has ended")


# --- who may ---


def test_a_key_is_a_password(ssh: Client, box: str) -> None:
    """An API key logs in; another text does not, and the person is told what would."""
    assert ssh.with_password(ssh.server.api_key, box, "echo in").stdout == b"in\n"
    refused = ssh.with_password("wrong", box, "echo in")
    assert refused.returncode == 255
    assert b"the password is an API key of this server" in refused.stderr


def test_failures_are_said_in_words(ssh: Client, box: str) -> None:
    """On stderr, with a status."""
    for user, words, status in (
        ("inobody0000000000000", b"does not exist or is not yours", 1),
        (box.partition("@")[0] + "+what", b"none of new, ro", 2),
        (box.partition("@")[0] + "+user=nobody-here", b"no such user", 2),
        (box.partition("@")[0] + "+4711", b"no such process", 1),
    ):
        done = ssh.run(f"{user}@sandpty", "true") if "4711" not in user else ssh.run(f"{user}@sandpty")
        assert words in done.stderr, done.stderr
        assert done.returncode == status


def test_a_registered_key_logs_in_until_its_api_key_is_revoked(ssh: Client, tmp_path: Path) -> None:
    """Another team's key sees its own sandboxes only; revoked, what it has open is cut at once."""
    key = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(key)], check=True, timeout=TIMEOUT_S)
    api_key = ssh.cli("keys", "add", "--team", "other", "--name", "other").stdout.strip()
    added = ssh.cli("keys", "add-ssh", "other", f"{key}.pub")
    assert added.returncode == 0, added.stderr
    assert "already" in ssh.cli("keys", "add-ssh", "first", f"{key}.pub").stderr
    assert "private key" in ssh.cli("keys", "add-ssh", "first", str(key)).stderr
    env = {**ssh.env, "SANDPTY_API_KEY": api_key, "SANDPTY_URL": ssh.server.url}
    env.pop("SANDPTY_DATA_DIR")
    made = subprocess.run(
        [*_cli(), "create"], env=env, capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    ).stdout.strip()
    own = ("-o", f"IdentityFile={key}", "-o", "CertificateFile=none")
    with_key = Client(ssh.server, ssh.home, tmp_path / "config", ssh.port)
    shown = ssh.cli("ssh-config").stdout.splitlines()
    kept = [line for line in shown if line.split()[0] not in ("IdentityFile", "CertificateFile", "Match")]
    with_key.config.write_text("\n".join(kept) + f"\n    IdentityFile {key}\n")
    assert with_key.out(f"{made}@sandpty", "echo mine") == b"mine\n", own
    assert b"not yours" in ssh.run(f"{made}@sandpty", "true").stderr
    with with_key.running(f"{made}@sandpty", "echo open; exec sleep 1000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        assert ssh.cli("keys", "revoke", "other").returncode == 0
        assert process.wait(TIMEOUT_S) == 255
        assert process.stderr is not None
        assert b"the API key was revoked" in process.stderr.read()
    assert with_key.run(f"{made}@sandpty", "true").returncode == 255


def _cli() -> list[str]:
    return sandpty()


def test_a_revoked_keys_certificates_are_worth_nothing(ssh: Client, tmp_path: Path) -> None:
    """They are for an API key, and go with it."""
    api_key = ssh.cli("keys", "add", "--name", "brief").stdout.strip()
    home = tmp_path / "home"
    home.mkdir()
    env = {**ssh.env, "XDG_STATE_HOME": str(home), "SANDPTY_URL": ssh.server.url, "SANDPTY_API_KEY": api_key}
    env.pop("SANDPTY_DATA_DIR")
    command = [*_cli(), "ssh", "inothing00000000000000", "true"]
    before = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert "does not exist" in before.stderr
    assert ssh.cli("keys", "revoke", "brief").returncode == 0
    config = home / "sandpty" / "ssh" / "sandpty" / "config"
    after = subprocess.run(
        ["ssh", "-F", str(config), "x@sandpty"],
        env=ssh.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert after.returncode == 255
    assert "Permission denied" in after.stderr


# --- the command line ---


def test_sandpty_ssh_just_works(ssh: Client, box: str) -> None:
    """With ssh's own options before the ID; every file is its owner's alone, and written once."""
    sandbox = box.partition("@")[0]
    done = ssh.cli("ssh", "-o", "SetEnv=WORD=works", sandbox, "echo", "it", "$WORD")
    assert (done.stdout, done.returncode) == ("it works\n", 0), done.stderr
    assert ssh.cli("ssh", sandbox, "exit 9").returncode == 9
    assert ssh.cli("ssh", "-N").returncode == 2
    directory = ssh.home / "sandpty" / "ssh" / "sandpty"
    assert {oct(path.stat().st_mode & 0o777) for path in directory.iterdir()} == {"0o600"}
    assert len((directory / "known_hosts").read_text().splitlines()) == 1


def test_ssh_config_is_included_once_and_nothing_of_what_was_there_is_lost(ssh: Client, tmp_path: Path) -> None:
    """At the top, whatever else is in the file; the same again changes nothing."""
    config = tmp_path / "with a space" / "config"
    config.parent.mkdir()
    config.write_text("Host other\n    Port 7\n")
    for _ in range(2):
        assert ssh.cli("ssh-config", "--write", "--into", str(config)).returncode == 0
    lines = config.read_text().splitlines()
    assert lines[0].startswith("Include ")
    assert lines[1:] == ["Host other", "    Port 7"]
    asked = subprocess.run(["ssh", "-F", str(config), "-G", "sandpty"], env=ssh.env, capture_output=True, check=True)
    assert f"port {ssh.port}\n".encode() in asked.stdout


def test_a_server_that_is_started_again_is_the_same_and_so_are_its_terminals(ssh: Client, box: str) -> None:
    """Nobody is asked whether a changed host key is an attack; a killed server costs a connection, no terminal."""
    known = ssh.home / "sandpty" / "ssh" / "sandpty" / "known_hosts"
    before = known.read_text()
    assert (ssh.server.data_dir / "ssh_host_key").stat().st_mode & 0o777 == 0o600
    with person(ssh, with_words(box, "new")) as somebody:
        somebody.until(r"\$ ")
        somebody.type("MARK=survives; echo rea''dy\r")
        somebody.until("ready")
        ssh.server.kill()
        assert somebody.until_end() == 255
    ssh.server.start()
    again = client_of(ssh.server, ssh.home)
    assert known.read_text() == before
    with person(again, box) as somebody:
        somebody.until("ready")
        somebody.type("echo it-$MARK; exit\r")
        somebody.until("it-survives")


def test_without_ssh_port_there_is_no_ssh(server: RunningServer, tmp_path: Path) -> None:
    """And that is said."""
    refused = Client(server, tmp_path, tmp_path / "config", 0).cli("ssh", "x")
    assert "--ssh-port" in refused.stderr
    assert refused.returncode == 2
