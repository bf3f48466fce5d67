"""`sandpty keys add|list|revoke`: who may use this server, in teams that do not see each other's sandboxes."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from sandpty import config
from sandpty.cli.json_output import json_option, print_json
from sandpty.config import DataDir

if TYPE_CHECKING:
    from sandpty.supervisor.key_file import Key, KeyFile

_SSH_KEY_READ = 64 * 1024  # of a file that should hold one line
_data_dir = click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, readable=False),
    help="The server's data directory. [default: as root /var/lib/sandpty]",
)


@click.group()
def keys() -> None:
    """Make, list and revoke API keys.

    Each key belongs to a team, and a team sees only its own sandboxes. Needs to be who runs the supervisor (root).
    Works whether a server runs or not; one that runs knows at once.

    \b
    Examples:
      sandpty keys add --team acme --name ci
      sandpty keys list
      sandpty keys revoke ci
    """


@keys.command()
@_data_dir
@click.option(
    "--team", metavar="TEAM", default="default", show_default=True, help="Whose key; a new name is a new team."
)
@click.option("--name", metavar="NAME", default="", help="What to call the key. [default: a number]")
@json_option
def add(data_dir: Path | None, team: str, name: str, as_json: bool) -> None:
    """Make a key and print it, this one time.

    \b
    Examples:
      sandpty keys add
      sandpty keys add --team acme --name ci
    """
    data = _directory(data_dir)
    key, record = _key_file(data).add(team, name)
    _tell_supervisor(data)
    if as_json:
        print_json({**_as_json(record, team), "key": key})
        return
    click.echo(key)
    click.echo(f"key {record.id} ({record.name}) of team {team}; it is not shown again", err=True)


@keys.command("list")
@_data_dir
@click.option("--all", "all_", is_flag=True, help="Also keys that were revoked.")
@json_option
def list_(data_dir: Path | None, all_: bool, as_json: bool) -> None:
    """List keys, without the keys themselves.

    \b
    Examples:
      sandpty keys list
      sandpty keys list --all --json
    """
    content = _key_file(_directory(data_dir)).read()
    shown = [] if content is None else (content.keys if all_ else content.active())
    found = [_as_json(key, content.teams.get(key.team, "?")) for key in shown if content is not None]
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("no keys (sandpty serve makes the first, sandpty keys add another)", err=True)
        return
    columns = ["id", "name", "team", "key", "created_at"] + (["revoked_at"] if all_ else [])
    rows = [[column.partition("_")[0].upper() for column in columns]]
    rows += [[str(each[column] or "") for column in columns] for each in found]
    widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
@_data_dir
@click.option("--tokens", is_flag=True, help="Also give every sandbox of the team a new access token: the key leaked.")
@json_option
@click.argument("key")
def revoke(data_dir: Path | None, tokens: bool, as_json: bool, key: str) -> None:
    """Refuse a key from now on, and cut what it has open.

    KEY is its ID, its name, or the key itself. Streams that were opened with the key end, and so do streams of
    sandboxes that were made with it. Those sandboxes live on: they are the team's. A client that holds a sandbox's
    access token may come back with it as long as the team has a key; --tokens makes those worthless too.

    \b
    Examples:
      sandpty keys revoke ci
      sandpty keys revoke k1f2e3d4c --tokens
    """
    data = _directory(data_dir)
    record = _key_file(data).revoke(key)
    told = _tell_supervisor(data)
    renewed = _renew_tokens(data, record.team) if tokens and told else 0
    if as_json:
        team = record.team
        content = _key_file(data).read()
        name = content.teams.get(team, "?") if content is not None else "?"
        print_json({**_as_json(record, name), "supervisor": told, "tokens_renewed": renewed})
        return
    click.echo(f"revoked {record.id} ({record.name})")
    if tokens:
        click.echo(
            f"{renewed} sandboxes have a new access token" if told else "no supervisor runs: no tokens were changed"
        )


@keys.command("add-ssh")
@_data_dir
@json_option
@click.argument("key")
@click.argument("file", type=click.File("r"), metavar="FILE", default="-")
def add_ssh(data_dir: Path | None, as_json: bool, key: str, file: IO[str]) -> None:
    """Let a public SSH key log in for an API key.

    Its owner then logs in by ssh ID@host, without a password.

    KEY is the API key's ID, its name, or the key itself; FILE holds the public half, - is stdin. It counts at once, and
    no more once the API key is revoked.

    \b
    Examples:
      sandpty keys add-ssh first ~/.ssh/id_ed25519.pub
      ssh-add -L | head -1 | sandpty keys add-ssh ci -
    """
    data = _directory(data_dir)
    record, line = _key_file(data).add_ssh_key(key, file.read(_SSH_KEY_READ))
    _tell_supervisor(data)
    if as_json:
        print_json(_identity(record, line))
        return
    click.echo(f"added to {record.id} ({record.name})")


@keys.command("list-ssh")
@_data_dir
@json_option
def list_ssh(data_dir: Path | None, as_json: bool) -> None:
    """List public SSH keys and the API keys they log in for.

    \b
    Examples:
      sandpty keys list-ssh
    """
    content = _key_file(_directory(data_dir)).read()
    active = content.active() if content is not None else []
    found = [_identity(record, line) for record in active for line in record.ssh_keys]
    if as_json:
        print_json(found)
        return
    for each in found:
        click.echo(f"{each['fingerprint']}  {each['type']}  {each['key']} ({each['name']})  {each['comment']}".rstrip())


@keys.command("remove-ssh")
@_data_dir
@json_option
@click.argument("fingerprint")
def remove_ssh(data_dir: Path | None, as_json: bool, fingerprint: str) -> None:
    """Refuse a public SSH key from now on. What it has open stays; to cut it, revoke its API key.

    \b
    Examples:
      sandpty keys remove-ssh SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU
    """
    data = _directory(data_dir)
    record, line = _key_file(data).remove_ssh_key(fingerprint)
    _tell_supervisor(data)
    if as_json:
        print_json(_identity(record, line))
        return
    click.echo(f"removed from {record.id} ({record.name})")


def _identity(record: Key, line: str) -> dict[str, str]:
    from sandpty.supervisor import ssh_keys

    return {
        "fingerprint": ssh_keys.fingerprint(line),
        "type": line.split(maxsplit=1)[0],
        "comment": ssh_keys.comment(line),
        "key": record.id,
        "name": record.name,
    }


def _directory(data_dir: Path | None) -> DataDir:
    return DataDir((data_dir or config.default_data_dir()).absolute())


def _key_file(data: DataDir) -> KeyFile:
    from sandpty.supervisor.key_file import KeyFile

    return KeyFile(data)


def _tell_supervisor(data: DataDir) -> bool:
    """Whether one runs, and so knows of the change."""
    from sandpty.cli.supervisor_link import SupervisorLink

    try:
        with SupervisorLink(data.supervisor_socket) as link:
            link.reload_keys()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def _renew_tokens(data: DataDir, team: str) -> int:
    from sandpty.cli.supervisor_link import SupervisorLink

    count = 0
    with SupervisorLink(data.supervisor_socket) as link:
        for sandbox in link.sandboxes():
            if sandbox.owner == team:
                link.annotate(sandbox.id, {**sandbox.annotations, "token": secrets.token_hex(32)})
                count += 1
    return count


def _as_json(key: Key, team: str) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "team": team,
        "team_id": key.team,
        "key": key.shown,
        "created_at": _when(key.created_at),
        "revoked_at": _when(key.revoked_at),
    }


def _when(unix_s: float) -> str | None:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds") if unix_s else None
