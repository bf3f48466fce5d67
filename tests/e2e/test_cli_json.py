"""Every command prints JSON when asked, of the shape that docs/reference/cli.md gives."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.cli_fixture import Cli
from tests.server_fixture import running_server, sandpty
from tests.unit.test_cli_help import ALL

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference/cli.md").read_text().split("\n## JSON\n")[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.split("\n## ")[0].splitlines()
    if line.startswith("| ")
]
PRINTS = {
    name.split()[0] if "--" in name else name for row in ROWS for name in re.findall(r"`([a-z][a-z -]*)`", row[0])
}
MEMBERS = {
    row[0]: set(re.findall(r"`(\w+)`", row[1].split("(null, or")[0]))
    for row in ROWS
    if row[0] not in ("command", "object") and row[0].isalpha()
}
# Commands that print nothing of their own, or nothing but what a program takes as it is.
SILENT = {
    "exec": "the command's own output",
    "shell": "a terminal",
    "attach": "a terminal",
    "completion": "a program for a shell",
    "config get": "one value, as it is",
    **dict.fromkeys(("config set", "config unset", "config use", "config remove"), "nothing"),
    "ssh": "what ssh prints",
    "port": "a line for each port that is forwarded, for people",
}


def leaves() -> set[str]:
    """Every command that is no group."""
    return {" ".join(path) for path, command in ALL.items() if path and not hasattr(command, "commands")}


def test_every_command_can_print_json_and_the_page_says_what() -> None:
    """One that is added without is found here."""
    able = {name for name in leaves() if any("--json" in option.opts for option in ALL[tuple(name.split())].params)}
    assert leaves() - able == set(SILENT) & leaves()
    assert able == PRINTS
    assert all(MEMBERS.values())


def said(cli: Cli, *words: str) -> Any:
    """What a command prints with --json, which is all it prints."""
    return json.loads(cli.out(*words, "--json"))


def test_commands_about_sandboxes_print_what_the_page_says(cli: Cli) -> None:
    """From create to kill."""
    made = said(cli, "create", "--metadata", "name=json")
    assert set(made) == MEMBERS["sandbox"]
    box = made["id"]
    try:
        assert said(cli, "info", box).keys() == MEMBERS["sandbox"]
        assert box in [each["id"] for each in said(cli, "ls")]
        cli.out("exec", box, "true")
        (process,) = said(cli, "ps", "--all", box)
        assert set(process) == MEMBERS["process"]
        assert set(said(cli, "logs", box)[0]) == MEMBERS["line"]
        assert set(said(cli, "metrics", box)[0]) == MEMBERS["sample"]
        assert said(cli, "pause", box) == [{"id": box, "error": None}]
        assert said(cli, "resume", box) == [{"id": box, "error": None}]
        kept = said(cli, "snapshot", box, "--name", "as-json")
        assert set(kept) == MEMBERS["snapshot"]
        assert kept in said(cli, "snapshots")
        (fork,) = said(cli, "fork", box)
        assert set(fork) == MEMBERS["sandbox"]
        assert said(cli, "snapshots", "--delete", "as-json") == [{"id": "as-json", "error": None}]
        assert said(cli, "kill", fork["id"]) == [{"id": fork["id"], "error": None}]
    finally:
        done = cli.run("kill", box, "i" + "0" * 20, "--json")
    gone, missing = json.loads(done.stdout)
    assert gone == {"id": box, "error": None}
    assert set(missing) == MEMBERS["outcome"]
    assert set(missing["error"]) == {"reason", "message", "hint"}
    assert (missing["error"]["reason"], done.returncode) == ("no_such_sandbox", 1)
    assert done.stderr.startswith("sandpty: ")


def test_commands_about_this_machine_print_what_the_page_says(cli: Cli) -> None:
    """Keys, trees, findings, variables."""
    key = said(cli, "keys", "add", "--name", "as-json")
    assert set(key) == MEMBERS["key"]
    assert set(said(cli, "keys", "list")[0]) == MEMBERS["key"]
    assert set(said(cli, "keys", "revoke", "as-json")) == MEMBERS["key"] | {"supervisor", "tokens_renewed"}
    assert set(said(cli, "template", "ls")[0]) == MEMBERS["template"]
    kept = said(cli, "template", "ls", "--trees", *cli.server.args[:2])
    assert set(kept) == {"trees", "images"}
    assert set(kept["trees"][0]) == MEMBERS["tree"]
    assert set(json.loads(cli.run("doctor", "--json").stdout)[0]) == MEMBERS["finding"]
    variables = said(cli, "env")
    assert variables["SANDPTY_API_KEY"] == cli.server.api_key
    assert variables["E2B_DOMAIN"] is None


def test_commands_that_need_nothing_print_what_the_page_says(cli: Cli, tmp_path: Path) -> None:
    """An authority, nothing to collect, nothing to end."""
    (authority,) = said(cli, "ca", "--domain", "json.localhost", "--data-dir", str(tmp_path))
    assert set(authority) == MEMBERS["authority"]
    nowhere = ["--templates-dir", str(tmp_path / "no-trees"), "--data-dir", str(tmp_path / "none")]
    assert said(cli, "template", "gc", *nowhere) == {"trees": [], "images": []}
    assert set(said(cli, "down", "--data-dir", str(tmp_path / "none"))) == MEMBERS["end"]


def test_a_server_says_where_it_listens_in_one_line() -> None:
    """And down what it has ended."""
    with running_server("--isolation", "process", "--json") as server:
        first = server.log.read_text().splitlines()
        (line,) = [json.loads(each) for each in first if each.startswith("{")]
        assert set(line) == MEMBERS["server"]
        assert line["url"] == server.url
        server.kill(signal.SIGTERM)
        assert "stopped" not in server.log.read_text()
        command = sandpty("down", "--json", "--data-dir", str(server.data_dir))
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(done.stdout) == {"sandboxes": [], "supervisor_ended": True}
