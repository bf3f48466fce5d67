"""`sandpty doctor`: a stand-in until the report is there."""

from __future__ import annotations

import click


@click.command()
def doctor() -> None:
    """Say what isolation holds on this machine, and what is missing."""
