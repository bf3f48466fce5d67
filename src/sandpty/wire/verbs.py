"""What the server may ask of the supervisor, and how it is said.

One unix stream socket, 0600; each message is a `u32` little-endian length (at most MAX_MESSAGE_BYTES) and a JSON
object. Requests carry an `id`, answers the same `id`; answers may come in any order. Messages with `event` instead of
`id` come unasked after the verb `watch`. The list of verbs is fixed: none runs a command of the caller's choice.

| verb | args | answer |
|---|---|---|
| hello | - | Host |
| create | CreateArgs | Sandbox |
| list | {"after"?: id} | SandboxList: running and paused, in the order of their ids, those behind `after` |
| kill | {"id", "reason"?} | {} once it is gone |
| pause | {"id", "memory": bool} | Sandbox |
| resume | {"id", "end_at", "memory"?} | Sandbox; without memory it starts again from its files |
| set_deadline | {"id", "end_at"} | Sandbox |
| snapshot | SnapshotArgs | Snapshot: the sandbox's files, kept; it stands still meanwhile |
| layer | {"owner", "key"} | Snapshot: the layer that was made under that key |
| snapshots | {"owner"?} | {"snapshots": [Snapshot]}; of all without an owner |
| delete_snapshot | {"id"} | {}; sandboxes that stand on it go on |
| create_volume | CreateVolumeArgs | Volume |
| volumes | {"owner"?} | {"volumes": [Volume]}; of all without an owner |
| grow_volume | {"id", "disk_mb"} | Volume, larger than it was; nothing mounts it meanwhile |
| delete_volume | {"id"} | {}; volume_in_use while a sandbox, running or paused, mounts it |
| open_volume | {"id"} | OpenVolume: its files without a sandbox, for a while; asked again, for a while longer |
| annotate | {"id", "annotations"} | Sandbox |
| network | {"id", "internet", "policy": NetworkPolicy} | Sandbox; the rules hold, also for connections that exist |
| watch | - | {}; then events {"event": "changed"|"ended", "sandbox": Sandbox, "reason": str} |
| templates, template, save_template, delete_template | | templates.py beside this module |
| import_image, cancel_import, images | | images.py beside this module |
| keys | - | Keys; after `reload_keys` also as event {"event": "keys", "keys": [KeyHash]} |
| set_memory | {"id", "memory_mb"} | Sandbox |
| usage | {"ids"} | Usages, of those that run |
| history | HistoryArgs | History |
| ended | - | {"ended": [EndedSandbox]}: the newest that have ended, oldest first |
| reload_keys | - | Keys, read again from keys.json |
| egress_authority | - | EgressAuthority |
| certificate | - | Certificate, as `sandpty serve` was asked to use |
| shutdown | {"kill": bool} | {}; with kill every sandbox is ended first |

msgspec is used here, in `templates` and in `images`, and nowhere else in `wire`: the SDK never imports them.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Annotated, Any, Literal

import msgspec

from sandpty.wire.first_shell import FirstShell
from sandpty.wire.images import ImportProgress
from sandpty.wire.network_policy import EgressProxy, NetworkPolicy
from sandpty.wire.templates import Defaults, Files

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_ANNOTATIONS_BYTES = 256 * 1024
MAX_ANNOTATIONS_DEPTH = 32  # of lists and objects in each other: what can be read once can be read everywhere
MAX_WORD_CHARACTERS = 1024  # names and keys that the supervisor keeps and never looks into
Word = Annotated[str, msgspec.Meta(max_length=MAX_WORD_CHARACTERS)]
FORGOTTEN_ANNOTATIONS = ("env", "token", "idempotency")  # those that do not outlive their sandbox
SUPERVISOR_PROTOCOL_VERSION = 1
EGRESS_PROTOCOL_VERSION = 2  # between supervisor and egress process, which outlives it
_LENGTH = struct.Struct("<I")

State = Literal["running", "paused"]
EndReason = Literal["killed", "timeout", "agent_exited", "out_of_memory", "host_restart", "failed", "shutdown"]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a sandbox may use. disk_mb bounds what it writes."""

    cpu_count: float = 2.0
    memory_mb: int = 1024
    disk_mb: int = 10240
    pids: int = 1024


