"""From the name of an isolation to its driver."""

from __future__ import annotations

import os
from pathlib import Path

from sandpty.config import DataDir
from sandpty.isolation.background import Background
from sandpty.isolation.driver import Driver, TierRefusedError
from sandpty.isolation.oci import OciDriver
from sandpty.isolation.process import ProcessDriver
from sandpty.isolation.runtimes import find_runtime


def choose(name: str, data: DataDir, agent: Path, background: Background) -> Driver:
    """The driver for `name`; `auto` is crun, else runc. Raises TierRefusedError; never falls back to no isolation."""
    if name == "process":
        return ProcessDriver(agent)
    if os.geteuid() != 0:
        raise TierRefusedError(
            f"isolation `{name}` needs root; without root only `--isolation process` (no isolation) can be offered"
        )
    if name == "runsc":
        raise TierRefusedError("isolation `runsc` is not offered yet: its guests cannot serve on a socket of the host")
    return OciDriver(find_runtime(name), data, agent, background)
