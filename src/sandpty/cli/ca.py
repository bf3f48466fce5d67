"""`sandpty ca`: the local certificate authority, and what makes this machine trust it."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from sandpty import config
from sandpty.cli.json_output import json_option, print_json
from sandpty.config import DataDir
from sandpty.wire.errors import SandptyError

_SYSTEM_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


@click.command()
@click.option("--domain", metavar="NAME", help="Make one for this domain, if there is none yet.")
@click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    help="The server's. [default: as root /var/lib/sandpty]",
)
@json_option
def ca(*, domain: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Print the command that makes this machine trust the local certificate authority.

    `sandpty serve --domain NAME --tls-port PORT` without a certificate of yours makes such an authority. It can vouch
    for names below NAME and for this machine's loopback only, whoever gets hold of its key.

    \b
    Examples:
      sandpty ca                               the authorities that there are
      sandpty ca --domain sandpty.localhost    make one before the server does
    """
    from sandpty.certificates import store

    data = DataDir((data_dir or config.default_data_dir()).absolute())
    if domain is not None:
        data.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        domain = store.checked_domain(domain)
        store.issue(data, domain)
    domains = [domain] if domain else store.authorities(data)
    if not domains:
        raise SandptyError("no_such_authority", "there is no local certificate authority")
    if as_json:
        print_json([_as_json(data, each) for each in domains])
        return
    for each in domains:
        _tell(data, each)


def _as_json(data: DataDir, domain: str) -> dict[str, Path | str | None]:
    from sandpty.certificates import store

    certificate = store.authority_dir(data, domain) / "ca.pem"
    return {"domain": domain, "certificate": certificate, "bundle": _bundle(certificate)}


def _tell(data: DataDir, domain: str) -> None:
    from sandpty.certificates import store

    certificate = store.authority_dir(data, domain) / "ca.pem"
    bundle = _bundle(certificate)
    target = f"/usr/local/share/ca-certificates/sandpty-{domain}.crt"
    click.echo(f"# The authority of {domain} and the names below it: {certificate}")
    click.echo("# Trust it on this machine (Debian, Ubuntu):")
    click.echo(f"sudo install -m 644 {shlex.quote(str(certificate))} {target} && sudo update-ca-certificates")
    click.echo("# Or in one shell, for programs that bring their own authorities (Python, Node):")
    quoted = shlex.quote(str(bundle or certificate))
    click.echo(
        f"export SSL_CERT_FILE={quoted} REQUESTS_CA_BUNDLE={quoted} NODE_EXTRA_CA_CERTS={shlex.quote(str(certificate))}"
    )


def _bundle(certificate: Path) -> Path | None:
    """The system's authorities and ours in one file, for variables that name the only file to look at."""
    from sandpty.certificates import store

    bundle = certificate.with_name("bundle.pem")
    for system in map(Path, _SYSTEM_BUNDLES):
        try:
            content = system.read_bytes() + b"\n" + certificate.read_bytes()
            if not bundle.exists() or bundle.read_bytes() != content:
                store.write(bundle, content, 0o644)
        except OSError:
            continue
        return bundle
    return None
