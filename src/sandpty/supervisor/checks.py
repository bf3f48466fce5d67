"""What is checked before anything is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sandpty import config, disk_room
from sandpty.wire import network_policy, network_rules, verbs
from sandpty.wire.errors import SandptyError
from sandpty.wire.network_policy import NetworkPolicy
from sandpty.wire.templates import Defaults
from sandpty.wire.verbs import Limits, VolumeMount

NAME_BYTES_MAX = 255  # of one name of a path: Linux' own
KEPT_PATHS = ("/proc", "/sys", "/dev", "/run", "/etc", "/usr")  # mounted over by the runtime, read by the agent
KEPT_TREES = ("/proc/", "/sys/", "/dev/", "/run/.sandpty")


def checked_network(internet: bool, policy: NetworkPolicy, *, isolated: bool) -> NetworkPolicy:
    """In normal form. Raises bad_argument for a policy that says nothing one could hold, unsupported where nothing
    holds one."""
    try:
        network_rules.parse(policy.allow_out, policy.deny_out, internet=internet)
        network_rules.name_servers(policy.dns_servers or ())
        policy = network_policy.checked(policy)
    except network_rules.RuleError as error:
        raise SandptyError("bad_argument", str(error)) from error
    says = not internet or policy.deny_out or policy.allow_out or policy.headers or policy.proxy
    if not isolated and says:
        raise SandptyError("unsupported", "the process tier has the host's network: it holds no network policy")
    return policy


def revealed(policy: NetworkPolicy, before: NetworkPolicy) -> NetworkPolicy:
    """With the secrets that it leaves as they are. Raises bad_argument."""
    try:
        return network_policy.revealed(policy, before)
    except network_rules.RuleError as error:
        raise SandptyError("bad_argument", str(error)) from error


def check_annotations(annotations: dict[str, Any]) -> None:
    """Raises too_large."""
    level: list[Any] = [annotations]
    for _ in range(verbs.MAX_ANNOTATIONS_DEPTH):
        level = [below for each in level for below in _members(each)]
    if level:
        raise SandptyError("too_large", f"annotations are over {verbs.MAX_ANNOTATIONS_DEPTH} levels deep")
    if len(msgspec.json.encode(annotations)) > verbs.MAX_ANNOTATIONS_BYTES:
        raise SandptyError("too_large", f"annotations are over {verbs.MAX_ANNOTATIONS_BYTES} bytes")


def _members(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def check_defaults(defaults: Defaults | None) -> None:
    """Raises too_large."""
    if len(msgspec.json.encode(defaults)) > config.TEMPLATE_DEFAULTS_BYTES:
        kib = config.TEMPLATE_DEFAULTS_BYTES >> 10
        raise SandptyError("too_large", f"environment, start and ready command take {kib} KiB at most")


def check_mounts(mounts: Sequence[VolumeMount]) -> None:
    """Raises bad_argument, limit unless every volume has a place of its own, where nothing of ours is."""
    if len(mounts) > config.VOLUME_MOUNTS_MAX:
        raise SandptyError("limit", f"a sandbox mounts {config.VOLUME_MOUNTS_MAX} volumes at most")
    taken: list[str] = []
    for mount in mounts:
        path, shown = mount.path, mount.path[:200]
        parts = path.split("/")[1:]
        if not path.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\0" in path:
            raise SandptyError("bad_argument", f"a mount path is absolute, without `.`, `..` and `//`, not {shown!r}")
        if any(len(part.encode()) > NAME_BYTES_MAX for part in parts) or len(parts) > 32:
            raise SandptyError("bad_argument", f"the mount path {shown!r} is too long or too deep")
        if path in KEPT_PATHS or f"{path}/".startswith(KEPT_TREES):
            raise SandptyError("bad_argument", f"nothing can be mounted at {shown!r}: the sandbox itself needs it")
        for other in taken:
            if f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/"):
                raise SandptyError("bad_argument", f"the mount paths {shown!r} and {other[:200]!r} overlap")
        taken.append(path)


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


def check_tier(sandbox_id: str, made_by: str, here: str) -> None:
    """Raises unsupported for a sandbox whose files only another isolation can run."""
    if made_by != here:
        text = f"sandbox {sandbox_id} is of the isolation `{made_by}`, this server has `{here}`: "
        raise SandptyError("unsupported", f"{text}`sandpty serve --isolation {made_by}` brings it back")


def check_disk(directory: Path, more_bytes: int = 0) -> None:
    """Raises no_space when the little that is left (after `more_bytes` more) belongs to the sandboxes that run."""
    if not disk_room.has_room(directory, more_bytes):
        raise SandptyError("no_space", "the data directory's disk is full")
