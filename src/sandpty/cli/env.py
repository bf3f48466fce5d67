"""`sandpty env`: point the vendors' SDKs, and ours, at this server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from sandpty.cli.connection import find_server, server_options
from sandpty.cli.json_output import json_option, print_json


def variables(url: str, api_key: str) -> dict[str, str | None]:
    """What the SDKs look for; None: to be unset. `url` is the server's address."""
    # Hyperbrowser's Node client makes host names like 3000-<id>.<host>, which an IP address cannot carry.
    named = re.sub(r"//(127\.0\.0\.1|\[::1\])(?=[:/]|$)", "//localhost", url)
    return {
        "E2B_API_KEY": api_key,
        "E2B_API_URL": url,
        "E2B_SANDBOX_URL": url,
        "E2B_VOLUME_API_URL": url,
        "NOVITA_API_KEY": api_key,
        "NOVITA_API_URL": url,
        "NOVITA_SANDBOX_URL": url,
        "HYPERBROWSER_API_KEY": api_key,
        "HYPERBROWSER_BASE_URL": named,
        "SANDPTY_URL": url,
        "SANDPTY_API_KEY": api_key,
        # Left over from elsewhere, these would lead the SDKs past the addresses above.
        **dict.fromkeys(("E2B_DEBUG", "E2B_DOMAIN", "NOVITA_DEBUG", "NOVITA_DOMAIN")),
    }


def exports(url: str, api_key: str) -> list[str]:
    """Lines for a POSIX shell."""
    known = variables(url, api_key)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in known.items() if value is not None]
    return [*lines, "unset " + " ".join(name for name, value in known.items() if value is None)]


@click.command()
@server_options
@json_option
def env(url: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Print what points the vendors' SDKs at this server.

    Lines for a POSIX shell, with the addresses and keys that the E2B, Novita and Hyperbrowser SDKs look for, and ours.
    Works whether the server runs or not, as soon as it has once (the key is made at its first start).

    \b
    Examples:
      eval "$(sandpty env)"                       then run any program that uses one of the SDKs
      eval "$(sandpty env --url http://host:80)"  through another address, with the key of this machine
    """
    # An explicit address or directory is asked for; SANDPTY_URL from an earlier eval must not answer for a new server.
    server = find_server(url, data_dir)
    if as_json:
        print_json(variables(server.url, server.api_key))
        return
    for line in exports(server.url, server.api_key):
        click.echo(line)
