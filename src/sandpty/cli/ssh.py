"""`sandpty ssh` and `ssh-config`: OpenSSH's own client, with everything it needs to know."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import click

from sandpty.cli.completing import complete_sandboxes
from sandpty.cli.connection import find_server, server_options
from sandpty.cli.json_output import json_option, print_json
from sandpty.wire.errors import SandptyError

NAME = "sandpty"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9.-]{0,60}")
_WITH_VALUE = frozenset("BbcDEeFIiJLlmOoPpQRSWw")  # ssh(1)'s options that take a value


def split(words: tuple[str, ...]) -> tuple[list[str], str, list[str]]:
    """ssh's options, the user name, the command. Raises bad_argument without a user name."""
    left = list(words)
    options: list[str] = []
    while left and left[0].startswith("-") and left[0] != "-":
        word = left.pop(0)
        if word == "--":
            break
        options.append(word)
        if word[-1] in _WITH_VALUE and not any(letter in _WITH_VALUE for letter in word[1:-1]) and left:
            options.append(left.pop(0))
    if not left:
        raise SandptyError("bad_argument", "name a sandbox: sandpty ssh ID")
    return options, left[0], left[1:]


@click.command(
    "ssh",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@server_options
@click.argument(
    "words",
    metavar="[SSH OPTIONS] ID [COMMAND]...",
    nargs=-1,
    type=click.UNPROCESSED,
    shell_complete=complete_sandboxes,
)
def ssh(url: str | None, data_dir: Path | None, words: tuple[str, ...]) -> None:
    """Log in to a sandbox with ssh. The server must run with --ssh-port.

    Comes back to your newest terminal there that nobody looks at, and shows what you missed; else it starts one. A
    connection that is cut leaves the terminal running.

    \b
    Behind the ID:
      +new         a new terminal
      +42          process 42 (sandpty ps), whoever started it
      +42+ro       look, do not type; Ctrl-C leaves
      +user=root   as another user of the sandbox

    ssh's own options come before the ID. It logs in with a key of its own and a certificate for some hours; the exit
    status is ssh's.

    \b
    Examples:
      sandpty ssh i0123456789abcdefghi
      sandpty ssh i0123456789abcdefghi make test
      sandpty ssh -L 8080:localhost:80 i0123456789abcdefghi
      sandpty ssh i0123456789abcdefghi+user=root
    """
    from sandpty.cli import ssh_access

    options, user, command = split(words)
    program = shutil.which("ssh")
    if program is None:
        raise SandptyError("unsupported", "there is no ssh here (Debian: apt-get install openssh-client)")
    server = find_server(url, data_dir)
    found = ssh_access.access(server, NAME, ssh_access.renewal(NAME, data_dir, url))
    environment = {**os.environ, ssh_access.READY: "1"}
    os.execve(program, [program, "-F", str(found.config), *options, "-l", user, found.name, *command], environment)


@click.command("ssh-config")
@server_options
@click.option("--name", metavar="NAME", default=NAME, show_default=True, help="What to call the server: ssh ID@NAME.")
@click.option("--write", "write_", is_flag=True, help="Make ssh's configuration include it.")
@click.option(
    "--into",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --write: that configuration. [default: ~/.ssh/config]",
)
@json_option
@click.option("--renew", is_flag=True, hidden=True, help="Say nothing.")
def ssh_config(
    *, url: str | None, data_dir: Path | None, name: str, write_: bool, into: Path | None, as_json: bool, renew: bool
) -> None:
    """Print what ssh needs to know of this server.

    With it ssh ID@sandpty works, and so do scp, sftp, rsync and editors.

    Files are written below ~/.local/state/sandpty/ssh only: a key, its certificate, known_hosts, and the lines that are
    printed. With --write ssh's own configuration gets one Include line at its top, once. ssh renews the certificate by
    itself.

    \b
    Examples:
      sandpty ssh-config --write
      sandpty ssh-config --name staging --url https://staging.example --write
    """
    from sandpty.cli import ssh_access

    if not _NAME.fullmatch(name):
        raise SandptyError("bad_argument", f"{name[:60]!r} is no name for a host: letters, digits, - and .")
    server = find_server(url, data_dir)
    found = ssh_access.access(server, name, ssh_access.renewal(name, data_dir, url), only_if_due=renew)
    if renew:
        return
    changed = write_ and ssh_access.include(into or Path.home() / ".ssh" / "config", found.config)
    if as_json:
        print_json(
            {"name": name, "config": str(found.config), "known_hosts": str(found.known_hosts), "changed": changed}
        )
        return
    if not write_:
        click.echo(found.config.read_text(), nl=False)
        return
    config = into or Path.home() / ".ssh" / "config"
    click.echo(f"{config} {'now includes' if changed else 'includes already'} {found.config}; ssh ID@{name}", err=True)
