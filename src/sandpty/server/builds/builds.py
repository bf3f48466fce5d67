"""All builds of this server: asked for, waiting their turn, under way, over.

What becomes of a build is in its template's record, which the supervisor keeps; what it said is in a file. A server
that starts finds the builds of the one before it as they were left, and says of those that were under way that they
failed, and why.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.builds.bases import Bases
from sandpty.server.builds.building import BuildError, Building
from sandpty.server.builds.log import BuildLog, Line, read_log, remove_old
from sandpty.server.builds.recipe import Base, Recipe, Situation, check
from sandpty.server.builds.steps import Steps
from sandpty.server.builds.uploads import Uploads
from sandpty.server.builds.workshop import OWNER_PREFIX, Workshop
from sandpty.server.registry import Registry
from sandpty.server.templates import with_build, with_tags
from sandpty.wire.errors import SandptyError
from sandpty.wire.templates import DEFAULT_TAG, Build, Template, parted
from sandpty.wire.verbs import Limits

log = logging.getLogger(__name__)
CANCELLED = "the build was cancelled"
NEVER_STARTED = "the build was asked for and never started"
INTERRUPTED = "the server was stopped or restarted during the build: start it again, its finished steps are kept"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for before anything is built: `name` may have a tag; None: what is usual."""

    name: str
    tags: tuple[str, ...] = ()
    cpu_count: float | None = None
    memory_mb: int | None = None
    disk_mb: int | None = None


@dataclass(slots=True, eq=False)
class _Running:
    """A build under way. build: as it is in the record."""

    principal: Principal
    template: Template
    build: Build
    recipe: Recipe
    log: BuildLog
    task: asyncio.Task[None] = field(init=False)
    cancelled: bool = False


