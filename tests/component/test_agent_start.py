"""What a process started by the agent finds: user, directory, environment, descriptors, signals, terminal."""

from __future__ import annotations

import grp
import os
import pwd
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandpty.wire import frames
from sandpty.wire.frames import AgentErrorCode, ExitReason, ProcessInfo, Selector
from tests.component.agent_peer import NOBODY, PIPES, PTY, Agent, running_agent
from tests.waiting import until_sync


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """One agent."""
    with Agent() as running:
        yield running


def output(agent: Agent, *argv: str, **options: object) -> str:
    """What a program that succeeds prints."""
    exit, data = agent.run(*argv, **({"flags": PIPES} | options))
    assert exit.value == 0, data
    return data.decode()


def test_the_environment_is_the_four_of_the_user_and_what_was_asked_for(agent: Agent) -> None:
    """PATH, HOME, USER, LOGNAME, then env; nothing of the agent's own."""
    lines = output(agent, "env", env={"A": "1", "EMPTY": "", "SPACED": "a b=c"}).splitlines()
    assert sorted(lines) == [
        "A=1",
        "EMPTY=",
        "HOME=/root",
        "LOGNAME=root",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SPACED=a b=c",
        "USER=root",
    ]


def test_later_environment_wins(agent: Agent) -> None:
    """A request may replace HOME and PATH; PATH is also where argv[0] is looked up."""
    lines = output(agent, "env", env={"HOME": "/tmp", "PATH": "/nonexistent:/usr/bin:/bin"}).splitlines()
    assert "HOME=/tmp" in lines
    assert "PATH=/nonexistent:/usr/bin:/bin" in lines
    assert len(lines) == 4
    assert agent.start_error("env", env={"PATH": "/nonexistent"}).code == AgentErrorCode.START_FAILED


def test_bytes_that_are_not_utf8_pass_through_arguments_and_environment(agent: Agent) -> None:
    """Arguments are bytes."""
    odd = b"\xff\xfe\x80".decode("utf-8", "surrogateescape")
    _, data = agent.run("sh", "-c", 'printf "%s|%s" "$1" "$V"', "sh", odd, flags=PIPES, env={"V": odd})
    assert data == b"\xff\xfe\x80|\xff\xfe\x80"


def test_another_user_gets_its_ids_groups_and_home(agent: Agent) -> None:
    """uid, gid and supplementary groups as the account files say; sys, daemon and friends exist everywhere."""
    for name in ("daemon", "nobody"):
        account = pwd.getpwnam(name)
        wanted = sorted({account.pw_gid} | {group.gr_gid for group in grp.getgrall() if name in group.gr_mem})
        got = output(agent, "sh", "-c", "id -u; id -g; id -G; echo $HOME $USER $LOGNAME", user=name, cwd="/").split(
            "\n"
        )
        assert got[:2] == [str(account.pw_uid), str(account.pw_gid)]
        assert sorted(map(int, got[2].split())) == wanted
        assert got[3] == f"{account.pw_dir} {name} {name}"


def test_a_user_may_be_given_by_number(agent: Agent) -> None:
    """A decimal uid of the account file."""
    assert output(agent, "id", "-un", user="65534", cwd="/") == "nobody\n"


@pytest.mark.parametrize("user", ["", "nosuchuser", "4000000000", "-1", "99999999999", "root\0x", "x" * 5000, "root:x"])
def test_an_unknown_user_is_refused(agent: Agent, user: str) -> None:
    """`no_such_user`."""
    assert agent.start_error("true", user=user).code == AgentErrorCode.NO_SUCH_USER


def test_another_user_cannot_signal_its_reaper_or_the_agent(agent: Agent) -> None:
    """The reaper stays root, so a user cannot leave its tree by killing it."""
    script = "kill -9 $PPID 2>/dev/null || echo refused"
    assert output(agent, "sh", "-c", script, user="nobody", cwd="/") == "refused\n"


