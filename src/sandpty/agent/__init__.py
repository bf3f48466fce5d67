"""The compiled agent, PID 1 of every sandbox. Source: agent/*.c; protocol: docs/reference/agent-protocol.md."""

from __future__ import annotations

import platform
from pathlib import Path

_ARCHES = {"amd64": "x86_64", "arm64": "aarch64"}


def agent_binary() -> Path:
    """The agent for this machine's architecture. Raises FileNotFoundError (with the remedy) when it was not built."""
    machine = platform.machine().lower()
    path = Path(__file__).resolve().parent / f"agent-{_ARCHES.get(machine, machine)}"
    if not path.is_file():
        raise FileNotFoundError(f"no agent for {machine}: run `python agent/build.py` in the repository")
    return path
