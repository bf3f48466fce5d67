"""What every isolation driver can do. The supervisor knows this Protocol and nothing of what lies behind it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from sandpty.wire import network_rules
from sandpty.wire.network_policy import NetworkPolicy
from sandpty.wire.network_rules import Rules
from sandpty.wire.verbs import Limits


class TierRefusedError(Exception):
    """The configured isolation does not hold on this machine; the message is one readable line."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A read-only tree and where it appears in the sandbox.

    hidden: directories of it that appear empty. below: the trees it lies on, the nearest first. A tree says what it
    takes away from those below as an overlay's upper directory does (whiteouts, opaque directories).
    """

    source: Path
    target: str = "/"
    hidden: tuple[str, ...] = ()
    below: tuple[Path, ...] = ()

    @property
    def trees(self) -> tuple[Path, ...]:
        """All of its trees, the topmost first."""
        return (self.source, *self.below)


MERGED_BASE = 0  # no sandbox's: they begin at config.UID_BASE


@dataclass(frozen=True, slots=True)
class Copy:
    """What a sandbox had written when it was copied: stacked between the layers and what another one writes.

    directory: where `Driver.copy` put it. ids_base: the host's number of the copied sandbox's uid 0; MERGED_BASE when
    it was merged: then owners are the guest's own numbers, as in templates' trees.
    sandbox_id: whose it is, and so its host name.
    """

    directory: Path
    ids_base: int
    sandbox_id: str

    @property
    def merged(self) -> bool:
        """Whether a sandbox's own user namespace shifts its owners."""
        return self.ids_base == MERGED_BASE


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume in a sandbox. directory: where `Driver.make_volume` made it."""

    directory: Path
    path: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a driver needs to know about one sandbox.

    directory: its state directory on the host, which exists. slot: what `reserve` gave.
    """

    id: str
    directory: Path
    layers: tuple[Layer, ...]
    slot: int
    limits: Limits
    internet: bool
    boot_id: str
    copies: tuple[Copy, ...] = ()  # that it stands on, the newest (topmost) first
    network: NetworkPolicy = field(default_factory=NetworkPolicy)
    mounts: tuple[Mount, ...] = ()
    files_root: str = ""  # the agent's files connections see nothing but what is below this path
    owner: str = ""  # whose secrets its policy may refer to

    @property
    def rules(self) -> Rules:
        """The network policy, parsed. Empty also where there is no way out that could be restricted."""
        policy = self.network
        rules = network_rules.parse(policy.allow_out, policy.deny_out, internet=self.internet)
        if not (self.internet or rules.allowed or rules.names):
            return Rules()
        return replace(rules, inspected=bool(policy.headers), tunneled=policy.proxy is not None)

    @property
    def way_out(self) -> bool:
        """Whether anything outside may be reached."""
        return self.internet or bool(self.network.allow_out)


@dataclass(frozen=True, slots=True)
class Started:
    """The agent's host pid, and its start time (clock ticks since boot): a later process may get the same pid."""

    pid: int
    start_time: int


@dataclass(frozen=True, slots=True)
class Stats:
    """What a sandbox uses at present. Zero where the driver cannot know."""

    memory_bytes: int = 0
    cache_bytes: int = 0  # of memory_bytes: files' contents that the kernel can drop
    cpu_s: float = 0.0
    processes: int = 0
    disk_bytes: int = 0
    unwritten_bytes: int = 0  # of files, not on the host's disk yet
    out_of_memory_kills: int = 0


@dataclass(frozen=True, slots=True)
class GuestNetwork:
    """A descriptor of a sandbox's network namespace, which the caller closes; its address there, "" without one."""

    fd: int
    address: str


class WayOut(Protocol):
    """What is on the way from sandboxes to the internet. secrets_of: a team's, by their names."""

    secrets_of: Callable[[str], Mapping[str, str]]

    async def certificate(self) -> bytes:
        """Of whoever vouches for hosts to sandboxes whose requests are given headers, in PEM."""

    async def check_proxy(self, host: str) -> None:
        """Raises bad_argument unless it leads to an address that may be reached."""


class Driver(Protocol):
    """A way to run sandboxes. Methods raise SandptyError (runtime_failed, no_space, limit)."""

    name: str
    isolated: bool

    @property
    def outward(self) -> WayOut | None:
        """None where sandboxes have the host's network."""

    async def open(self) -> None:
        """Make what all sandboxes share. Raises TierRefusedError when the machine cannot carry this driver."""

    async def probe(self, layers: Sequence[Layer]) -> dict[str, str]:
        """Start a canary from `layers`, assert that what is promised holds, and tell what was found."""

    async def reserve(self) -> int:
        """A free slot (uid range, network address); given back by `destroy`."""

    async def start(self, plan: Plan, listener: socket.socket) -> Started:
        """Run the agent on `listener`, in a new root or on what an earlier run of this sandbox left on disk."""

    async def apply(self, plan: Plan, started: Started) -> None:
        """Make a running sandbox follow the plan's limits and network policy. Raises also sandbox_ended."""

    async def freeze(self, plan: Plan) -> None:
        """Stop every process where it stands; memory stays."""

    async def thaw(self, plan: Plan) -> None:
        """Let frozen processes go on."""

    async def copy(self, plan: Plan, started: Started, directory: Path) -> Copy:
        """Copy what the sandbox has written into `directory` (empty). Its processes must not run meanwhile."""

    async def take(self, plan: Plan, directory: Path) -> Copy:
        """As `copy`, of a sandbox that was stopped and is about to be destroyed: its disk is moved, not copied."""

    async def merge(self, copies: Sequence[Copy], directory: Path, *, layers: int, disk_mb: int) -> Copy:
        """One copy that can stand for these (the topmost first), on so many layers, made in `directory`.

        disk_mb: the largest of their disks. The result needs no shift of owners of its own (see `Copy.merged`).
        """

    async def sync_copy(self, directory: Path) -> None:
        """Returns once the copy in `directory` would survive a power cut."""

    def forget_copy(self, directory: Path) -> None:
        """The copy in `directory` is about to be removed: nobody stands on it."""

    async def make_volume(self, directory: Path, disk_mb: int) -> None:
        """Make an empty volume in `directory`, which exists. Raises also unsupported."""

    async def grow_volume(self, directory: Path, disk_mb: int) -> None:
        """Let it hold more. Nobody mounts it."""

    async def stop(self, plan: Plan, started: Started) -> None:
        """End every process and free all but the files. Returns once they are gone; nothing to do is fine."""

    async def destroy(self, plan: Plan) -> None:
        """Remove the files and give the slot back; the sandbox is stopped. The directory itself is the caller's."""

    async def adopt(self, plan: Plan, started: Started) -> bool:
        """Take over a sandbox of an earlier supervisor; True: its agent is alive. The slot is reserved either way."""

    def network(self, plan: Plan, started: Started) -> GuestNetwork:
        """The sandbox's own network. Raises sandbox_ended; unsupported when it has none of its own."""

    def stats(self, plan: Plan, started: Started) -> Stats:
        """What the sandbox uses now."""

    def unwritten_bytes(self) -> int:
        """What all sandboxes together have written to files that is not on the host's disk yet."""

    async def close(self, *, sandboxes_left: bool) -> None:
        """Remove what all sandboxes share, unless some go on without a supervisor."""