def test_the_working_directory_is_where_the_request_says(agent: Agent, tmp_path: Path) -> None:
    """Absolute, empty = home, `~`, `~/x` and relative = under home."""
    home = pwd.getpwnam("root").pw_dir
    inside = Path(home) / ".sandpty-test-cwd"
    inside.mkdir(exist_ok=True)
    try:
        for cwd, wanted in (
            (str(tmp_path), str(tmp_path)),
            ("", home),
            ("~", home),
            ("~/.sandpty-test-cwd", str(inside)),
            (".sandpty-test-cwd", str(inside)),
            ("/", "/"),
        ):
            assert output(agent, "pwd", "-P", cwd=cwd).strip() == os.path.realpath(wanted)
    finally:
        inside.rmdir()


@pytest.mark.parametrize("cwd", ["/nonexistent", "/etc/passwd", "nonexistent", "/" + "x" * 5000, "/tmp\0", "~nobody"])
def test_a_directory_that_cannot_be_entered_is_refused(agent: Agent, cwd: str) -> None:
    """`bad_cwd`."""
    assert agent.start_error("true", cwd=cwd).code == AgentErrorCode.BAD_CWD


def test_a_directory_the_user_may_not_enter_is_refused(agent: Agent, tmp_path: Path) -> None:
    """The check is made with the user's rights, not the agent's."""
    tmp_path.chmod(0o700)
    error = agent.start_error("true", user="nobody", cwd=str(tmp_path))
    assert (error.code, error.message) == (AgentErrorCode.BAD_CWD, "Permission denied")


FAILURES = {
    "missing": (("nosuchprogram",), "No such file or directory"),
    "missing path": (("/nonexistent/x",), "No such file or directory"),
    "directory": (("/tmp",), "Permission denied"),
    "empty": (("",), "No such file or directory"),
    "not executable": (("/etc/passwd",), "Permission denied"),
    "argument too long": (("echo", "x" * 200_000), "Argument list too long"),
}


@pytest.mark.parametrize(("argv", "message"), FAILURES.values(), ids=list(FAILURES))
@pytest.mark.parametrize("flags", [PTY, PIPES], ids=["pty", "pipes"])
def test_what_cannot_be_executed_says_why(agent: Agent, argv: tuple[str, ...], message: str, flags: int) -> None:
    """`start_failed` with the system's words; nothing is kept of it."""
    with agent.peer() as peer:
        before = len(peer.list())
        error = agent.start_error(*argv, flags=flags)
        assert (error.code, error.message) == (AgentErrorCode.START_FAILED, message)
        assert len(peer.list()) == before


def test_a_script_without_a_first_line_runs_as_execvp_would(agent: Agent, tmp_path: Path) -> None:
    """ENOEXEC means /bin/sh."""
    script = tmp_path / "script"
    script.write_text('echo "shell $1"\n')
    script.chmod(0o755)
    assert output(agent, str(script), "arg") == "shell arg\n"


BAD = {
    "no argv": {"argv": ()},
    "NUL in an argument": {"argv": ("echo", "a\0b")},
    "NUL in the environment": {"env": {"A": "x\0y"}},
    "no name in the environment": {"env": {"": "x"}},
    "huge window": {"cols": 10_001},
}


@pytest.mark.parametrize("options", BAD.values(), ids=list(BAD))
def test_a_request_that_makes_no_sense_is_refused(agent: Agent, options: dict[str, object]) -> None:
    """`bad_argument`."""
    argv = options.get("argv", ("true",))
    rest = {key: value for key, value in options.items() if key != "argv"}
    assert agent.start_error(*argv, **rest).code == AgentErrorCode.BAD_ARGUMENT  # type: ignore[misc]


LIMITS = {
    "log_bytes": {"log_bytes": 1 << 30},
    "tag_bytes": {"tag": "x" * 5000},
    "environment": {"env": {f"V{number}": "" for number in range(3000)}},
    "request_bytes": {"tag": "", "env": {"A": "x" * (1024 * 1024 - 1000)}},
}


@pytest.mark.parametrize(("name", "options"), LIMITS.items(), ids=list(LIMITS))
def test_a_request_over_a_limit_names_the_limit(agent: Agent, name: str, options: dict[str, object]) -> None:
    """`limit`."""
    error = agent.start_error("true", **options)
    assert (error.code, error.message) == (AgentErrorCode.LIMIT, name)


