"""What Novita's SDKs ask for beyond E2B's control plane: quota, events, clone, reset, memory.

The rest of theirs is E2B's v1. Their `reset` begins a sandbox anew from its files: every process ends, the next boot
has its own boot id. Their `clone` is a fork.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.deadline import end_at
from sandpty.server.dialects.e2b.creating import timeout_of
from sandpty.server.dialects.e2b.errors import HttpError, bad_request
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.measures import unix_seconds
from sandpty.server.dialects.e2b.replies import json_reply, no_content, sandbox_reply
from sandpty.server.dialects.e2b.requests import read_json
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import HistoryArgs, HistoryEntry, Limits, Sandbox

_NAMES = {"created": "create", "paused": "pause", "resumed": "resume"}
_ENDS = {"timeout": "timeout", "killed": "delete", "shutdown": "delete"}
_STATUS = {"create": 201, "resume": 201, "pause": 204, "delete": 204, "timeout": 200}


class ResetBody(msgspec.Struct, frozen=True):
    """POST /sandboxes/{id}/reset. `resume` false: it stays paused. `timeout` is seconds; without one the end stays."""

    resume: bool = True
    timeout: int | None = None


class CloneBody(msgspec.Struct, frozen=True):
    """POST /sandboxes/{id}/clone. `strict`: all or none. No `timeout` (seconds): a clone ends when its source does."""

    count: int = 1
    strict: bool = False
    timeout: int | None = None


class HotplugBody(msgspec.Struct, frozen=True):
    """POST /sandboxes/{id}/hotplug-memory: how much more."""

    requested_size_mib: int


class Novita:
    """The handlers."""

    def __init__(self, context: Context) -> None:
        self._registry = context.registry
        self._snapshots = context.registry.snapshots
        self._domain = context.settings.domain

    def routes(self) -> list[Row]:
        """To stand before E2B's: `quota` and `events` are no sandboxes' ids."""
        return [
            ("GET", "/sandboxes/quota", self.quota),
            ("GET", "/sandboxes/events", self.events),
            ("POST", "/sandboxes/{id}/reset", self.reset),
            ("POST", "/sandboxes/{id}/clone", self.clone),
            ("POST", "/sandboxes/{id}/hotplug-memory", self.hotplug),
            ("*", "/sandboxes/{id}/volume-mounts", self.mount),
        ]

    async def quota(self, request: web.Request, principal: Principal) -> web.Response:
        """There are no quotas of teams here: the limits are the host's, what is used is the team's."""
        running = [sandbox for sandbox in self._registry.list(principal) if sandbox.state == "running"]
        cpus, memory_mb = os.cpu_count() or 1, _host_memory_mb()
        limit = {
            "concurrentInstances": config.SANDBOXES_MAX,
            "concurrentVcpu": config.SANDBOXES_MAX * cpus,  # CPUs are shared, not handed out
            "concurrentRamMb": memory_mb,
            "maxLengthHours": config.TIMEOUT_MAX_S // 3600,
            "diskMb": Limits().disk_mb,
            "maxVcpu": cpus,
            "maxRamMb": memory_mb,
        }
        usage = {
            "concurrentInstances": len(running),
            "concurrentVcpu": sum(_cpus(sandbox) for sandbox in running),
            "concurrentRamMb": sum(sandbox.limits.memory_mb for sandbox in running),
        }
        return json_reply({"limit": limit, "usage": usage})

    async def events(self, request: web.Request, principal: Principal) -> web.Response:
        """What became of the team's sandboxes, also of those that are no more; newest first unless `orderAsc`."""
        query = request.query
        since, until = unix_seconds(request, "startTime"), unix_seconds(request, "endTime")
        entries = await self._registry.history(
            HistoryArgs(
                owner=principal.id,
                sandbox=query.get("sandboxID", "").partition("-")[0],
                since=since or 0,
                until=0 if until is None else until + 1 - 1e-6,  # with the whole of its second
                limit=config.HISTORY_ENTRIES_MAX,
            )
        )
        found = _wanted([_event(entry) for entry in entries], query)
        if query.get("orderAsc", "").lower() != "true":
            found.reverse()
        offset = unix_seconds(request, "offset") or 0
        limit = config.LIST_PAGE_MAX if (given := unix_seconds(request, "limit")) is None else given
        if not 1 <= limit <= config.LOG_LINES_MAX:
            raise bad_request(f"limit goes from 1 to {config.LOG_LINES_MAX}, not {limit}")
        page = found[offset : offset + limit]
        return json_reply({"items": page, "total": len(found), "hasMore": offset + len(page) < len(found)})

    async def reset(self, request: web.Request, principal: Principal) -> web.Response:
        """200. 409 (the SDKs: False) when it was paused without its memory and stays so: there is nothing to do."""
        body = await read_json(request, ResetBody)
        sandbox = self._registry.get(request.match_info["id"], principal)
        ends = self._ends(sandbox, body)
        frozen = sandbox.state == "paused" and sandbox.paused_memory
        if frozen:
            await self._registry.resume(sandbox.id, principal, ends, memory=False)
        elif sandbox.state == "paused" and not body.resume:
            raise HttpError(409, f"Sandbox '{sandbox.id}' has no memory to reset")
        if sandbox.state == "running" or (frozen and not body.resume):
            await self._registry.pause(sandbox.id, principal, memory=False)
        if body.resume and not frozen:
            await self._registry.resume(sandbox.id, principal, ends)
        return json_reply({})

    async def clone(self, request: web.Request, principal: Principal) -> web.Response:
        """201 with the sandboxes that were made; without `strict` they may be fewer than asked for, but not none."""
        body = await read_json(request, CloneBody)
        sandbox = self._registry.get(request.match_info["id"], principal)
        timeout_s: float = timeout_of(body.timeout, config.SANDBOX_TIMEOUT_V1_S)
        if body.timeout is None and sandbox.state == "running":
            timeout_s = max(0.0, sandbox.end_at - time.time())
        forks = await self._snapshots.fork(sandbox.id, principal, count=body.count, timeout_s=timeout_s)
        made = [fork for fork in forks if isinstance(fork, Sandbox)]
        failed = [fork for fork in forks if isinstance(fork, SandptyError)]
        if failed and (body.strict or not made):
            for clone in made:
                with contextlib.suppress(SandptyError):  # the first that failed says why
                    await self._registry.kill(clone.id, principal)
            raise failed[0]
        return json_reply({"sandboxes": [sandbox_reply(clone, self._domain) for clone in made]}, 201)

    async def hotplug(self, request: web.Request, principal: Principal) -> web.Response:
        """More memory for a sandbox that runs, at most the host's."""
        body = await read_json(request, HotplugBody)
        sandbox = self._registry.running(request.match_info["id"], principal)

        def more(memory_mb: int) -> int:
            memory_mb += body.requested_size_mib
            if body.requested_size_mib < 1 or memory_mb > _host_memory_mb():
                raise bad_request(
                    f"requested_size_mib goes from 1 to what this host has; it would be {memory_mb} MiB in all"
                )
            return memory_mb

        await self._registry.change_memory(sandbox.id, principal, more)
        return no_content()

    async def mount(self, request: web.Request, principal: Principal) -> web.Response:
        self._registry.get(request.match_info["id"], principal)
        raise HttpError(501, "volumes are mounted when a sandbox is created: name them in volumeMounts")

    def _ends(self, sandbox: Sandbox, body: ResetBody) -> float:
        if body.timeout is None and sandbox.state == "running":
            return sandbox.end_at
        return end_at(timeout_of(body.timeout, config.SANDBOX_TIMEOUT_S))


def _host_memory_mb() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (1024 * 1024)


def _cpus(sandbox: Sandbox) -> int:
    return max(1, round(sandbox.limits.cpu_count))


def _event(entry: HistoryEntry) -> dict[str, Any]:
    name = _ENDS.get(entry.reason, "delete") if entry.kind == "ended" else _NAMES[entry.kind]
    failed = entry.kind == "ended" and entry.reason not in _ENDS
    return {
        "eventID": entry.id,
        "recordAt": int(entry.at),
        "templateID": entry.template,
        "templateName": entry.template,
        "sandboxID": entry.sandbox,
        "eventName": name,
        "state": "failed" if failed else "success",
        "errorMsg": entry.reason.replace("_", " ") if failed else "",
        "statusCode": 500 if failed else _STATUS[name],
    }


def _wanted(events: Sequence[dict[str, Any]], query: Any) -> list[dict[str, Any]]:
    """By name (a comma list), state and template."""
    names = {name for name in query.get("events", "").split(",") if name}
    return [
        event
        for event in events
        if (not names or event["eventName"] in names)
        and query.get("state", "") in ("", event["state"])
        and query.get("templateID", "") in ("", event["templateID"])
    ]
