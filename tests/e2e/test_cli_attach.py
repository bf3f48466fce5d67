"""`sandpty attach` and `exec -t`: terminals that one comes back to, and programs that need one."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from tests.e2e.cli_fixture import Cli
from tests.e2e.cut import relay
from tests.e2e.tmux import PROMPT, Tmux, tmux
from tests.server_fixture import RunningServer, sandpty
from tests.waiting import until, until_sync

LONG_S = 30.0


@pytest.fixture(scope="module")
def cli(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command line, with a home of its own."""
    return Cli(server, Path(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def box(cli: Cli) -> Iterator[str]:
    """One sandbox for this file."""
    with cli.sandbox() as made:
        yield made


@pytest.fixture
def at_prompt(cli: Cli) -> Iterator[Tmux]:
    """Somebody at a local prompt, in a window of 100 x 24."""
    with tmux(cols=100, env=cli.env) as somebody:
        yield somebody


def started(cli: Cli, box: str, line: str, *, tag: str = "t") -> str:
    """A program in a terminal nobody looks at; its pid."""
    import httpx

    body = {"argv": ["/bin/bash", "-c", line], "pty": {"cols": 80, "rows": 24}, "tag": tag}
    path = f"{cli.server.url}/v1/sandboxes/{box}/processes"
    return str(httpx.post(path, json=body, headers=cli.server.headers, timeout=30).json()["pid"])


def end(cli: Cli, box: str, *pids: str) -> None:
    """End programs, and wait until they are gone."""
    cli.run("exec", "--no-stdin", "--user", "root", box, "--", "kill", "-9", *pids)
    until_sync(lambda: not [line for line in cli.out("ps", box).splitlines() if line.split()[0] in pids], LONG_S)


# --- attach ----------------------------------------------------------------------------------------------------------


def test_attach_finds_the_only_terminal_and_lists_several(cli: Cli, box: str, at_prompt: Tmux) -> None:
    """One: there it is. Two: a table and status 2; by pid or by tag. None: how to start one."""
    assert "no terminal runs" in cli.run("attach", box).stderr
    first = started(cli, box, "echo I am the first; read line; echo got $line; exit 5", tag="first")
    at_prompt.type(cli.line("attach", box) + "; echo status=$?")
    at_prompt.wait_for("I am the first", LONG_S)
    at_prompt.keys("Enter")
    at_prompt.wait_for("status=5", LONG_S)
    first = started(cli, box, "echo I am the first; cat", tag="first")
    second = started(cli, box, "echo I am the second; cat", tag="second")
    done = cli.run("attach", box)
    assert done.returncode == 2
    listed = {line.split()[0] for line in done.stderr.splitlines()[1:-1]}
    assert listed == {first, second}
    assert "2 terminals run" in done.stderr.splitlines()[-1]
    for which, said in ((first, "I am the first"), ("tag:second", "I am the second")):
        at_prompt.clear()
        at_prompt.type(cli.line("attach", box, which) + "; echo status=$?")
        at_prompt.wait_for(said, LONG_S)
        at_prompt.keys("Enter")
        at_prompt.type("~.", enter=False)
        screen = at_prompt.wait_for("status=0", LONG_S)
        assert re.search(rf"sandpty attach {box} \d+", screen)
    end(cli, box, first, second)


def test_attach_replays_from_the_start_and_only_looks_when_told(cli: Cli, box: str, at_prompt: Tmux) -> None:
    """--from-start: all that is kept, not the last screen; --read-only: keys reach nobody, Ctrl-C leaves."""
    pid = started(cli, box, "seq 1 200; read line; echo typed: $line")
    at_prompt.type(cli.line("attach", "--read-only", "--from-start", box, pid) + "; echo status=$?")
    at_prompt.wait_for("\n200\n", LONG_S)
    lines = [line for line in at_prompt.screen(history=True).splitlines() if line.isdigit()]
    assert lines == [str(number) for number in range(1, 201)]
    at_prompt.type("not for you")
    at_prompt.keys("C-c")
    assert "typed" not in at_prompt.wait_for("status=0", LONG_S)
    end(cli, box, pid)


def test_a_program_that_has_ended_says_its_last_words_and_status(cli: Cli, box: str) -> None:
    """As long as they are kept; a process with pipes, a pid that is none: one line each."""
    pid = started(cli, box, "echo last words; exit 9")
    until_sync(lambda: "exit 9" in cli.out("ps", "--all", box), LONG_S)
    done = cli.run("attach", "--from-start", box, pid)
    assert ("last words" in done.stdout, done.returncode) == (True, 9)
    piped = subprocess.Popen(sandpty("exec", box, "sleep", "1111"), env=cli.env, stdin=subprocess.DEVNULL)
    try:
        rows = until_sync(lambda: re.findall(r"(\d+) .*sleep 1111", cli.out("ps", box)), LONG_S)
        for which, status in ((rows[0], 1), ("99999", 1), ("x", 2), ("tag:nobody", 1)):
            done = cli.run("attach", box, which)
            assert (done.returncode, done.stderr.count("\n")) == (status, 1), done.stderr
    finally:
        piped.terminate()
        piped.wait(30)


# --- exec -t ---------------------------------------------------------------------------------------------------------


def test_exec_t_is_a_terminal_with_the_commands_own_status(cli: Cli, box: str, at_prompt: Tmux) -> None:
    """The window's size, the environment, the exit status; 128 + n for a signal; Ctrl-C is the program's."""
    for words, said, status in (
        (("sh", "-c", "tty -s && stty size; exit 7"), "24 100", 7),
        (("sh", "-c", "kill -9 $$"), "", 137),
        (("sh", "-c", "trap 'echo clea''ned; exit 3' INT; echo rea''dy; while :; do sleep 0.1; done"), "cleaned", 3),
    ):
        at_prompt.type("clear; " + cli.line("exec", "-t", box, "--", *words) + "; echo status=$?")
        if said == "cleaned":
            at_prompt.wait_for("ready", LONG_S)
            at_prompt.keys("C-c")
        assert said in at_prompt.wait_for(f"status={status}\n", LONG_S)
    done = cli.run("exec", "-t", "-e", "A=b", box, "--", "sh", "-c", "tty -s; echo $? $A; read line; echo got $line",
                   stdin="x\n", env={"TERM": "vt100"})  # fmt: skip
    assert (re.findall(r"0 b|got x", done.stdout), done.returncode) == (["0 b", "got x"], 0)
    assert cli.run("exec", "-t", "--no-stdin", box, "true").returncode == 2


def test_a_detached_program_goes_on_and_is_come_back_to(cli: Cli, box: str, at_prompt: Tmux) -> None:
    """With the line that is printed."""
    at_prompt.type(cli.line("exec", "-t", box, "--", "bash", "-c", "echo started; read line; echo got $line"))
    at_prompt.wait_for("\nstarted", LONG_S)
    at_prompt.type("~.", enter=False)
    screen = at_prompt.wait_for("detached; the program goes on: sandpty attach", LONG_S)
    words = re.search(rf"attach {box} (\d+)", screen.replace("\n", ""))
    assert words
    at_prompt.clear()
    at_prompt.type(cli.line("attach", box, words[1]))
    at_prompt.wait_for("started", LONG_S)
    at_prompt.type("hello")
    at_prompt.wait_for("got hello", LONG_S)


# --- the local terminal -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["HUP", "TERM", "INT", "QUIT"])
def test_a_signal_gives_the_local_terminal_back(cli: Cli, box: str, at_prompt: Tmux, how: str) -> None:
    """Whatever ends us, modes of the program and of the line are undone; the program goes on."""
    before, client = cli.home / "before", cli.home / "client"
    modes = r"printf '\033[?1049h\033[?1000h\033[?2004h\033[?25l'; echo full scr''een; cat"
    line = cli.line("exec", "-t", box, "--", "sh", "-c", modes)
    at_prompt.type(f"stty -g > {before}; (echo $BASHPID > {client}; exec {line}); echo status=$?")
    at_prompt.wait_for("full screen", LONG_S)
    assert at_prompt.alternate_screen()
    subprocess.run(["kill", f"-{how}", client.read_text().strip()], check=True)
    at_prompt.wait_for(f"status={128 + signal.Signals['SIG' + how]}", LONG_S)
    assert (at_prompt.alternate_screen(), at_prompt.mouse_reports()) == (False, False)
    at_prompt.type(f"stty -g | cmp - {before} && echo same")
    at_prompt.wait_for("\nsame", LONG_S)


def test_a_client_that_was_stopped_goes_on_in_raw_mode(cli: Cli, box: str, at_prompt: Tmux) -> None:
    """`kill -STOP`, a few commands, `fg`: keys are the program's again, the size too."""
    client = cli.home / "client"
    line = cli.line("exec", "-t", box, "--", "sh", "-c", "echo started; cat -v")
    at_prompt.type(f"(echo $BASHPID > {client}; exec {line})")
    at_prompt.wait_for("\nstarted", LONG_S)
    subprocess.run(["kill", "-STOP", client.read_text().strip()], check=True)
    at_prompt.wait_for("Stopped", LONG_S)
    at_prompt.type("stty sane; fg")
    at_prompt.wait(lambda screen: screen.count(line[:20]) >= 2, LONG_S)
    at_prompt.keys("C-a")
    at_prompt.keys("Enter")
    at_prompt.wait(lambda screen: screen.count("^A") >= 2, LONG_S)
    at_prompt.keys("C-d")
    at_prompt.wait(lambda screen: screen.rstrip().endswith(PROMPT), LONG_S)


# --- full-screen programs ---------------------------------------------------------------------------------------------


def test_colours_mouse_and_paste_pass_as_they_are(cli: Cli, box: str, at_prompt: Tmux) -> None:
    """24-bit colour; mouse reports of the newest kind; a pasted line waits for Enter."""
    at_prompt.type(cli.line("exec", "-t", "-e", "PS1=guest> ", box, "--", "bash", "--norc", "--noprofile", "-i"))
    at_prompt.wait_for("guest>", LONG_S)
    at_prompt.type(r"printf '\033[38;2;17;34;51mcol''oured\033[0m\n'")
    at_prompt.wait_for("coloured", LONG_S)
    assert "\x1b[38;2;17;34;51mcoloured" in at_prompt.screen(colours=True)
    at_prompt.paste("echo fir''st\necho sec''ond")
    screen = at_prompt.wait_for("echo sec''ond", LONG_S)
    assert "first" not in screen
    at_prompt.keys("Enter")
    at_prompt.wait_for("first\nsecond", LONG_S)
    at_prompt.type(r"printf '\033[?1000h\033[?1006h'; cat -v")
    until_sync(at_prompt.mouse_reports, LONG_S)
    at_prompt.type("\x1b[<0;10;5M")
    at_prompt.wait(lambda screen: screen.count("^[[<0;10;5M") >= 2, LONG_S)
    at_prompt.keys("C-c")
    at_prompt.type("exit")
    at_prompt.wait(lambda screen: screen.rstrip().endswith(PROMPT), LONG_S)
    assert not at_prompt.mouse_reports(), "modes that the program left on are undone at the end"


def test_an_editor_can_be_suspended_and_taken_up_again(cli: Cli, box: str, at_prompt: Tmux) -> None:
    """Enter ~ Ctrl-Z: the local shell with its own screen; `fg`: the editor as it was."""
    at_prompt.type(cli.line("exec", "-t", box, "--", "vim", "-u", "NONE", "-N", "/tmp/suspended"))
    at_prompt.wait(lambda screen: screen.count("\n~") > 15, LONG_S)
    at_prompt.type("ifirst line")
    at_prompt.wait_for("first line", LONG_S)
    at_prompt.type("~\x1a", enter=False)
    at_prompt.wait_for("Stopped", LONG_S)
    assert not at_prompt.alternate_screen()
    at_prompt.type("echo local $((40 + 2))")
    at_prompt.wait_for("local 42", LONG_S)
    at_prompt.type("fg")
    at_prompt.wait(lambda screen: "first line" in screen and screen.count("\n~") > 15, LONG_S)
    at_prompt.type("second line", enter=False)
    at_prompt.wait_for("second line", LONG_S)
    at_prompt.keys("Escape")
    at_prompt.type(":q!")
    at_prompt.wait(lambda screen: screen.rstrip().endswith(PROMPT), LONG_S)


def packed(*programs: str) -> bytes:
    """A tar archive of programs of this machine with their libraries."""
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for program in programs:
            path = subprocess.run(["which", program], capture_output=True, text=True, check=True).stdout.strip()
            told = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
            libraries = [
                each for each in re.findall(r"=> (/\S+)", told) if not re.search(r"/lib(c|m|resolv)\.so", each)
            ]
            for file in [path, *libraries]:
                real = Path(file).resolve()
                tar.add(real, arcname=f"bin/{program}" if file == path else f"lib/{Path(file).name}")
    return archive.getvalue()


def test_htop_vim_and_tmux_work_inside(cli: Cli, box: str, at_prompt: Tmux) -> None:
    """Full screens, resized, left again; tmux in the sandbox with two panes, detached and come back to."""
    unpack = sandpty("exec", box, "--", "tar", "x", "-C", "/tmp")
    subprocess.run(unpack, input=packed("htop", "tmux"), env=cli.env, check=True, timeout=60)
    shell = ("env", "LD_LIBRARY_PATH=/tmp/lib", "PATH=/tmp/bin:/usr/bin:/bin", "PS1=guest> ", "bash", "--norc",
             "--noprofile", "-i")  # fmt: skip
    at_prompt.type(cli.line("exec", "-t", "-e", "LANG=C.UTF-8", box, "--", *shell))
    at_prompt.wait_for("guest>", LONG_S)
    at_prompt.type("htop")
    at_prompt.wait(lambda screen: "Tasks:" in screen and "Load average" in screen, LONG_S)
    assert at_prompt.alternate_screen()
    at_prompt.resize(80, 30)
    at_prompt.wait(lambda screen: re.search(r"F10.?Quit", screen.splitlines()[-1]), LONG_S)
    at_prompt.type("q", enter=False)
    at_prompt.wait(lambda screen: "guest>" in screen and "Tasks:" not in screen, LONG_S)
    at_prompt.resize(100, 24)
    at_prompt.type("vim -u NONE -N +'set nomore' /tmp/notes")
    at_prompt.wait(lambda screen: screen.count("\n~") > 15, LONG_S)
    at_prompt.type("iwritten in vim", enter=False)
    at_prompt.keys("Escape")
    at_prompt.type(":wq")
    at_prompt.wait(lambda screen: "\n~" not in screen and "guest>" in screen, LONG_S)
    at_prompt.type("tmux -f /dev/null new-session 'env PS1=\"inner> \" bash --norc --noprofile -i'")
    at_prompt.wait(lambda screen: "inner>" in screen and "[0]" in screen.splitlines()[-1], LONG_S)
    at_prompt.type("cat /tmp/notes")
    at_prompt.wait_for("\nwritten in vim", LONG_S)
    at_prompt.keys("C-b", "%")
    at_prompt.wait(lambda screen: "│" in screen, LONG_S)
    at_prompt.keys("C-b", "d")
    at_prompt.wait_for("[detached (from session 0)]", LONG_S)
    at_prompt.type("tmux attach")
    at_prompt.wait(lambda screen: "│" in screen and "written in vim" in screen, LONG_S)
    at_prompt.keys("C-b", "d")
    at_prompt.type("tmux kill-server; exit")
    at_prompt.wait(lambda screen: screen.rstrip().endswith(PROMPT), LONG_S)


# --- a bad network ----------


async def test_exec_goes_on_where_a_connection_was_cut(cli: Cli) -> None:
    """A closed laptop lid: output and input once each, in order, and the exit status."""
    numbers = b"".join(b"%d\n" % number for number in range(50_000))
    line = "read go; for i in $(seq 0 49); do seq $((i * 1000)) $((i * 1000 + 999)); sleep 0.02; done; cat >&2; exit 7"
    with cli.sandbox() as box:
        async with relay(cli.server.port) as network:
            command = sandpty("exec", "--url", network.url, box, "--", "bash", "-c", line)
            env = {**cli.env, "SANDPTY_API_KEY": cli.server.api_key}
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(*command, env=env, stdin=pipe, stdout=pipe, stderr=pipe)
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdin.write(b"go\n")
            output = bytearray()
            for part in range(1, 6):
                while len(output) < part * 40_000:
                    output += await asyncio.wait_for(process.stdout.read(4096), LONG_S)
                before = network.connections
                network.cut()
                await until(lambda before=before: network.connections > before, LONG_S)
            process.stdin.write(b"typed after it all")
            process.stdin.close()
            output += await asyncio.wait_for(process.stdout.read(), LONG_S)
            assert bytes(output) == numbers
            assert await process.stderr.read() == b"typed after it all"
            assert await process.wait() == 7


def test_a_network_that_stays_away_ends_exec_in_the_time_that_was_said(cli: Cli) -> None:
    """--reconnect-timeout; a line that says what, and the status of an unreachable server."""
    with cli.sandbox() as box:
        env = {**cli.env, "SANDPTY_API_KEY": cli.server.api_key}

        async def cut_off() -> tuple[int, bytes]:
            async with relay(cli.server.port) as network:
                options = ("--url", network.url, "--reconnect-timeout", "0.5s")
                command = sandpty("exec", *options, "--no-stdin", box, "--", "sh", "-c", "echo on; sleep 600")
                pipe = asyncio.subprocess.PIPE
                process = await asyncio.create_subprocess_exec(*command, env=env, stdout=pipe, stderr=pipe)
                assert process.stdout is not None
                assert await process.stdout.readline() == b"on\n"
                network.refuse = True
                network.cut()
                _, said = await asyncio.wait_for(process.communicate(), LONG_S)
                return process.returncode or 0, said

        status, said = asyncio.run(cut_off())
    assert (status, said.count(b"\n")) == (69, 1)