def test_huge_arguments_that_the_kernel_takes_are_passed_on(agent: Agent) -> None:
    """5,000 arguments, 500 KB."""
    argv = ("sh", "-c", 'echo $# $(printf "%s" "$@" | wc -c)', "sh", *(["x" * 100] * 5000))
    assert output(agent, *argv) == "5000 500000\n"


@pytest.mark.parametrize("flags", [PTY, PIPES, PIPES | frames.StartFlags.STDIN], ids=["pty", "null", "stdin"])
def test_a_child_has_descriptors_0_1_and_2_only(agent: Agent, flags: int) -> None:
    """Law 10: close-on-exec on everything (descriptor 3 is the listing's own)."""
    others = [agent.start("cat"), agent.start("cat", flags=PIPES | 2)]  # something that could leak
    assert output(agent, "ls", "/proc/self/fd", flags=flags).split() == ["0", "1", "2", "3"]
    for other in others:
        other.send(frames.encode_signal(9, frames.Target.TREE))
        other.read_exit()


@pytest.mark.parametrize("flags", [PTY, PIPES], ids=["pty", "pipes"])
def test_signals_are_as_after_boot(agent: Agent, flags: int) -> None:
    """Law 10: empty mask, default dispositions."""
    status = output(agent, "cat", "/proc/self/status", flags=flags)
    fields = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
    for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd"):
        assert int(fields[name], 16) == 0, status


def test_a_terminal_is_the_controlling_terminal_of_its_own_session(agent: Agent) -> None:
    """Law 10: session leader, foreground, /dev/tty works, the size is there before exec."""
    script = "tty; stty size; ps -o pid=,sid=,pgid=,tpgid= -p $$; echo through > /dev/tty"
    lines = output(agent, "sh", "-c", script, flags=PTY, cols=132, rows=43).replace("\r", "").splitlines()
    assert lines[0].startswith("/dev/pts/")
    assert lines[1] == "43 132"
    assert len(set(lines[2].split())) == 1
    assert lines[3] == "through"


def test_a_terminal_begins_with_the_modes_asked_for(agent: Agent) -> None:
    """Those of RFC 4254; what is unknown, no character, or cut short is passed over, and nothing after an end."""

    def mode(number: int, value: int) -> bytes:
        return struct.pack(">BI", number, value)

    asked = mode(1, 24) + mode(3, 8) + mode(4, 255) + mode(7, 256) + mode(53, 0) + mode(72, 0) + mode(42, 1)
    for end in (b"", mode(128, 9600) + mode(159, 1), b"\0" + mode(5, 1), b"\xa0" + mode(5, 1), mode(5, 1)[:4]):
        lines = output(agent, "stty", "-a", flags=PTY, modes=asked + end)
        assert all(key in lines for key in ("intr = ^X;", "erase = ^H;", "kill = <undef>;", "eol2 = <undef>;"))
        assert "eof = ^D;" in lines
        assert {"-echo", "-onlcr", "iutf8", "icanon"} <= set(lines.split())
    error = agent.start_error("true", flags=PTY, modes=mode(1, 1) * 300)
    assert (error.code, error.message) == (AgentErrorCode.LIMIT, "modes_bytes")


def test_a_terminal_is_80_by_24_unless_told_otherwise(agent: Agent) -> None:
    """Size 0."""
    with agent.start("stty", "size", cols=0, rows=0) as attachment:
        assert (attachment.attached.cols, attachment.attached.rows) == (80, 24)
        attachment.read_until(b"24 80")


def test_the_terminal_belongs_to_the_user(agent: Agent) -> None:
    """A program may open its own terminal by name (sudo, gpg, screen)."""
    script = "stat -c '%U %a' $(tty); echo by name > $(tty)"
    got = output(agent, "sh", "-c", script, flags=PTY, user="nobody", cwd="/").replace("\r", "").splitlines()
    assert got == ["nobody 620", "by name"]