class VolumeMount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A volume (by id) at an absolute path of a sandbox. `name`: the volume's, as the supervisor says it."""

    volume: str
    path: str
    read_only: bool = False
    name: str = ""


class CreateArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`template` is a name or an id; `annotations` is kept and given back, never looked into.

    `first_shell`: whose usual shell is likely to be asked for first; a new sandbox starts it in advance. `files` and
    `defaults`: instead of the template's, for builds.
    `volumes`: mounted in it from the start. One from a snapshot also mounts what the snapshot's sandbox did.
    """

    template: Word
    files: Files | None = None
    defaults: Defaults | None = None
    snapshot: str = ""  # the id of one to start from; `template` is then only what the sandbox says of itself
    end_at: float  # unix seconds
    on_timeout: Literal["kill", "pause", "pause_disk"] = "kill"
    limits: Limits | None = None
    internet: bool = True
    network: NetworkPolicy = NetworkPolicy()
    network_of: str = ""  # the id of a sandbox: what `network` hides is as there
    owner: Word = ""
    annotations: dict[str, Any] = {}
    first_shell: FirstShell | None = None
    volumes: tuple[VolumeMount, ...] = ()


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox as the supervisor knows it. `socket` is the agent's unix socket on the host."""

    id: str  # ^i[a-z0-9]{20}$
    template: str  # the template's id (its name, for now)
    state: State
    tier: str
    started_at: float
    end_at: float
    on_timeout: Literal["kill", "pause", "pause_disk"]
    limits: Limits
    internet: bool
    owner: str
    annotations: dict[str, Any]
    socket: str
    boot_id: str
    network: NetworkPolicy = NetworkPolicy()
    pid: int = 0  # host pid of the agent, 0 while stopped
    defaults: Defaults = Defaults()
    paused_memory: bool = True  # paused: processes are frozen (True) or gone (False)
    ended: EndReason | None = None
    revision: int = 0  # grows with every change: an answer may arrive after the word of what happened since
    volumes: tuple[VolumeMount, ...] = ()
    seen_ready: bool = False  # it waited for who wants it until its ready command ended with 0


class SandboxList(msgspec.Struct, frozen=True):
    """As many as one answer holds. `more`: there are others behind the last one."""

    sandboxes: list[Sandbox]
    more: bool = False


class EndedSandbox(msgspec.Struct, frozen=True, kw_only=True):
    """As it was last, without what ends with it, and when it ended (unix seconds)."""

    sandbox: Sandbox
    at: float


class SnapshotArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`id`: of the sandbox. A name moves from an older snapshot of the same owner. `temporary`: for a fork, not listed,
    gone after a while. `layer`: for a build, under this key; not listed, and the sandbox ends with it."""

    id: str
    name: Word = ""
    temporary: bool = False
    layer: Word = ""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox's files at one moment. `template`: what the sandbox was made from."""

    id: str  # ^[a-z0-9]{20}$
    name: str
    owner: str
    sandbox_id: str
    template: str
    limits: Limits
    created_at: float
    size_bytes: int


class CreateVolumeArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`name` is the owner's only one of that name. `disk_mb` bounds what the volume holds; 0: the default."""

    name: Word
    owner: Word
    disk_mb: int = 0


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A directory that outlives sandboxes. size_bytes: what it takes on the disk; mounted_by: sandboxes' ids."""

    id: str  # ^[a-z0-9]{20}$
    name: str
    owner: str
    created_at: float
    disk_mb: int
    size_bytes: int
    mounted_by: tuple[str, ...] = ()


