"""Commands through E2B's unmodified Python SDK."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest
from e2b import AsyncSandbox, Sandbox
from e2b.exceptions import (
    AuthenticationException,
    InvalidArgumentException,
    NotFoundException,
    SandboxException,
    TimeoutException,
)
from e2b.sandbox.commands.command_handle import CommandExitException

from tests.waiting import until, until_sync


def test_a_command_gives_its_output_and_exit_code(sandbox: Sandbox) -> None:
    """stdout and stderr apart, no error on success."""
    result = sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code, result.error) == ("out\n", "err\n", 0, None)


async def test_a_command_gives_its_output_through_the_async_sdk(asandbox: AsyncSandbox) -> None:
    """The same for asyncio, with callbacks."""
    said: list[str] = []
    result = await asandbox.commands.run("echo out; echo err >&2", on_stdout=said.append)
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)
    assert said == ["out\n"]


@pytest.mark.parametrize("text", ["!@#$%^&*()_+", "äöü€😀", "a" * 8191 + "é", "multi\nline\n\n"])
def test_output_is_the_very_text(sandbox: Sandbox, text: str) -> None:
    """Special characters, multi-byte characters across chunks, empty lines."""
    assert sandbox.commands.run(f"printf %s '{text}'").stdout == text


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [
        ("exit 3", 3),
        ("no-such-binary", 127),
        ("/etc/passwd", 126),
        ("kill -KILL $$", -1),
        ("sh -c 'kill -TERM $$'", 143),
    ],
)
def test_a_failing_command_raises_with_its_exit_code(sandbox: Sandbox, command: str, exit_code: int) -> None:
    """The shell's codes; -1 for the leader's own death by signal (bash execs a last command: see the text)."""
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run(f"{command}; exit $?" if exit_code == 143 else command)
    assert caught.value.exit_code == exit_code
    assert caught.value.error == ("signal: killed" if exit_code == -1 else f"exit status {exit_code}")


def test_the_environment_of_a_command(sandbox: Sandbox) -> None:
    """Request over sandbox over E2B's own; nothing of the server's leaks in."""
    with Sandbox.create(envs={"FROM": "create", "BOTH": "create"}, timeout=60) as other:
        result = other.commands.run("echo $FROM $BOTH $E2B_SANDBOX $E2B_SANDBOX_ID", envs={"BOTH": "request"})
        assert result.stdout == f"create request true {other.sandbox_id}\n"
    names = sandbox.commands.run("env | cut -d= -f1").stdout.split()
    assert not {name for name in names if name.startswith(("SANDPTY", "E2B_API", "PYTHON", "VIRTUAL"))}
    assert {"PATH", "HOME", "USER", "LOGNAME", "E2B_SANDBOX"} <= set(names)


def test_a_command_starts_in_the_users_home_or_where_it_is_told(sandbox: Sandbox) -> None:
    """Absolute, under home, or ~; elsewhere is an invalid argument that names the directory."""
    home = sandbox.commands.run("echo $HOME").stdout.strip()
    assert sandbox.commands.run("pwd").stdout == f"{home}\n"
    assert sandbox.commands.run("pwd", cwd="/usr/bin").stdout == "/usr/bin\n"
    sandbox.commands.run("mkdir -p ~/below")
    assert sandbox.commands.run("pwd", cwd="below").stdout == f"{home}/below\n"
    assert sandbox.commands.run("pwd", cwd="~/below").stdout == f"{home}/below\n"
    with pytest.raises(InvalidArgumentException, match="cwd '/nowhere' does not exist"):
        sandbox.commands.run("pwd", cwd="/nowhere")
    with pytest.raises(InvalidArgumentException):
        sandbox.commands.run("pwd", cwd="~other")


def test_a_command_runs_as_the_user_asked_for(sandbox: Sandbox) -> None:
    """`root` is root; an unknown user is an authentication error with its name."""
    assert sandbox.commands.run("id -un", user="root").stdout == "root\n"
    with pytest.raises(AuthenticationException, match="invalid username: 'nobody-here'"):
        sandbox.commands.run("id", user="nobody-here")


def test_the_default_user_is_user_and_may_sudo(sandbox: Sandbox) -> None:
    """With a home of its own; sudo asks no password and does not pass the environment on."""
    assert sandbox.commands.run("echo $(id -un) $(id -gn) $HOME").stdout == "user user /home/user\n"
    assert sandbox.commands.run("sudo -n id -u").stdout == "0\n"
    assert sandbox.commands.run("sudo -n sh -c 'echo [$FOO]'", envs={"FOO": "seen"}).stdout == "[]\n"


def test_a_background_command_runs_on_and_is_listed(sandbox: Sandbox) -> None:
    """List shows what was asked for, in the order of creation, only what runs."""
    first = sandbox.commands.run("sleep 300", background=True, envs={"K": "v"}, cwd="/tmp")
    second = sandbox.commands.run("sleep 301", background=True)
    listed = sandbox.commands.list()
    assert [process.pid for process in listed] == [first.pid, second.pid]
    assert listed[0].cmd == "/bin/bash"
    assert listed[0].args == ["-l", "-c", "sleep 300"]
    assert listed[0].envs == {"K": "v"}
    assert listed[0].cwd == "/tmp"
    assert sandbox.commands.kill(first.pid) is True
    assert [process.pid for process in sandbox.commands.list()] == [second.pid]
    assert second.kill() is True
    assert second.kill() is False
    assert sandbox.commands.list() == []


def test_killing_a_command_kills_its_whole_tree(sandbox: Sandbox) -> None:
    """Children, grandchildren, those with a session of their own: gone before the answer."""
    command = "sleep 5151 & setsid sleep 5152 & (setsid sh -c 'sleep 5153 & wait' &); touch /tmp/up; wait"
    handle = sandbox.commands.run(command, background=True)
    sandbox.commands.run("until test -e /tmp/up && pgrep -f '^sleep 5153'; do sleep 0.02; done")
    assert handle.kill()
    assert sandbox.commands.run("ps -eo args | grep -c '^sleep 515[123]' || true").stdout == "0\n"


def test_a_command_is_killed_at_its_timeout(sandbox: Sandbox) -> None:
    """Blocking and while iterating; the process and its children are gone."""
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 4141 & sleep 4142", timeout=1)
    handle = sandbox.commands.run("echo one; sleep 4143", background=True, timeout=1)
    said: list[str | None] = []
    with pytest.raises(TimeoutException):
        said.extend(stdout for stdout, _, _ in handle)
    assert said == ["one\n"]
    # The SDK keeps the deadline too, so it may be a moment ahead of the server.
    until_sync(lambda: sandbox.commands.run("ps -eo args | grep -c '^sleep 414[123]' || true").stdout == "0\n")


def test_a_command_reads_what_is_sent_to_its_stdin(sandbox: Sandbox) -> None:
    """Each input comes back as one chunk; closing ends it; closing twice is fine."""
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    said = iter(handle)
    for text in ("hello", "!@#$%^&*()_+\n", "", "äöü"):
        sandbox.commands.send_stdin(handle.pid, text)
        if text:
            assert next(said)[0] == text
    sandbox.commands.close_stdin(handle.pid)
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().exit_code == 0


def test_input_to_a_closed_stdin_is_an_error_of_its_own(sandbox: Sandbox) -> None:
    """Started without stdin, closed, or ended: three answers, none silent."""
    handle = sandbox.commands.run("sleep 300", background=True)
    with pytest.raises(SandboxException, match="stdin not enabled or closed"):
        sandbox.commands.send_stdin(handle.pid, "x")
    handle.kill()
    with pytest.raises(NotFoundException):
        sandbox.commands.send_stdin(handle.pid, "x")
    open_ = sandbox.commands.run("sleep 300", background=True, stdin=True)
    open_.close_stdin()
    with pytest.raises(SandboxException, match="stdin not enabled or closed"):
        open_.send_stdin("x")
    open_.kill()


def test_large_input_arrives_whole(sandbox: Sandbox) -> None:
    """Two megabytes through a pipe that holds 64 KiB, checked by hash."""
    data = os.urandom(1_000_000).hex()
    handle = sandbox.commands.run("sha256sum", background=True, stdin=True)
    handle.send_stdin(data)
    handle.close_stdin()
    assert handle.wait().stdout.split()[0] == hashlib.sha256(data.encode()).hexdigest()


def test_large_output_arrives_whole(sandbox: Sandbox) -> None:
    """Ten megabytes, every line in place."""
    result = sandbox.commands.run("seq 1 1300000")
    assert len(result.stdout) > 9_000_000
    assert hashlib.sha256(result.stdout.encode()).hexdigest() == (
        hashlib.sha256("".join(f"{n}\n" for n in range(1, 1_300_001)).encode()).hexdigest()
    )


def test_a_handle_nobody_iterates_loses_nothing(sandbox: Sandbox) -> None:
    """The program waits for its reader, however late, and others are not disturbed meanwhile."""
    handle = sandbox.commands.run("seq 1 400000; touch /tmp/through", background=True, timeout=0)
    assert sandbox.commands.run("echo other").stdout == "other\n"
    assert sandbox.commands.run("test -e /tmp/through || echo waiting").stdout == "waiting\n"
    result = handle.wait()
    assert result.stdout == "".join(f"{n}\n" for n in range(1, 400_001))


def test_connecting_to_a_command_continues_its_output(sandbox: Sandbox) -> None:
    """A pid is enough; what the first client read does not come again."""
    handle = sandbox.commands.run("echo first; read line; echo got $line", background=True, stdin=True)
    assert next(iter(handle))[0] == "first\n"
    handle.disconnect()
    again = sandbox.commands.connect(handle.pid)
    assert again.pid == handle.pid
    again.send_stdin("it\n")
    assert again.wait().stdout == "got it\n"


def test_a_command_that_ended_before_the_connect_still_tells_all(sandbox: Sandbox) -> None:
    """E2B answers not found, or an end without the output."""
    handle = sandbox.commands.run("sleep 0.2; echo late; exit 5", background=True)
    handle.disconnect()
    sandbox.commands.run(f"while kill -0 {handle.pid} 2>/dev/null; do sleep 0.02; done")
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.connect(handle.pid).wait()
    assert caught.value.exit_code == 5
    assert caught.value.stdout == "late\n"


def test_connecting_to_what_is_not_there_is_not_found(sandbox: Sandbox) -> None:
    """With the pid in the text; kill answers False."""
    with pytest.raises(NotFoundException, match="process with pid 999999 not found"):
        sandbox.commands.connect(999_999)
    with pytest.raises(NotFoundException, match="process with pid 999999 not found"):
        sandbox.commands.send_stdin(999_999, "x")
    assert sandbox.commands.kill(999_999) is False


def test_a_sandbox_killed_during_a_command_is_said_to_be_gone(sandbox: Sandbox) -> None:
    """Not a broken connection: the stream is reset and /health answers 502."""
    handle = sandbox.commands.run("echo up; sleep 300", background=True, timeout=0)
    said = iter(handle)
    assert next(said)[0] == "up\n"
    threading.Timer(0.2, sandbox.kill).start()
    with pytest.raises(TimeoutException, match="sandbox was killed or reached its end of life"):
        next(said)
    with pytest.raises(TimeoutException, match=r"(?i)sandbox"):
        sandbox.commands.run("true")


async def test_a_sandbox_killed_during_a_command_is_said_to_be_gone_async(asandbox: AsyncSandbox) -> None:
    """The same for asyncio, with a terminal beside it."""
    handle = await asandbox.commands.run("sleep 300", background=True, timeout=0)
    await asandbox.kill()
    with pytest.raises(TimeoutException, match="sandbox was killed or reached its end of life"):
        await handle.wait()


def test_a_sandbox_that_expires_during_a_command_is_said_to_be_gone() -> None:
    """The end of its life looks like a kill."""
    sandbox = Sandbox.create(timeout=1)
    with pytest.raises(TimeoutException, match="sandbox was killed or reached its end of life"):
        sandbox.commands.run("sleep 300", timeout=0)


async def test_many_commands_at_once_keep_their_outputs_apart(asandbox: AsyncSandbox) -> None:
    """Thirty streams side by side."""
    handles = [
        await asandbox.commands.run(f"for i in 1 2 3; do echo {n}; sleep 0.05; done", background=True)
        for n in range(30)
    ]
    for n, handle in enumerate(handles):
        assert (await handle.wait()).stdout == f"{n}\n" * 3


async def test_streamed_input_reaches_a_commands_stdin(asandbox: AsyncSandbox) -> None:
    """In order, and before the stream is closed."""
    handle = await asandbox.commands.run("cat", background=True, stdin=True)
    stream = asandbox.commands.stream_input(handle.pid)
    await stream.send("one ")
    await stream.send(b"two")
    await until(lambda: handle.stdout == "one two")
    await stream.close()
    await handle.close_stdin()
    assert (await handle.wait()).exit_code == 0
