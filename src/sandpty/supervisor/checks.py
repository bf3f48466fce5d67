"""What is checked before anything is made, and how a full disk is told."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import msgspec

from sandpty import config
from sandpty.wire import network_rules, verbs
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Limits, NetworkPolicy


def check_network(internet: bool, policy: NetworkPolicy, *, isolated: bool) -> None:
    """Raises bad_argument for a policy that says nothing one could hold, unsupported where nothing holds one."""
    try:
        network_rules.parse(policy.allow_out, policy.deny_out, internet=internet)
        network_rules.name_servers(policy.dns_servers or ())
    except network_rules.RuleError as error:
        raise SandptyError("bad_argument", str(error)) from error
    if not isolated and (not internet or policy.deny_out or policy.allow_out):
        raise SandptyError("unsupported", "the process tier has the host's network: it holds no network policy")


def check_annotations(annotations: dict[str, Any]) -> None:
    """Raises too_large."""
    if len(msgspec.json.encode(annotations)) > verbs.MAX_ANNOTATIONS_BYTES:
        raise SandptyError("too_large", f"annotations are over {verbs.MAX_ANNOTATIONS_BYTES} bytes")


def check_limits(limits: Limits) -> None:
    """Raises bad_argument unless the limits make a sandbox that can run."""
    for name, value, low, high in (
        ("cpu_count", limits.cpu_count, 0.05, 1024),
        ("memory_mb", limits.memory_mb, 16, 1024 * 1024),
        ("disk_mb", limits.disk_mb, 16, 16 * 1024 * 1024),
        ("pids", limits.pids, 8, 4_000_000),
    ):
        if not low <= value <= high:  # false for NaN too
            raise SandptyError("bad_argument", f"{name}={value} is not between {low} and {high}")


def check_disk(directory: Path, more_bytes: int = 0) -> None:
    """Raises no_space when the little that is left (after `more_bytes` more) belongs to the sandboxes that run."""
    disk = os.statvfs(directory)
    if disk.f_bavail * disk.f_frsize - more_bytes < config.DISK_FREE_MIN_BYTES:
        raise SandptyError("no_space", "the data directory's disk is full")


def disk_error(error: OSError) -> SandptyError:
    """An OSError while a sandbox was made, as what the server is told."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SandptyError("no_space", "the data directory's disk is full")
    return SandptyError("runtime_failed", f"the sandbox could not be made: {error.strerror or error}")