def test_a_pipe_process_has_a_session_of_its_own_and_no_terminal(agent: Agent) -> None:
    """Own session; /dev/tty cannot be opened."""
    script = "ps -o pid=,sid=,tty= -p $$; (: </dev/tty) 2>/dev/null || echo none"
    lines = output(agent, "sh", "-c", script).splitlines()
    pid, sid, tty = lines[0].split()
    assert pid == sid
    assert tty == "?"
    assert lines[1] == "none"


def test_the_reported_pid_is_the_leaders_own(agent: Agent) -> None:
    """STARTED, ATTACHED and PROCESS name the real leader, not its reaper."""
    with agent.start("sh", "-c", "echo $$; read x") as attachment:
        pid = attachment.attached.pid
        attachment.read_until(b"%d\r\n" % pid)
        with agent.peer() as peer:
            info = peer.request(frames.encode_stat(Selector.pid(pid)), ProcessInfo)
        assert (info.process, info.pid) == (attachment.attached.process, pid)


def test_children_are_taken_by_the_oom_killer_before_the_agent(agent: Agent) -> None:
    """oom_score_adj is raised for everything started, not for the agent and its reapers."""
    assert int(output(agent, "cat", "/proc/self/oom_score_adj")) >= 500
    with agent.start("cat") as attachment:
        reaper = next(pid for pid in agent.children() if pid != attachment.attached.pid)
        for pid in (agent.pid, reaper):
            assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) < 500


def test_the_reaper_is_tiny_and_has_a_name() -> None:
    """One per process: it must not cost what the agent costs."""
    with running_agent() as agent, agent.start("cat", log_bytes=1 << 20) as attachment:
        attachment.type(b"x" * 1000 + b"\n")
        pids = [pid for pid in agent.children() if Path(f"/proc/{pid}/comm").read_text() == "sandpty-reaper\n"]
        assert pids != []
        rollup = dict(line.split()[:2] for line in Path(f"/proc/{pids[0]}/smaps_rollup").read_text().splitlines()[1:])
        assert int(rollup["Private_Dirty:"]) <= 64  # KiB
        assert len(list(Path(f"/proc/{pids[0]}/fd").iterdir())) == 1


def test_an_unprivileged_agent_starts_things_as_itself_and_as_nobody_else() -> None:
    """Without root: its own account works, others are `start_failed`."""
    with running_agent(user=NOBODY) as agent:
        exit, data = agent.run("id", "-un", user="nobody", cwd="/", flags=PIPES)
        assert (exit.value, data) == (0, b"nobody\n")
        assert agent.run("tty", user="nobody", cwd="/")[0].value == 0
        error = agent.start_error("id", user="daemon", cwd="/")
        assert error.code == AgentErrorCode.START_FAILED
        assert "not permitted" in error.message


def test_a_deadline_kills_the_whole_tree() -> None:
    """Reason 2; also what called setsid."""
    script = "setsid sleep 1000 & sleep 1000 & echo up; wait"
    with running_agent() as agent, agent.start("sh", "-c", script, deadline_ms=300) as attachment:
        exit = attachment.read_exit(5)
        assert (exit.signalled, exit.value, exit.reason) == (True, 9, ExitReason.DEADLINE)
        until_sync(lambda: agent.children() == [])


def test_a_deadline_does_not_count_the_time_that_the_sandbox_was_frozen() -> None:
    """Stopped for longer than the deadline, the process lives for what was left of it, and is killed then."""
    with running_agent() as agent, agent.start("sleep", "1000", deadline_ms=2000) as attachment:
        os.kill(agent.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        until_sync(lambda: time.monotonic() - stopped > 3.5, 30)
        os.kill(agent.pid, signal.SIGCONT)
        thawed = time.monotonic()
        exit = attachment.read_exit(30)
        assert time.monotonic() - thawed > 0.5
        assert exit.reason == ExitReason.DEADLINE


def test_a_process_that_ends_before_its_deadline_ends_by_itself(agent: Agent) -> None:
    """No deadline reaches into the time after."""
    exit, _ = agent.run("true", deadline_ms=10_000)
    assert exit.reason == ExitReason.EXITED
