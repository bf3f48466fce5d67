"""What the supervisor keeps of a sandbox on disk: `meta.json`, replaced in such a way that a SIGKILL tears nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import string
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from sandpty.isolation.driver import Copy, Layer, Mount, Plan, Started
from sandpty.wire.network_policy import NetworkPolicy, hidden
from sandpty.wire.templates import Defaults
from sandpty.wire.verbs import Limits, Sandbox, VolumeMount

T = TypeVar("T")
META_NAME = "meta.json"
NEW_NAME = META_NAME + ".new"
ID_LENGTH = 20
_ID_LETTERS = string.ascii_lowercase + string.digits

# creating: not yet answered for, removed at the next start; warm: waits in the pool; stopped: paused, only files left
Phase = Literal["creating", "warm", "running", "frozen", "stopped"]


def new_id() -> str:
    """Of a sandbox: an `i` before what others have. The shape E2B's clients accept."""
    return f"i{new_record_id()}"


def new_record_id() -> str:
    """Of a snapshot, a volume or a template: 20 characters of [a-z0-9], as E2B's of a template."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(ID_LENGTH))


class KeptLayer(msgspec.Struct, frozen=True):
    source: str
    target: str
    hidden: tuple[str, ...] = ()
    below: tuple[str, ...] = ()

    def layer(self) -> Layer:
        return Layer(Path(self.source), self.target, self.hidden, tuple(map(Path, self.below)))


class KeptCopy(msgspec.Struct, frozen=True):
    directory: str
    ids_base: int
    sandbox_id: str

    def copy(self) -> Copy:
        return Copy(Path(self.directory), self.ids_base, self.sandbox_id)


class KeptMount(msgspec.Struct, frozen=True):
    volume: str
    name: str
    directory: str
    path: str
    read_only: bool

    def mount(self) -> Mount:
        return Mount(Path(self.directory), self.path, self.read_only)

    def shown(self) -> VolumeMount:
        return VolumeMount(volume=self.volume, name=self.name, path=self.path, read_only=self.read_only)


class Meta(msgspec.Struct, kw_only=True):
    """One sandbox. Times are unix seconds; start_time is in clock ticks since the host's boot."""

    id: str
    template: str
    layers: tuple[KeptLayer, ...]
    slot: int
    phase: Phase
    tier: str
    limits: Limits
    boot_id: str
    host_boot_id: str
    socket: str
    pid: int = 0
    start_time: int = 0
    started_at: float = 0.0
    end_at: float = 0.0
    on_timeout: Literal["kill", "pause", "pause_disk"] = "kill"
    internet: bool = True
    network: NetworkPolicy = NetworkPolicy()
    owner: str = ""
    annotations: dict[str, Any] = {}
    copies: tuple[KeptCopy, ...] = ()
    defaults: Defaults = Defaults()
    mounts: tuple[KeptMount, ...] = ()
    files_root: str = ""
    seen_ready: bool = False
    revision: int = 0

    def plan(self, directory: Path) -> Plan:
        """What the driver needs to know."""
        layers = tuple(layer.layer() for layer in self.layers)
        copies = tuple(copy.copy() for copy in self.copies)
        mounts = tuple(mount.mount() for mount in self.mounts)
        return Plan(
            self.id,
            directory,
            layers,
            self.slot,
            self.limits,
            self.internet,
            self.boot_id,
            copies,
            self.network,
            mounts,
            self.files_root,
            self.owner,
        )

    @property
    def started(self) -> Started:
        return Started(self.pid, self.start_time)

    def sandbox(self, **changed: Any) -> Sandbox:
        """What the server is told."""
        paused = self.phase in ("frozen", "stopped")
        fields: dict[str, Any] = {
            "id": self.id,
            "template": self.template,
            "state": "paused" if paused else "running",
            "tier": self.tier,
            "started_at": self.started_at,
            "end_at": self.end_at,
            "on_timeout": self.on_timeout,
            "limits": self.limits,
            "internet": self.internet,
            "network": hidden(self.network),
            "owner": self.owner,
            "annotations": self.annotations,
            "socket": self.socket,
            "boot_id": self.boot_id,
            "pid": self.pid,
            "defaults": self.defaults,
            "revision": self.revision,
            "paused_memory": self.phase != "stopped",
            "seen_ready": self.seen_ready,
            "volumes": tuple(mount.shown() for mount in self.mounts),
        }
        return Sandbox(**{**fields, **changed})


def kept_layers(layers: tuple[Layer, ...]) -> tuple[KeptLayer, ...]:
    return tuple(
        KeptLayer(str(layer.source), layer.target, layer.hidden, tuple(map(str, layer.below))) for layer in layers
    )


def kept_copies(copies: tuple[Copy, ...]) -> tuple[KeptCopy, ...]:
    return tuple(KeptCopy(str(copy.directory), copy.ids_base, copy.sandbox_id) for copy in copies)


def write(directory: Path, meta: Meta, *, durable: bool = False) -> None:
    """Replace the sandbox's meta.json. `durable`: on the disk when this returns (it must survive a power cut).

    ext4 begins to write out a file that is renamed over another: 0.2 ms of each create. So the old one goes first,
    unless this is to be durable; who is killed between the two leaves the new one complete, and `read` finds it.
    """
    temporary = directory / NEW_NAME
    body = msgspec.json.encode(meta)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, body) < len(body):  # what is left of a disk takes a part, and says nothing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    if not durable:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(directory / META_NAME)
    os.replace(temporary, directory / META_NAME)
    if durable:
        _sync_names(directory)


def write_durably(place: Path, record: msgspec.Struct) -> None:
    """Replace a record; on the disk when this returns, whole or not at all."""
    new = place.with_suffix(".new")
    with open(new, "wb") as file:
        file.write(msgspec.json.encode(record))
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, place)
    _sync_names(place.parent)


def _sync_names(directory: Path) -> None:
    """A file that is on the disk is of no use before its name is."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read(directory: Path) -> Meta | None:
    """The sandbox kept in `directory`; None when there is no whole meta.json (it was half made).

    Raises OSError, also for what another version may have written: no crash of ours makes that.
    """
    for name in (META_NAME, NEW_NAME):
        try:
            return msgspec.json.decode((directory / name).read_bytes(), type=Meta)
        except (msgspec.ValidationError, RecursionError) as error:
            raise OSError(errno.EIO, f"it is not what this version writes: {error}") from error
        except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
            continue
    return None


def read_lasting(place: Path, kind: type[T]) -> T | None:
    """What `write_durably` wrote; None when nothing was: it was half made. Raises OSError for what cannot be read."""
    try:
        return msgspec.json.decode(place.read_bytes(), type=kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.MsgspecError as error:  # no crash of ours makes that
        raise OSError(errno.EIO, f"it is not what was written: {error}") from error


def host_boot_id() -> str:
    """Changes when the machine is restarted: pids of before mean nothing then."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
