"""`sandpty env`, `ls`, `create`, `kill`: what they print, and one readable line when something is wrong."""

from __future__ import annotations

import json
import re
import shlex
import stat
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.e2e.cli_fixture import Cli
from tests.server_fixture import sandpty

ABSENT = "i00000000000000000000"


def assert_one_line(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """How every error of the command line looks."""
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("sandpty: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_what_env_prints_points_a_real_shell_at_the_server(cli: Cli, shell: str) -> None:
    """`eval "$(sandpty env)"`, then any program finds address and key, and nothing that leads elsewhere."""
    script = f'eval "$({cli.line("env", "--data-dir", str(cli.server.data_dir))})" && env'
    env = {**cli.env, "E2B_DOMAIN": "elsewhere", "E2B_DEBUG": "true", "NOVITA_DEBUG": "true"}
    said = subprocess.run([shell, "-c", script], env=env, capture_output=True, text=True, check=True).stdout
    variables = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    for name in (
        "E2B_API_URL",
        "E2B_SANDBOX_URL",
        "E2B_VOLUME_API_URL",
        "NOVITA_API_URL",
        "NOVITA_SANDBOX_URL",
        "SANDPTY_URL",
    ):
        assert variables[name] == cli.server.url
    for name in ("E2B_API_KEY", "NOVITA_API_KEY", "HYPERBROWSER_API_KEY", "SANDPTY_API_KEY"):
        assert variables[name] == cli.server.api_key
    assert variables["HYPERBROWSER_BASE_URL"] == f"http://localhost:{cli.server.port}"
    assert not {"E2B_DOMAIN", "E2B_DEBUG", "NOVITA_DEBUG"} & set(variables)
    answer = httpx.get(f"{variables['HYPERBROWSER_BASE_URL']}/healthz", trust_env=False)
    assert answer.status_code == 200


def test_env_of_a_stranger_to_the_machine_takes_an_address(cli: Cli) -> None:
    """--url: what lies between is the user's to know."""
    assert "export E2B_API_URL=https://sandboxes.example" in cli.out("env", "--url", "https://sandboxes.example/")


def test_a_sandbox_is_made_listed_and_ended(cli: Cli) -> None:
    """create prints the ID and nothing else; ls shows it with its metadata; kill prints what is gone."""
    made = cli.out("create", "--metadata", "owner=ann", "--metadata", "job=1", "--timeout", "10m")
    assert re.fullmatch(r"i[a-z0-9]{20}", made)
    row = next(line for line in cli.out("ls").splitlines() if made in line)
    assert "running" in row
    assert "owner=ann job=1" in row
    assert re.search(r"\b(10m|9m)\b", row)
    (listed,) = (each for each in json.loads(cli.out("ls", "--json")) if each["id"] == made)
    assert listed["metadata"] == {"owner": "ann", "job": "1"}
    assert cli.out("kill", made) == made
    assert made not in cli.sandboxes()


def test_create_can_print_all_there_is_to_know(cli: Cli) -> None:
    """--json, for programs."""
    made = json.loads(cli.out("create", "--json", "--no-internet", "--on-timeout", "pause"))
    try:
        assert made["state"] == "running"
        assert made["internet"] is False
        assert made["on_timeout"] == "pause"
    finally:
        cli.out("kill", made["id"])


def test_a_sandbox_is_paused_and_goes_on(cli: Cli) -> None:
    """pause, resume: each prints the ID; a second pause is one readable line."""
    with cli.sandbox() as box:
        assert cli.out("pause", box) == box
        assert "paused" in next(line for line in cli.out("ls").splitlines() if box in line)
        assert_one_line(cli.run("pause", box), 1, "paused")
        assert cli.out("resume", "--timeout", "5m", box) == box
        assert cli.out("pause", "--disk", box) == box
        assert cli.out("resume", "--restart", box) == box
        assert "running" in next(line for line in cli.out("ls").splitlines() if box in line)


def test_a_snapshot_is_made_used_and_deleted(cli: Cli) -> None:
    """snapshot, snapshots, create --template; fork prints one ID per line."""
    with cli.sandbox() as box:
        made = cli.out("snapshot", box, "--name", "by-cli")
        assert re.fullmatch(r"[a-z0-9]{20}", made)
        assert f"{made}  by-cli  {box}" in cli.out("snapshots")
        children = [cli.out("create", "--template", name) for name in (made, "by-cli")]
        children += cli.out("fork", "--count", "2", "--timeout", "1m", box).split()
        assert len(set(children)) == 4
        assert cli.out("snapshots", "--delete", "by-cli") == "by-cli"
        assert made not in {each["id"] for each in json.loads(cli.out("snapshots", "--json"))}
        assert_one_line(cli.run("snapshots", "--delete", "by-cli"), 1, "does not exist")
        assert cli.out("kill", *children).split() == children


def test_env_of_a_sandbox_reaches_its_processes(cli: Cli) -> None:
    """--env NAME=VALUE, byte for byte."""
    with cli.sandbox("--env", "GREETING=a=b c") as box:
        assert "[a=b c]" in cli.out("shell", box, "--cmd", 'echo "[$GREETING]"')


def test_kill_ends_what_it_can_and_names_what_it_cannot(cli: Cli) -> None:
    """One wrong ID among right ones."""
    made = cli.out("create")
    done = cli.run("kill", ABSENT, made)
    assert done.stdout.strip() == made
    assert done.returncode == 1
    assert ABSENT in done.stderr
    assert "sandpty ls" in done.stderr


@pytest.mark.parametrize(
    "words",
    [("kill", ABSENT), ("shell", ABSENT), ("shell", "../../etc"), ("kill", "a b"), ("shell", "x" * 4000)],
    ids=["kill", "shell", "a path", "a blank", "very long"],
)
def test_a_sandbox_that_is_not_there_is_one_line(cli: Cli, words: tuple[str, ...]) -> None:
    """And a hint at how to find the right one."""
    assert_one_line(cli.run(*words), 1, "sandpty ls")


@pytest.mark.parametrize("words", [("ls",), ("create",), ("kill", ABSENT), ("shell", ABSENT), ("shell",)])
def test_a_wrong_key_is_one_line_and_status_77(cli: Cli, words: tuple[str, ...]) -> None:
    """With the way to the right key."""
    done = cli.run(*words, env={"SANDPTY_API_KEY": "e2b_" + "0" * 40, "SANDPTY_URL": cli.server.url})
    assert_one_line(done, 77, "sandpty env")


@pytest.mark.parametrize("words", [("ls",), ("create",), ("shell",)])
def test_no_server_is_one_line_and_status_69(cli: Cli, words: tuple[str, ...]) -> None:
    """Where it was looked for, and how to start one."""
    done = cli.run(*words, "--url", "http://127.0.0.1:1", env={"SANDPTY_API_KEY": "k"})
    assert_one_line(done, 69, "http://127.0.0.1:1", "sandpty serve")


def test_a_data_directory_without_a_server_is_one_line(cli: Cli, tmp_path: Path) -> None:
    """No key has been made there yet."""
    assert_one_line(cli.run("ls", "--data-dir", str(tmp_path / "empty")), 69, "no server has run")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("create", "--template", "no-such-template"), 1),
        (("create", "--timeout", "90d"), 2),
        (("shell", "--template", "no-such-template"), 1),
    ],
    ids=str,
)
def test_a_bad_wish_for_a_sandbox_is_one_line(cli: Cli, words: tuple[str, ...], status: int) -> None:
    """Templates that do not exist, lives that are too long."""
    assert_one_line(cli.run(*words), status)


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("--user", "nobody-here"), 2),
        (("--cwd", "/no/such/place"), 2),
        (("--pid", "4000000"), 1),
    ],
    ids=str,
)
def test_a_bad_wish_for_a_program_is_one_line(cli: Cli, box: str, options: tuple[str, ...], status: int) -> None:
    """Users, directories and processes that do not exist in the sandbox."""
    words = options if options[0] == "--pid" else ("--new", *options)
    assert_one_line(cli.run("shell", box, *words), status)


