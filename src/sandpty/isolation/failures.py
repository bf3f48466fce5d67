"""Errors of the host as what a client may be told: no path of the host is in it, the log has all of it."""

from __future__ import annotations

import errno
import logging

from sandpty.wire.errors import SandptyError

log = logging.getLogger(__name__)


def failure(what: str, error: Exception) -> SandptyError:
    """no_space for a full disk, runtime_failed for everything else."""
    log.warning("%s: %s", what, error)
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return SandptyError("no_space", "the data directory's disk is full")
    return SandptyError("runtime_failed", f"{what}: {told(error)}")


def told(error: Exception) -> str:
    """What it says, without the file that it names."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else type(error).__name__