class OpenVolume(msgspec.Struct, frozen=True, kw_only=True):
    """`socket`: of an agent whose files connections see the volume as `/`, and nothing else."""

    socket: str


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox uses at a moment (`at`, unix seconds). cpu_s: since its start; cache_bytes: of memory_bytes."""

    at: float
    cpu_s: float
    memory_bytes: int
    cache_bytes: int
    disk_bytes: int
    processes: int


class Usages(msgspec.Struct, frozen=True, kw_only=True):
    usage: dict[str, Usage]


HistoryKind = Literal["created", "paused", "resumed", "ended"]


class HistoryArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one owner, and of one sandbox unless it is empty; `since` and `until` (0: now) are unix seconds, inclusive."""

    owner: str
    sandbox: str = ""
    since: float = 0.0
    until: float = 0.0
    limit: int = 1000


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Something that became of a sandbox. `reason`: why it ended, how it was paused."""

    id: str
    at: float
    kind: HistoryKind
    reason: str
    sandbox: str
    owner: str
    template: str


class History(msgspec.Struct, frozen=True, kw_only=True):
    entries: list[HistoryEntry]


class KeyHash(msgspec.Struct, frozen=True, kw_only=True):
    """An API key as the server knows it: `hash` is what `key_hash` makes of it; `team` is the team's id.

    `ssh_keys`: public keys that may log in for it, each `TYPE BASE64`.
    """

    id: str
    name: str
    team: str
    team_name: str
    hash: str
    ssh_keys: tuple[str, ...] = ()


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """The keys that count; None when this data directory has no list of keys yet."""

    keys: list[KeyHash] | None = None


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What holds here: the isolation tier in force, what its probe found, versions."""

    version: int
    tier: str
    isolated: bool
    runtime: str
    facts: dict[str, str]
    pid: int


class Certificate(msgspec.Struct, frozen=True):
    """In PEM: the certificate with those that lead to its root, and its key."""

    chain: str
    key: str


class Request(msgspec.Struct, frozen=True):
    id: int
    verb: str
    args: msgspec.Raw = msgspec.Raw(b"{}")


class Failure(msgspec.Struct, frozen=True):
    reason: str
    message: str


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """From the supervisor: an answer (`id` with `ok` or `error`) or an event."""

    id: int | None = None
    ok: msgspec.Raw = msgspec.Raw(b"{}")  # not `| None`: msgspec does not decode a union with Raw
    error: Failure | None = None
    event: str | None = None
    sandbox: Sandbox | None = None
    reason: str = ""
    keys: list[KeyHash] | None = None
    progress: ImportProgress | None = None


def key_hash(key: str) -> str:
    """SHA-256 in hex: a key holds 160 random bits, so nothing slower is needed against guessing."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def first_team(key: str) -> str:
    """The id of the team that owns what was made with the first key, also before there were teams."""
    return key_hash(key)[:16]


class EgressAuthority(msgspec.Struct, frozen=True, kw_only=True):
    """Whom sandboxes trust for hosts whose requests are given headers: its certificate in PEM."""

    pem: str


class GuestRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sandbox's policy, to the egress process. `servers`: whom to ask for its names; empty: nobody. `resolvers`: for
    its proxy's.

    `allowed`, `denied`: networks; what a connection that no name decides about may dial.
    """

    address: str  # the sandbox's own
    names: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    resolvers: tuple[str, ...] = ()
    headers: dict[str, dict[str, str]] = {}
    proxy: EgressProxy | None = None
    allowed: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()

    def __repr__(self) -> str:  # logs and tracebacks show it
        return f"GuestRules({self.address!r}, ...)"


class EgressMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Between supervisor and egress process, both ways; `id` pairs an answer with what it answers.

    The supervisor says `guests` (these rules replace what they had), `forget` (addresses that have none any more) or
    `end`, or wants the addresses of a proxy's host (`find`), for which `addresses` are to be asked; the answer is
    `done`. The egress process asks where a sandbox wanted to connect to (`guest`, its `port` and ours, `at`, as the
    connection shows them); the answer is `original`, or none. `known`: whose rules it has, and `version`: what it
    understands, said once to who connects.
    """

    id: int = 0
    guests: tuple[GuestRules, ...] = ()
    forget: tuple[str, ...] = ()
    end: bool = False
    done: bool = False
    guest: str = ""
    port: int = 0
    at: int = 0
    original: tuple[str, int] | None = None
    find: str = ""
    addresses: tuple[str, ...] = ()
    known: tuple[str, ...] | None = None
    version: int = 0


def pack(message: msgspec.Struct) -> bytes:
    """A message as bytes for the socket. Raises ValueError over the limit."""
    body = msgspec.json.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(f"message of {len(body)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return _LENGTH.pack(len(body)) + body


class MessageReader:
    """Cuts a byte stream into message bodies; raises ValueError on a length out of bounds."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._buffer += data
        bodies: list[bytes] = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if not 1 <= length <= MAX_MESSAGE_BYTES:
                raise ValueError(f"message length {length} is out of bounds")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]
        return bodies
