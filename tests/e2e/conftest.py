"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cli_fixture import Cli
from tests.e2e.tmux import Tmux, tmux
from tests.server_fixture import RunningServer, running_server


@pytest.fixture(scope="session")
def ssh_server() -> Iterator[RunningServer]:
    """A server with an SSH gateway; tests may kill it and start it again."""
    with running_server("--ssh-port", "0", "--pool", "1") as running:
        yield running


@pytest.fixture
def cli(server: RunningServer, tmp_path: Path) -> Cli:
    """The command line, against the session's server."""
    return Cli(server, tmp_path)


@pytest.fixture
def box(cli: Cli) -> Iterator[str]:
    """The ID of a sandbox made with the command line."""
    with cli.sandbox() as made:
        yield made


@pytest.fixture
def person(cli: Cli) -> Iterator[Tmux]:
    """Somebody at a local terminal of 80 x 24 who can call the command line."""
    with tmux(env=cli.env) as somebody:
        yield somebody