class Builds:
    """Use as `async with`. Every method asks whose the template is."""

    def __init__(self, registry: Registry, directory: Path) -> None:
        self._registry = registry
        self._templates = registry.templates
        self._logs = directory / "logs"
        self.uploads = Uploads(directory / "uploads")
        self._running: dict[str, _Running] = {}
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._turn = asyncio.Semaphore(config.BUILDS_AT_ONCE)
        self._recovering: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Builds:
        self._recovering = asyncio.create_task(self._recover(), name="recover builds")
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [running.task for running in self._running.values()]
        if self._recovering is not None:
            tasks.append(self._recovering)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- ask ---

    async def request(self, wanted: Wanted, principal: Principal) -> tuple[Template, Build]:
        """A build that waits to be started, of a template that is made if there is none of this name.

        Raises bad_argument, conflict, forbidden, limit.
        """
        name, tag = parted(wanted.name)
        tags = tuple(dict.fromkeys((*((tag,) if ":" in wanted.name else ()), *wanted.tags))) or (DEFAULT_TAG,)
        usual, now = Limits(), time.time()
        build = Build(
            id=str(uuid.uuid4()),
            cpu_count=wanted.cpu_count or usual.cpu_count,
            memory_mb=wanted.memory_mb or usual.memory_mb,
            disk_mb=wanted.disk_mb or usual.disk_mb,
            tags=tags,
            created_at=now,
            updated_at=now,
        )
        name = self._own_name(name, principal)
        new = Template(owner=principal.id, names=(name,), builds=(build,))
        with_it = functools.partial(with_build, build=build)
        return await self._templates.change_or_make(name, principal, with_it, new), build

    def _own_name(self, name: str, principal: Principal) -> str:
        """Without the team before it. Raises bad_argument, forbidden."""
        team, slash, rest = name.partition("/")
        if slash and team != principal.team_name:
            raise SandptyError("forbidden", f"team {team[:64]!r} is not yours")
        own = rest if slash else name
        if "/" in own or not own:
            raise SandptyError("bad_argument", f"not the name of a template: {name[:64]!r}")
        return own.lower()

    async def start(self, reference: str, build_id: str, recipe: Recipe, principal: Principal) -> None:
        """Raises bad_argument, conflict when it was started before, limit, no_such_template, unsupported."""
        check(recipe)
        if not self._registry.host.isolated:
            raise SandptyError("unsupported", "templates are built where sandboxes are isolated: not in this tier")
        template = await self._templates.own(reference, principal)
        build = _of(template, build_id)
        if build.state != "waiting" or build_id in self._running:
            raise SandptyError("conflict", "this build was started already")
        if sum(each.principal.id == principal.id for each in self._running.values()) >= config.BUILDS_MAX:
            raise SandptyError("limit", f"a team has {config.BUILDS_MAX} builds under way at most")
        source = recipe.base.image or recipe.base.template
        build = msgspec.structs.replace(build, state="building", source=source)
        build_log = BuildLog(self._log_file(build_id))
        running = self._running[build_id] = _Running(principal, template, build, recipe, build_log)
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        running.task = asyncio.create_task(self._build(running, told), name=f"build {build_id}")
        running.task.add_done_callback(lambda _: self._over(build_id))
        await asyncio.shield(told)

    def _over(self, build_id: str) -> None:
        running = self._running.pop(build_id)
        running.log.close()

    def _log_file(self, build_id: str) -> Path:
        return self._logs / f"{build_id}.jsonl"

    # --- build ---

    async def _build(self, running: _Running, told: asyncio.Future[None]) -> None:
        """`told`: done once the record says that it is under way."""
        try:
            try:
                await self._keep(running)
            finally:
                told.set_result(None)
            turn = self._turns.setdefault(running.principal.id, asyncio.Semaphore(config.BUILDS_AT_ONCE_PER_TEAM))
            if turn.locked() or self._turn.locked():
                running.log.add("waiting for other builds")
            async with turn, self._turn:
                situation = await self._building(running).run()
            await self._ready(running, situation)
        except BuildError as error:
            await self._failed(running, str(error), error.step)
        except SandptyError as error:
            await self._failed(running, error.message)
        except asyncio.CancelledError:
            if running.cancelled:
                await self._failed(running, CANCELLED)
            raise
        except Exception:
            log.exception("build %s failed", running.build.id)
            await self._failed(running, f"internal error; the server's log has it under build {running.build.id}")

    def _building(self, running: _Running) -> Building:
        principal, build = running.principal, running.build
        limits = Limits(cpu_count=build.cpu_count, memory_mb=build.memory_mb, disk_mb=build.disk_mb)
        workshop = Workshop(self._registry.client, principal.id, running.template.id, limits)

        def tried(situation: Situation) -> bool:
            told = (situation.files, situation.defaults)
            builds = running.template.builds
            return any(each.state == "ready" and (each.files, each.defaults) == told for each in builds)

        return Building(
            running.recipe,
            running.log,
            bases=Bases(self._registry, principal),
            workshop=workshop,
            steps=Steps(workshop, self.uploads, principal.id),
            tried=tried,
        )

    async def _ready(self, running: _Running, situation: Situation) -> None:
        now = time.time()
        took_s = now - running.build.updated_at
        running.build = msgspec.structs.replace(
            running.build, state="ready", files=situation.files, defaults=situation.defaults, finished_at=now
        )
        running.log.always(f"template {running.template.name} is ready, after {took_s:.1f} s")
        await self._keep(running, lambda there: with_tags(there, running.build.tags, running.build.id, now))
        log.info("template %s built in %.1f s, build %s", running.template.id, took_s, running.build.id)

    async def _failed(self, running: _Running, reason: str, step: str = "") -> None:
        reason = reason[: config.BUILD_REASON_CHARACTERS]
        running.log.always(reason, "error", step)
        running.build = msgspec.structs.replace(
            running.build, state="failed", reason=reason, step=step, finished_at=time.time()
        )
        with contextlib.suppress(SandptyError):  # the template was deleted meanwhile
            await self._keep_lasting(running)
        log.info("build %s of template %s failed", running.build.id, running.template.id)

    async def _keep(self, running: _Running, more: Callable[[Template], Template] = lambda there: there) -> None:
        """Write down how far it is."""
        build = running.build = msgspec.structs.replace(running.build, updated_at=time.time())
        await self._templates.change(
            running.template.id, running.principal, lambda there: more(with_build(there, build))
        )

    async def _keep_lasting(self, running: _Running) -> None:
        """As `_keep`, also when the supervisor is away just now: its end may be why the build has failed."""
        deadline = time.monotonic() + config.BUILD_TOLD_S
        while True:
            try:
                return await asyncio.shield(self._keep(running))
            except SandptyError as error:
                if error.reason.name != "supervisor_down" or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(config.SUPERVISOR_RETRY_MAX_S)

    # --- look, end ---

    def goes_on(self, template_id: str, build_id: str, principal: Principal) -> bool:
        """Whether more is known of it here than the supervisor, which may be starting again, could tell."""
        running = self._running.get(build_id)
        if running is None or running.build.state == "ready":  # it is ready once that is written down
            return False
        return (running.template.id, running.principal.id) == (template_id, principal.id)

    async def status(self, reference: str, build_id: str, principal: Principal) -> tuple[Build, Sequence[Line]]:
        """What became of a build, and all that it said so far. Raises no_such_template, forbidden."""
        if self.goes_on(reference, build_id, principal):
            return self._running[build_id].build, self._running[build_id].log.lines
        build = _of(await self._templates.own(reference, principal), build_id)
        running = self._running.get(build_id)
        if running is not None:
            return build, running.log.lines
        if build.state == "building":  # it has ended since; or the word of how it ended could not be kept
            build = _of(await self._templates.own(reference, principal), build_id)
            if build.state == "building" and build_id not in self._running:
                build = msgspec.structs.replace(build, state="failed", reason=INTERRUPTED)
        return build, await asyncio.to_thread(read_log, self._log_file(build_id))

    async def cancel(self, reference: str, build_id: str, principal: Principal) -> None:
        """Returns once nothing of it goes on. Raises conflict when it is over."""
        build = _of(await self._templates.own(reference, principal), build_id)
        running = self._running.get(build.id)
        if running is not None:
            await self._stop(running)
        elif build.state == "waiting":
            await self._give_up(principal, reference, build, CANCELLED)
        else:
            raise SandptyError("conflict", "this build is not under way")

    async def delete(self, reference: str, principal: Principal) -> None:
        """The template, with its builds; sandboxes made from it go on. Raises no_such_template, forbidden."""
        template = await self._templates.delete(reference, principal)
        for running in [each for each in self._running.values() if each.template.id == template.id]:
            await self._stop(running)
        for build in template.builds:
            self._log_file(build.id).unlink(missing_ok=True)

    async def _stop(self, running: _Running) -> None:
        running.cancelled = True
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)

    # --- after a restart ---

    async def _recover(self) -> None:
        try:
            self.uploads.clear()
            remove_old(self._logs, time.time())
            for sandbox in [each for each in self._registry.everyone() if each.owner.startswith(OWNER_PREFIX)]:
                with contextlib.suppress(SandptyError):
                    await self._registry.remove(sandbox)
            for listed in await self._templates.list(None):
                if listed.owner:
                    await self._recover_builds(Principal(listed.owner), listed.id)
        except SandptyError as error:
            log.warning("builds of an earlier server stay as they are: %s", error)

    async def _recover_builds(self, owner: Principal, template_id: str) -> None:
        for build in (await self._templates.own(template_id, owner)).builds:
            if build.state == "building" and build.id not in self._running:
                await self._give_up(owner, template_id, build, INTERRUPTED)
            elif build.state == "waiting" and time.time() - build.created_at > config.UPLOAD_LINK_S:
                await self._give_up(owner, template_id, build, NEVER_STARTED)

    async def _give_up(self, owner: Principal, template_id: str, build: Build, reason: str) -> None:
        """Write down that a build on which nobody works has failed."""
        template = await self._templates.own(template_id, owner)
        left = _Running(owner, template, build, Recipe(Base(template=build.source)), BuildLog(self._log_file(build.id)))
        await self._failed(left, reason)
        left.log.close()


def _of(template: Template, build_id: str) -> Build:
    build = template.build(build_id)
    if build is None:
        raise SandptyError("no_such_template", f"template {template.name!r} has no build {build_id[:64]!r}")
    return build
