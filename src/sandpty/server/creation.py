"""How a sandbox is made for a client: what it wants, checked and resolved, as the supervisor is asked for it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.deadline import end_at
from sandpty.server.idempotency import Key, Once
from sandpty.server.snapshots import Snapshots
from sandpty.server.templates import Templates
from sandpty.server.volumes import Volumes
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import FirstShell
from sandpty.wire.network_policy import NetworkPolicy
from sandpty.wire.verbs import CreateArgs, Limits, Sandbox, VolumeMount


@dataclass(frozen=True, slots=True)
class CreateSpec:
    """What a client wants. `extras` goes into the annotations under the dialect's name."""

    template: str = "base"
    timeout_s: float = config.SANDBOX_TIMEOUT_S
    on_timeout: Literal["kill", "pause", "pause_disk"] = "kill"
    metadata: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    internet: bool = True
    network: NetworkPolicy = field(default_factory=NetworkPolicy)
    limits: Limits | None = None
    auto_resume: bool = False  # paused with its memory, it goes on by itself when somebody uses it
    extras: dict[str, Any] = field(default_factory=dict)
    first_shell: FirstShell | None = None
    volumes: tuple[VolumeMount, ...] = ()  # by id or name


class World(Protocol):
    """What is needed of the registry."""

    snapshots: Snapshots
    templates: Templates
    volumes: Volumes

    @property
    def count(self) -> int:
        """Of everybody's sandboxes."""

    async def make(self, args: CreateArgs) -> Sandbox:
        """One that is ready."""


class Creation:
    """`find` looks for a living sandbox that was made under an idempotency key's id."""

    def __init__(self, world: World, find: Callable[[str], Sandbox | None]) -> None:
        self._world = world
        self._once = Once(find)

    def close(self) -> None:
        self._once.close()

    async def create(self, spec: CreateSpec, principal: Principal, idempotency_key: str) -> Sandbox:
        """With an idempotency key: the sandbox that was made under it, if it still lives.

        Raises bad_timeout, no_such_template, limit, no_space, runtime_failed, supervisor_down, too_large, conflict.
        """
        if not idempotency_key:
            return await self._create(spec, principal, None)
        key = Key.of(principal, idempotency_key, msgspec.json.encode(spec))
        return await self._once.create(key, lambda: self._create(spec, principal, key))

    async def _create(self, spec: CreateSpec, principal: Principal, key: Key | None) -> Sandbox:
        if self._world.count >= config.SANDBOXES_MAX:
            raise SandptyError("limit", f"this host holds its {config.SANDBOXES_MAX} sandboxes already")
        annotations = {
            "metadata": spec.metadata,
            "env": spec.env,
            "token": secrets.token_hex(32),
            "template": spec.template,
            "auto_resume": spec.auto_resume,
            "key": principal.key,
            **({"idempotency": msgspec.to_builtins(key)} if key is not None else {}),
            **spec.extras,
        }
        check_annotations(annotations)
        args = CreateArgs(
            template=spec.template,
            end_at=end_at(spec.timeout_s),
            on_timeout=spec.on_timeout,
            limits=spec.limits,
            internet=spec.internet,
            network=spec.network,
            owner=principal.id,
            annotations=annotations,
            # With more in its environment it is another shell.
            first_shell=None if spec.env or spec.network.headers else spec.first_shell,
            volumes=await self._world.volumes.resolved(spec.volumes, principal),
        )
        try:
            return await self._world.make(args)
        except SandptyError as error:
            if error.reason.name != "no_such_template":
                raise
            return await self._world.make(await self._origin(args, principal, error))

    async def _origin(self, args: CreateArgs, principal: Principal, error: SandptyError) -> CreateArgs:
        """What else the name may mean: another team's template, or a snapshot. Raises `error`."""
        with contextlib.suppress(SandptyError):
            if "/" in args.template:
                exact = await self._world.templates.exact(args.template, principal)
                return msgspec.structs.replace(args, template=exact)
        with contextlib.suppress(SandptyError):
            snapshot = await self._world.snapshots.find(args.template, principal)
            return msgspec.structs.replace(args, template=snapshot.id, snapshot=snapshot.id)
        raise error from None


def check_annotations(annotations: dict[str, Any]) -> None:
    """Raises too_large."""
    if len(msgspec.json.encode(annotations)) > config.METADATA_BYTES:
        raise SandptyError("too_large", f"metadata and environment are over {config.METADATA_BYTES} bytes")
