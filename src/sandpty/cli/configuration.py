"""`sandpty config`: which server and key are used and why; named servers in a file of the user's."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from sandpty.cli import settings_file
from sandpty.cli.connection import checked_url, resolve, server_options
from sandpty.cli.json_output import json_option, print_json
from sandpty.cli.settings_file import DEFAULT_NAME, NamedServer
from sandpty.wire.errors import SandptyError

_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
KEY_BYTES_MOST = 4096
_SHOWN = 8  # characters of a key that are enough to know it by

_setting = click.argument("setting", type=click.Choice(["url", "key"]))


def complete_servers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names in the file."""
    try:
        servers = settings_file.read().servers
    except SandptyError:
        return []
    return [CompletionItem(name, help=each.url) for name, each in servers.items() if name.startswith(incomplete)]


_of_server = click.option(
    "--name",
    metavar="NAME",
    shell_complete=complete_servers,
    help="Of this named server. [default: the one that is used, or `default`]",
)


@click.group(invoke_without_command=True)
@server_options
@json_option
@click.pass_context
def config(context: click.Context, url: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Show and keep which server and key commands use.

    Without a subcommand: the address and the key that a command here would use now, and where each comes from. Settings
    are kept in a file of your own (mode 0600) as named servers; one of them is the one that is used. What is said on
    the command line or in the environment goes before the file.

    \b
    Examples:
      sandpty config
      sandpty config set url https://sandboxes.example.com
      sandpty config set key < key.txt
      sandpty config set url http://127.0.0.1:3980 --name local
      sandpty config use local
    """
    if context.invoked_subcommand is not None:
        return
    found = resolve(url, data_dir)
    rows = [
        ("server", found.name or "", "the file" if found.name else "no named one"),
        ("url", found.url.value, found.url.source),
        ("key", _masked(found.key.value), found.key.source) if found.key else ("key", "", str(found.missing_key)),
        ("file", str(settings_file.path()), "" if settings_file.path().exists() else "not there yet"),
    ]
    if as_json:
        print_json({name: {"value": value or None, "source": source} for name, value, source in rows})
        return
    width = max(len(value) for _, value, _ in rows)
    for name, value, source in rows:
        click.echo(f"{name:6}  {value:{width}}  {source}".rstrip())


def _masked(key: str) -> str:
    return key[:_SHOWN] + "…" if len(key) > 2 * _SHOWN else "…"


@config.command("get")
@_setting
@_of_server
def get(setting: str, name: str | None) -> None:
    """Print what the file has for a setting, the key in full.

    \b
    Examples:
      sandpty config get url
      sandpty config get key --name local
    """
    settings = settings_file.read()
    name = name or settings.used or DEFAULT_NAME
    value = getattr(settings.server(name), setting)
    if value is None:
        raise SandptyError("bad_argument", f"{setting} of {name} is not set")
    click.echo(value)


@config.command("set")
@_setting
@click.argument("value", required=False)
@_of_server
def set_(setting: str, value: str | None, name: str | None) -> None:
    """Keep the address or the key of a server.

    A key without VALUE is read from stdin, so that no history of a shell has it. The first server that is set is the
    one that is used from then on.

    \b
    Examples:
      sandpty config set url https://sandboxes.example.com
      sandpty config set key < key.txt
    """
    settings = settings_file.read()
    name = name or settings.used or DEFAULT_NAME
    if not _NAME.fullmatch(name):
        raise SandptyError("bad_argument", f"{name!r} is no name: letters, digits, . _ - only")
    if value is None:
        if setting == "url":
            raise click.UsageError("an address is missing", click.get_current_context())
        value = _typed_key()
    if setting == "key" and not (value.isascii() and value.isprintable() and value and " " not in value):
        raise SandptyError("bad_argument", "that is no API key: it has characters that no header can carry")
    value = checked_url(value) if setting == "url" else value
    before = settings.servers.get(name, NamedServer())
    if setting == "url" and before.key and before.url not in (None, value):
        # A key is for the server it was set for: another address must not get it by accident.
        click.echo(f"the key of {name} was for {before.url} and is forgotten; set it anew", err=True)
        before = NamedServer()
    settings_file.write(settings.with_server(name, replace(before, **{setting: value})))


def _typed_key() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("API key", hide_input=True, err=True)).strip()
    return sys.stdin.read(KEY_BYTES_MOST).strip()


@config.command("unset")
@_setting
@_of_server
def unset(setting: str, name: str | None) -> None:
    """Forget the address or the key of a server.

    \b
    Examples:
      sandpty config unset key
    """
    settings = settings_file.read()
    name = name or settings.used or DEFAULT_NAME
    left = replace(settings.server(name), **{setting: None})
    empty = left.url is None and left.key is None
    settings_file.write(settings.without_server(name) if empty else settings.with_server(name, left))


@config.command("servers")
@json_option
def servers(as_json: bool) -> None:
    """List the named servers; a star marks the one that is used.

    \b
    Examples:
      sandpty config servers
    """
    settings = settings_file.read()
    rows = [(name, each.url, each.key, name == settings.used) for name, each in sorted(settings.servers.items())]
    if as_json:
        shown = [{"name": name, "url": url, "has_key": bool(key), "used": used} for name, url, key, used in rows]
        print_json(shown)
        return
    if not rows:
        click.echo("no named servers (sandpty config set url makes one)", err=True)
    for name, url, key, used in rows:
        click.echo(f"{'*' if used else ' '} {name}  {url or 'no address'}  {_masked(key) if key else 'no key'}")


@config.command("use")
@click.argument("name", required=False, shell_complete=complete_servers)
@click.option("--none", is_flag=True, help="None of them: the server that runs here.")
def use(name: str | None, none: bool) -> None:
    """Choose the named server that commands use.

    \b
    Examples:
      sandpty config use local
      sandpty config use --none
    """
    if none == (name is not None):
        raise click.UsageError("say a name, or --none", click.get_current_context())
    settings = settings_file.read()
    if name is not None:
        settings.server(name)
    settings_file.write(replace(settings, used=name))


@config.command("remove")
@click.argument("name", shell_complete=complete_servers)
def remove(name: str) -> None:
    """Forget a named server with its key.

    \b
    Examples:
      sandpty config remove local
    """
    settings_file.write(settings_file.read().without_server(name))
