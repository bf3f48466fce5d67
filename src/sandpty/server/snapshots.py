"""Snapshots and forks as the dialects see them: whose they are, what they are called, what is made from them.

A snapshot is referred to by its id, by its name, or by either with a tag and the team's name before it, as E2B writes
them: `4f0…`, `4f0…:default`, `clean`, `clean:v2`, `team/clean`, `team/clean:v2`. No tag is the tag `default`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.deadline import end_at
from sandpty.server.supervisor_client import SnapshotList, SupervisorClient
from sandpty.wire import verbs
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox, Snapshot

DEFAULT_TAG = "default"
_WORD = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_REFERENCE = re.compile(f"(?:(?P<team>{_WORD})/)?(?P<name>{_WORD})(?::(?P<tag>{_WORD}))?")


class Sandboxes(Protocol):
    """What is needed of the registry."""

    def get(self, sandbox_id: str, principal: Principal | None = None) -> Sandbox:
        """Raises no_such_sandbox."""

    async def make(self, args: verbs.CreateArgs) -> Sandbox:
        """One that is ready."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What a client calls a snapshot."""

    team: str
    name: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Reference | None:
        """None when it cannot be one."""
        match = _REFERENCE.fullmatch(text)
        return None if match is None else cls(match["team"] or "", match["name"], match["tag"] or DEFAULT_TAG)

    @property
    def kept(self) -> str:
        """As the supervisor keeps it."""
        return self.name if self.tag == DEFAULT_TAG else f"{self.name}:{self.tag}"

    def means(self, snapshot: Snapshot) -> bool:
        return snapshot.name == self.kept or (self.tag == DEFAULT_TAG and snapshot.id == self.name)


def full_name(snapshot: Snapshot, principal: Principal) -> str:
    """`team/name:tag`, or `id:default` of one without a name: what E2B calls the snapshot's id."""
    if not snapshot.name:
        return f"{snapshot.id}:{DEFAULT_TAG}"
    tagged = snapshot.name if ":" in snapshot.name else f"{snapshot.name}:{DEFAULT_TAG}"
    return f"{principal.team_name}/{tagged}"


class Snapshots:
    """Of all teams; every method asks whose they are."""

    def __init__(self, sandboxes: Sandboxes, client: SupervisorClient) -> None:
        self._sandboxes = sandboxes
        self._client = client

    async def create(self, sandbox_id: str, principal: Principal, name: str = "") -> Snapshot:
        """Of a running or paused sandbox, which goes on. Raises bad_argument, limit, no_space, no_such_sandbox."""
        self._sandboxes.get(sandbox_id, principal)
        args = verbs.SnapshotArgs(id=sandbox_id, name=_kept_name(name, principal))
        return await self._client.call("snapshot", args, Snapshot)

    async def list(self, principal: Principal, sandbox_id: str = "", name: str = "") -> Sequence[Snapshot]:
        """The principal's, oldest first; of one sandbox, or of one name."""
        listed = await self._client.call("snapshots", {"owner": principal.id}, SnapshotList)
        reference = Reference.parse(name) if name else None
        return [
            snapshot
            for snapshot in listed.snapshots
            if snapshot.owner == principal.id
            and (not sandbox_id or snapshot.sandbox_id == sandbox_id)
            and (not name or (reference is not None and reference.means(snapshot)))
        ]

    async def find(self, text: str, principal: Principal) -> Snapshot:
        """The principal's snapshot that `text` refers to. Raises no_such_snapshot."""
        reference = Reference.parse(text)
        if reference is not None and reference.team in ("", principal.team_name):
            for snapshot in await self.list(principal):
                if reference.means(snapshot):
                    return snapshot
        raise SandptyError("no_such_snapshot", f"snapshot {text[:128]!r} does not exist")

    async def delete(self, text: str, principal: Principal) -> None:
        """Sandboxes that were made from it go on. Raises no_such_snapshot."""
        snapshot = await self.find(text, principal)
        await self._client.call("delete_snapshot", {"id": snapshot.id}, dict)

    async def fork(
        self, sandbox_id: str, principal: Principal, *, count: int, timeout_s: float
    ) -> Sequence[Sandbox | SandptyError]:
        """`count` sandboxes with the files that this one has now; it goes on. Each that fails is its error instead.

        Raises bad_argument, bad_timeout, no_such_sandbox, and what a snapshot raises.
        """
        if not 1 <= count <= config.FORK_MAX:
            raise SandptyError("bad_argument", f"count goes from 1 to {config.FORK_MAX}, not {count}")
        end_at(timeout_s)
        source = self._sandboxes.get(sandbox_id, principal)
        args = verbs.SnapshotArgs(id=sandbox_id, temporary=True)
        snapshot = await self._client.call("snapshot", args, Snapshot)
        try:
            ends = end_at(timeout_s)
            children = (self._child(source, snapshot, ends, principal) for _ in range(count))
            results = await asyncio.gather(*children, return_exceptions=True)
        finally:
            with contextlib.suppress(SandptyError):  # it goes by itself, and is not what was asked for
                await self._client.call("delete_snapshot", {"id": snapshot.id}, dict)
        forks: list[Sandbox | SandptyError] = []
        for result in results:
            if not isinstance(result, Sandbox | SandptyError):
                raise result
            forks.append(result)
        return forks

    async def _child(self, source: Sandbox, snapshot: Snapshot, ends: float, principal: Principal) -> Sandbox:
        """What it does not inherit: who may enter it (its token) and when it ends."""
        own: dict[str, Any] = {"token": secrets.token_hex(32), "key": principal.key, "idempotency": None}
        args = verbs.CreateArgs(
            template=source.template,
            snapshot=snapshot.id,
            end_at=ends,
            on_timeout=source.on_timeout,
            limits=source.limits,
            internet=source.internet,
            network=source.network,
            network_of=source.id,
            owner=principal.id,
            annotations={**source.annotations, **own},
        )
        return await self._sandboxes.make(args)


def _kept_name(name: str, principal: Principal) -> str:
    """Raises bad_argument, forbidden."""
    if not name:
        return ""
    reference = Reference.parse(name)
    if reference is None:
        raise SandptyError("bad_argument", "a snapshot's name is letters, digits, dots, dashes and underscores")
    if reference.team not in ("", principal.team_name):
        raise SandptyError("forbidden", f"team {reference.team[:64]!r} is not yours")
    return reference.kept
