"""`sandpty doctor`: what isolation holds on this machine, what is missing, how to get it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandpty import config
from sandpty.cli.json_output import json_option, print_json
from sandpty.config import DataDir

if TYPE_CHECKING:
    from sandpty.cli.examination import Finding

MISSING_EXIT_STATUS = 1
_MARKS = {"ok": ("ok", "green"), "note": ("--", "yellow"), "missing": ("NO", "red")}


@click.command(short_help="Say what isolation holds here, and what is missing.")
@click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, readable=False),
    help="The data directory to look at. [default: as root /var/lib/sandpty]",
)
@json_option
def doctor(data_dir: Path | None, as_json: bool) -> None:
    """Say what isolation holds on this machine, what is missing, and how to get it.

    Asks the supervisor when one runs, else tries a sandbox itself (as root). Each line is ok, a note (--), or something
    that is missing (NO) with the command that gets it. The exit status is 1 when isolated sandboxes cannot run here.

    \b
    Examples:
      sandpty doctor
      sandpty doctor --json | python3 -m json.tool
    """
    from sandpty.cli.examination import examine

    findings = examine(DataDir((data_dir or config.default_data_dir()).absolute()))
    if as_json:
        print_json(findings)
    else:
        _print(findings)
    if any(finding.state == "missing" for finding in findings):
        raise SystemExit(MISSING_EXIT_STATUS)


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark, colour = _MARKS[finding.state]
        click.echo(f"{click.style(mark, fg=colour)}  {finding.name.ljust(width)}  {finding.value}")
        if finding.remedy:
            click.echo(f"    {'':{width}}  -> {finding.remedy}")