def test_a_program_that_does_not_exist_says_so_as_a_shell_does(cli: Cli, box: str) -> None:
    """127, from the sandbox's own shell."""
    assert cli.run("shell", box, "--cmd", "no-such-program").returncode == 127


def test_a_paused_sandbox_says_that_it_is(cli: Cli, box: str) -> None:
    """And what to do about it."""
    answer = httpx.post(f"{cli.server.url}/v1/sandboxes/{box}/pause", headers=cli.server.headers, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert "paused" in next(line for line in cli.out("ls").splitlines() if box in line)
    assert_one_line(cli.run("shell", box), 1, "resume")


def test_output_that_nobody_reads_any_more_is_no_error(cli: Cli) -> None:
    """`sandpty --help | head -1` ends quietly."""
    line = f"{shlex.join(sandpty('--help'))} | head -1"
    done = subprocess.run(["bash", "-c", line], env=cli.env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage:")
    assert done.stderr == ""


def test_the_key_is_for_its_owner_only(cli: Cli) -> None:
    """0600, `e2b_` and 40 hex digits: what the vendors' clients accept."""
    file = cli.server.data_dir / "api_key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert re.fullmatch(r"e2b_[0-9a-f]{40}\n", file.read_text())


def test_doctor_tells_what_holds_here(cli: Cli) -> None:
    """The tier in force, versions, cgroups; as lines and as JSON."""
    done = cli.run("doctor")
    assert done.returncode == 0, done.stdout
    for word in ("isolation", "crun", "kernel", "cgroups", "python", "nft", "supervisor"):
        assert word in done.stdout
    findings = {each["name"]: each for each in json.loads(cli.out("doctor", "--json"))}
    assert findings["isolation"]["state"] == "ok"
    assert findings["server"]["value"] == cli.server.url
