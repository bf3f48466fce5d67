"""Which sandboxes there are, whose they are, and what may be done with them.

A view of the supervisor's truth, kept current by its events: the server can be killed at any time and finds everything
again. What the server adds to a sandbox (metadata, environment, access token) lives in the sandbox's annotations, which
the supervisor keeps for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sandpty import config
from sandpty.server import readiness
from sandpty.server.auth import Principal
from sandpty.server.creation import CreateSpec, Creation, check_annotations
from sandpty.server.deadline import end_at
from sandpty.server.egress_trust import EgressTrust
from sandpty.server.ended import EndedSandboxes
from sandpty.server.secrets import Secrets
from sandpty.server.snapshots import Snapshots
from sandpty.server.supervisor_client import EndedList, SupervisorClient
from sandpty.server.templates import Teams, Templates
from sandpty.server.volumes import Volumes
from sandpty.wire import verbs
from sandpty.wire.errors import SandptyError
from sandpty.wire.network_policy import NetworkPolicy
from sandpty.wire.verbs import Sandbox

log = logging.getLogger(__name__)


def wakes(sandbox: Sandbox) -> bool:
    """Whether traffic resumes it: only one that is paused with its memory, and was created so."""
    return sandbox.state == "paused" and sandbox.paused_memory and bool(sandbox.annotations.get("auto_resume"))


class Registry:
    """Use as `async with Registry(socket)`."""

    def __init__(
        self,
        supervisor_socket: str,
        on_keys: Callable[[Sequence[verbs.KeyHash]], None] | None = None,
        teams: Teams | None = None,
    ) -> None:
        self._client = SupervisorClient(supervisor_socket, self._on_list, self._on_event, on_keys)
        self._trust = EgressTrust(self._client)
        self.secrets = Secrets(self._client)
        self._sandboxes: dict[str, Sandbox] = {}
        self._tokens: dict[str, str] = {}  # access token -> sandbox id
        self._keys: dict[str, str] = {}  # idempotency key's id -> sandbox id
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._cuts: dict[str, set[Callable[[], None]]] = {}
        self._host: verbs.Host | None = None
        self.on_new: list[Callable[[Sandbox], None]] = []  # called for each sandbox that was not known
        self.on_gone: list[Callable[[str], None]] = []  # by id, when one is no more
        self.ended = EndedSandboxes()
        self._changing: dict[str, asyncio.Lock] = {}  # by sandbox
        self.snapshots = Snapshots(self, self._client)
        self.volumes = Volumes(self._client)
        self.templates = Templates(self._client, teams)
        self._creation = Creation(self, self._by_key)

    async def __aenter__(self) -> Registry:
        await self._client.__aenter__()
        try:
            self._host = await self._client.call("hello", {}, verbs.Host)
            await self._learn_ended()
        except BaseException:
            await self._client.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for waking in self._waking.values():
            waking.cancel()
        self._creation.close()
        await self._client.__aexit__()

    async def _learn_ended(self) -> None:
        """A supervisor of an earlier version remembers none."""
        with contextlib.suppress(SandptyError):
            told = await self._client.call("ended", {}, EndedList)
            self.ended.learn(item for item in told.ended if item.sandbox.id not in self._sandboxes)

    # --- the view ---

    def _on_list(self, sandboxes: list[Sandbox]) -> None:
        known = {sandbox.id for sandbox in sandboxes}
        for gone in [self._sandboxes[id_] for id_ in self._sandboxes.keys() - known]:
            self._forget(gone)
        for sandbox in sandboxes:
            self.remember(sandbox)

    def _on_event(self, event: str, sandbox: Sandbox, reason: str) -> None:
        if event == "ended":
            log.info("sandbox %s ended: %s", sandbox.id, sandbox.ended or reason)
            self._forget(sandbox)
        else:
            self.remember(sandbox)

    def remember(self, sandbox: Sandbox) -> None:
        """This is what the supervisor says of it now."""
        before = self._sandboxes.get(sandbox.id)
        if before is not None and before.revision > sandbox.revision:
            return  # an answer that was overtaken by an event
        self._sandboxes[sandbox.id] = sandbox
        self.ended.discard(sandbox.id)
        token = sandbox.annotations.get("token")
        if before is not None and before.annotations.get("token") != token:  # whoever had the old one is out
            self._tokens.pop(before.annotations.get("token", ""), None)
            self._cut(sandbox.id)
        if token:
            self._tokens[token] = sandbox.id
        if key := sandbox.annotations.get("idempotency"):
            self._keys[key["id"]] = sandbox.id
        if before is None:
            for tell_new in self.on_new:
                tell_new(sandbox)
        if before is not None and before.state == "running" and sandbox.state != "running":
            self._cut(sandbox.id)

    def _forget(self, sandbox: Sandbox) -> None:
        self.ended.add(sandbox)
        if self._sandboxes.pop(sandbox.id, None) is not None:
            self._tokens.pop(sandbox.annotations.get("token", ""), None)
            if key := sandbox.annotations.get("idempotency"):
                self._keys.pop(key["id"], None)
            self._changing.pop(sandbox.id, None)
            for tell_gone in self.on_gone:
                tell_gone(sandbox.id)
        self._cut(sandbox.id)

    def _cut(self, sandbox_id: str) -> None:
        for callback in list(self._cuts.get(sandbox_id, ())):
            try:
                callback()
            except Exception:
                log.exception("cutting a stream of %s failed", sandbox_id)

    def cut_made_by(self, keys: frozenset[str], owners: frozenset[str]) -> None:
        """Cut the streams of sandboxes that were made with one of these keys (ids), or that these teams own."""
        for sandbox in list(self._sandboxes.values()):
            if sandbox.owner in owners or sandbox.annotations.get("key") in keys:
                self._cut(sandbox.id)

    @contextmanager
    def cutting(self, sandbox_id: str, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` (synchronously, once per event) if the sandbox is killed, paused or ends meanwhile."""
        callbacks = self._cuts.setdefault(sandbox_id, set())
        callbacks.add(callback)
        try:
            yield
        finally:
            callbacks.discard(callback)
            if not callbacks and self._cuts.get(sandbox_id) is callbacks:
                del self._cuts[sandbox_id]

    @property
    def host(self) -> verbs.Host:
        """What the supervisor said of this host when we first met it."""
        assert self._host is not None
        return self._host

    @property
    def client(self) -> SupervisorClient:
        """For those who ask the supervisor for more than sandboxes."""
        return self._client

    @property
    def ready(self) -> bool:
        return self._client.connected

    # --- questions ---

    def get(self, sandbox_id: str, principal: Principal | None = None) -> Sandbox:
        """Raises no_such_sandbox, also for a sandbox of somebody else. No principal: the caller checked a token."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or (principal is not None and sandbox.owner != principal.id):
            raise SandptyError("no_such_sandbox", f"sandbox {sandbox_id[:64]} does not exist or is not yours")
        return sandbox

    def running(self, sandbox_id: str, principal: Principal | None = None) -> Sandbox:
        """As `get`; raises sandbox_paused when it is not running."""
        sandbox = self.get(sandbox_id, principal)
        if sandbox.state != "running":
            raise SandptyError("sandbox_paused", f"sandbox {sandbox_id} is paused")
        return sandbox

    async def awake(self, sandbox_id: str, principal: Principal | None = None) -> Sandbox:
        """As `running`, but a paused sandbox that may be woken by traffic is resumed: whoever uses one asks this.

        Raises no_such_sandbox, sandbox_paused, and what a resume raises. Check tokens first (`get`).
        """
        sandbox = self.get(sandbox_id, principal)
        if sandbox.state != "running" and wakes(sandbox):
            waking = self._waking.get(sandbox.id)
            if waking is None:
                waking = self._waking[sandbox.id] = asyncio.create_task(self._wake(sandbox), name=f"wake {sandbox.id}")
                waking.add_done_callback(lambda _: self._waking.pop(sandbox.id, None))
            await asyncio.shield(waking)
        return self.running(sandbox_id, principal)

    async def _wake(self, sandbox: Sandbox) -> None:
        log.info("sandbox %s is woken by traffic", sandbox.id)
        try:
            await self._change("resume", {"id": sandbox.id, "end_at": end_at(config.AUTO_RESUME_TIMEOUT_S)})
        except SandptyError as error:
            if error.reason.name != "conflict":  # somebody else has resumed it already
                raise

    def __contains__(self, sandbox_id: str) -> bool:
        return sandbox_id in self._sandboxes

    def by_token(self, token: str) -> Sandbox | None:
        return self._sandboxes.get(self._tokens.get(token, ""))

    def everyone(self) -> Iterator[Sandbox]:
        """Every sandbox, whoever owns it: for finding one by a secret of its own."""
        return iter(self._sandboxes.values())

    def _by_key(self, key_id: str) -> Sandbox | None:
        return self._sandboxes.get(self._keys.get(key_id, ""))

    def list(self, principal: Principal) -> list[Sandbox]:
        """All of the principal's sandboxes, oldest first."""
        mine = (sandbox for sandbox in self._sandboxes.values() if sandbox.owner == principal.id)
        return sorted(mine, key=lambda sandbox: (sandbox.started_at, sandbox.id))

    @property
    def count(self) -> int:
        """Of everybody's sandboxes."""
        return len(self._sandboxes)

    def count_by_state(self) -> dict[str, int]:
        """Of everybody's sandboxes."""
        counts = {"running": 0, "paused": 0}
        for sandbox in self._sandboxes.values():
            counts[sandbox.state] += 1
        return counts

    def all_running(self) -> Sequence[Sandbox]:
        """Whoever owns them."""
        return [sandbox for sandbox in self._sandboxes.values() if sandbox.state == "running"]

    async def usage(self, ids: Sequence[str]) -> dict[str, verbs.Usage]:
        """What these use now; those that do not run are left out."""
        return (await self._client.call("usage", {"ids": ids}, verbs.Usages)).usage

    async def certificate(self) -> verbs.Certificate:
        """For TLS. Raises conflict when the server was started without."""
        return await self._client.call("certificate", {}, verbs.Certificate)

    async def history(self, args: verbs.HistoryArgs) -> Sequence[verbs.HistoryEntry]:
        """What became of sandboxes, oldest first."""
        return (await self._client.call("history", args, verbs.History)).entries

    # --- changes ---

    async def create(self, spec: CreateSpec, principal: Principal, idempotency_key: str = "") -> Sandbox:
        """As `Creation.create`."""
        return await self._creation.create(spec, principal, idempotency_key)

    async def make(self, args: verbs.CreateArgs) -> Sandbox:
        """One that is ready. Raises what the supervisor refuses it with; not_ready, after which it is gone."""
        sandbox = await self._client.call("create", args, Sandbox)
        if not self.ended.knows(sandbox.id):  # the word of that may be here before the answer
            self.remember(sandbox)
        await self._trust.install(sandbox)
        if readiness.has_to_start(sandbox):
            try:
                await readiness.until_booted(sandbox)
            except SandptyError as error:
                log.warning("sandbox %s is not ready: %s", sandbox.id, error)
                await self.remove(sandbox)
                raise
        return self._sandboxes.get(sandbox.id, sandbox)

    async def kill(self, sandbox_id: str, principal: Principal) -> None:
        """Returns once everything in it is gone; its streams are cut at once."""
        await self.remove(self.get(sandbox_id, principal))

    async def remove(self, sandbox: Sandbox) -> None:
        """As `kill`, of anybody's."""
        self._forget(sandbox)
        try:
            await self._client.call("kill", {"id": sandbox.id}, dict)
        except SandptyError as error:
            if error.reason.name != "no_such_sandbox":
                self.remember(sandbox)
                raise

    async def pause(self, sandbox_id: str, principal: Principal, memory: bool = True) -> Sandbox:
        """Freeze (memory=True) or stop and keep the files. Raises already_paused."""
        if self.get(sandbox_id, principal).state == "paused":
            raise SandptyError("already_paused", f"sandbox '{sandbox_id}' is already paused")
        return await self._change("pause", {"id": sandbox_id, "memory": memory})

    async def resume(self, sandbox_id: str, principal: Principal, ends: float, *, memory: bool = True) -> Sandbox:
        """Thaw, or (not `memory`, or paused without) start again from the files. Raises conflict when it runs."""
        boots = not (memory and self.get(sandbox_id, principal).paused_memory)
        sandbox = await self._change("resume", {"id": sandbox_id, "end_at": ends, "memory": memory})
        await self._trust.install(sandbox)  # its policy may have changed meanwhile
        if boots and readiness.has_to_start(sandbox):
            await readiness.until_booted(sandbox)  # its files are worth more than its being ready: it stays
        return sandbox

    async def change_memory(self, sandbox_id: str, principal: Principal, change: Callable[[int], int]) -> Sandbox:
        """Replace its MiB by what `change` makes of them; one change after the other. Raises bad_argument,
        no_such_sandbox, runtime_failed."""
        self.get(sandbox_id, principal)
        async with self._changing.setdefault(sandbox_id, asyncio.Lock()):
            memory_mb = change(self.get(sandbox_id, principal).limits.memory_mb)
            return await self._change("set_memory", {"id": sandbox_id, "memory_mb": memory_mb})

    async def set_deadline(self, sandbox_id: str, principal: Principal, ends: float) -> Sandbox:
        self.get(sandbox_id, principal)
        return await self._change("set_deadline", {"id": sandbox_id, "end_at": ends})

    async def annotate(
        self, sandbox_id: str, principal: Principal, change: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> Sandbox:
        """Replace the annotations by what `change` makes of them; one change after the other. Raises too_large."""
        self.get(sandbox_id, principal)
        async with self._changing.setdefault(sandbox_id, asyncio.Lock()):
            annotations = change(dict(self.get(sandbox_id, principal).annotations))
            check_annotations(annotations)
            return await self._change("annotate", {"id": sandbox_id, "annotations": annotations})

    async def set_network(
        self, sandbox_id: str, principal: Principal, internet: bool, policy: NetworkPolicy
    ) -> Sandbox:
        """Replace the network policy; what it does not allow has ended when this returns. Raises bad_argument."""
        return await self.change_network(sandbox_id, principal, lambda _: (internet, policy))

    async def change_network(
        self, sandbox_id: str, principal: Principal, change: Callable[[Sandbox], tuple[bool, NetworkPolicy]]
    ) -> Sandbox:
        """The same, by what `change` makes of what there is; one change after the other."""
        self.get(sandbox_id, principal)
        async with self._changing.setdefault(sandbox_id, asyncio.Lock()):
            internet, policy = change(self.get(sandbox_id, principal))
            sandbox = await self._change("network", {"id": sandbox_id, "internet": internet, "policy": policy})
        await self._trust.install(sandbox)
        return sandbox

    async def _change(self, verb: str, args: dict[str, Any]) -> Sandbox:
        sandbox = await self._client.call(verb, args, Sandbox)
        if sandbox.ended is None and sandbox.id in self._sandboxes:
            self.remember(sandbox)
        return sandbox
