"""`sandpty serve`: start the supervisor if none runs, give up root, listen, serve."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandpty import config
from sandpty.cli.json_output import json_option
from sandpty.config import DataDir
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from sandpty.cli.starting import Plan

ISOLATION = ("auto", "crun", "runc", "runsc", "process")


def default_templates_dir() -> Path:
    """SANDPTY_TEMPLATES_DIR, else one directory for all data directories of this account."""
    if configured := os.environ.get("SANDPTY_TEMPLATES_DIR"):
        return Path(configured)
    if os.geteuid() == 0:
        return Path("/var/lib/sandpty/templates")
    return Path.home() / ".local" / "share" / "sandpty" / "templates"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@click.command()
@click.option("--host", metavar="ADDRESS", default=config.DEFAULT_HOST, show_default=True, help="Where to listen.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=config.DEFAULT_PORT,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    help="State, key, sockets. [default: as root /var/lib/sandpty]",
)
@click.option(
    "--isolation",
    type=click.Choice(ISOLATION),
    default="auto",
    show_default=True,
    help="What is between a guest and this machine. auto is crun, else runc. process is nothing.",
)
@click.option(
    "--pool",
    type=click.IntRange(0, config.SANDBOXES_MAX),
    metavar="N",
    default=config.POOL_SIZE,
    show_default=True,
    help="Warm sandboxes kept ready.",
)
@click.option(
    "--templates-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    help="Where templates are kept. [default: as root /var/lib/sandpty/templates]",
)
@click.option("--domain", metavar="HOST[:PORT]", help="Sandboxes' ports are at PORT-ID.HOST; clients are told so.")
@click.option(
    "--tls-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Serve TLS there too, for --domain and names below it. Without --tls-cert by a local authority.",
)
@click.option(
    "--tls-cert",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A certificate for *.HOST, with what leads to its root, in PEM. Read again when it is renewed.",
)
@click.option("--tls-key", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Its key, in PEM.")
@click.option(
    "--ssh-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Serve SSH there too: ssh ID@host. [default: no SSH]",
)
@click.option(
    "--ssh-host", metavar="ADDRESS", default=config.DEFAULT_HOST, show_default=True, help="Where to listen for SSH."
)
@click.option(
    "--ssh-agents/--no-ssh-agents",
    default=True,
    show_default=True,
    help="Whether sandboxes may use the agents of ssh clients that offer them (ssh -A).",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="How much the server says on stderr.",
)
@json_option
def serve(
    *,
    host: str,
    port: int,
    data_dir: Path | None,
    isolation: str,
    pool: int,
    templates_dir: Path | None,
    domain: str | None,
    tls_port: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    ssh_port: int | None,
    ssh_host: str,
    ssh_agents: bool,
    log_level: str,
    as_json: bool,
) -> None:
    """Run the server. As root it starts the supervisor, then gives up root before it listens.

    Ctrl-C stops the server only: sandboxes and their terminals live on until their deadlines, and the next
    `sandpty serve` with the same data directory finds them again. `sandpty down` ends everything.

    \b
    Examples:
      sandpty serve                             http://127.0.0.1:3980, isolation by crun
      sandpty serve --port 0 --data-dir /tmp/x  a second, separate server on a free port
      sandpty serve --domain sandpty.localhost --tls-port 8443
                                                https://PORT-ID.sandpty.localhost:8443; `sandpty ca` makes it trusted
      sandpty serve --ssh-port 2222             ssh -p 2222 ID@127.0.0.1; `sandpty ssh ID` needs no more
      sandpty serve --isolation process         without root: NO isolation, loopback only
    """
    for address in (host, ssh_host):
        _check_tier(isolation, address)
    from sandpty.cli import starting
    from sandpty.cli.serving_tls import TlsOptions

    plan: Plan = starting.Plan(
        data=DataDir((data_dir or config.default_data_dir()).absolute()),
        given_data_dir=data_dir is not None,
        host=host,
        port=port,
        isolation=isolation,
        pool=pool,
        templates_dir=(templates_dir or default_templates_dir()).absolute(),
        domain=domain,
        tls=TlsOptions.of(tls_port, tls_cert, tls_key, domain),
        ssh=None if ssh_port is None else (ssh_host, ssh_port),
        ssh_agents=ssh_agents,
        log_level=log_level,
        as_json=as_json,
    )
    starting.run(plan)


def _check_tier(isolation: str, host: str) -> None:
    if isolation == "process":
        if not is_loopback(host):
            message = f"--isolation process isolates nothing, so it serves on loopback only, not on {host}"
            raise SandptyError("bad_argument", message)
        return
    if os.geteuid() != 0:
        asked = "isolated sandboxes need" if isolation == "auto" else f"--isolation {isolation} needs"
        message = (
            f"{asked} root to set up namespaces and limits; without root the only tier to offer here is"
            " `--isolation process`, which isolates nothing and must be asked for by name"
        )
        raise SandptyError("forbidden", message)
