"""/v1: what sandboxes use, their logs, and this server's own figures for an operator's Prometheus."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from aiohttp import web

from sandpty import __version__, config, disk_room
from sandpty.server.context import Context
from sandpty.server.dialects.native.answers import SANDBOX, answering, number, principal
from sandpty.server.dialects.native.models import when
from sandpty.server.sandbox_log import sandbox_log
from sandpty.wire.errors import SandptyError

OPERATORS_TEAM = "default"  # the first key's: who has it runs this server
# name, type, help, samples: (labels, value)
Family: TypeAlias = tuple[str, str, str, Sequence[tuple[str, float]]]


class Measures:
    """Handlers; each is one line of the table in docs/reference/protocol.md."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return [
            web.get(SANDBOX + "/metrics", self.metrics),
            web.get(SANDBOX + "/log", self.log),
            web.get("/v1/team", self.team),
            web.get("/v1/metrics", self.exposition),
        ]

    @answering
    async def metrics(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        sandbox = self._context.registry.get(request.match_info["sandbox"], who)
        start = number(request, "start", 0, config.LOG_TIME_MAX_MS)
        end = number(request, "end", config.LOG_TIME_MAX_MS, config.LOG_TIME_MAX_MS)
        await self._context.metrics.latest(sandbox)  # so that a sandbox that was just made has one
        samples = self._context.metrics.of(sandbox).samples(start, end + 1 - 1e-6)
        return web.json_response({"samples": [{**dataclasses.asdict(each), "at": when(each.at)} for each in samples]})

    @answering
    async def log(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        lines = await sandbox_log(self._context.registry, request.match_info["sandbox"], who)
        return web.json_response({"lines": [{**dataclasses.asdict(each), "at": when(each.at)} for each in lines]})

    @answering
    async def team(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        return web.json_response({"id": who.id, "name": who.team_name, "key": {"id": who.key, "name": who.key_name}})

    @answering
    async def exposition(self, request: web.Request) -> web.Response:
        """Of all teams together, so it is the operator's: the default team's keys."""
        if principal(self._context, request).team_name != OPERATORS_TEAM:
            raise SandptyError("forbidden", f"this server's figures are for keys of the team {OPERATORS_TEAM}")
        text = exposition([*self._sandboxes(), *_process()])
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def _sandboxes(self) -> Iterable[Family]:
        registry, metrics = self._context.registry, self._context.metrics
        counts = registry.count_by_state()
        samples = [(each, metrics.of(each).latest()) for each in registry.all_running()]
        known = [(sandbox, sample) for sandbox, sample in samples if sample is not None]
        tier = f'version="{__version__}",tier="{registry.host.tier}"'
        yield "sandpty_info", "gauge", "What serves, always 1.", [(tier, 1)]
        yield "sandpty_supervisor_up", "gauge", "Whether the supervisor answers.", [("", float(registry.ready))]
        states: list[tuple[str, float]] = [(f'state="{state}"', count) for state, count in counts.items()]
        yield "sandpty_sandboxes", "gauge", "Sandboxes of all teams.", states
        scarce = disk_room.is_scarce(self._context.settings.data_dir.root)
        yield "sandpty_disk_scarce", "gauge", "Whether the data directory's disk is almost full.", [("", float(scarce))]
        yield "sandpty_sandboxes_max", "gauge", "Sandboxes this host holds at most.", [("", config.SANDBOXES_MAX)]
        cpus = sum(sample.cpu_pct * sandbox.limits.cpu_count / 100 for sandbox, sample in known)
        yield "sandpty_sandboxes_cpus_used", "gauge", "CPUs that running sandboxes keep busy.", [("", cpus)]
        for name, text in (
            ("memory_bytes", "Memory of running sandboxes, with files' contents in it."),
            ("cache_bytes", "Of that, what the kernel can drop."),
            ("disk_bytes", "What running sandboxes have written."),
            ("processes", "Processes in running sandboxes."),
        ):
            total = sum(getattr(sample, name) for _, sample in known)
            yield f"sandpty_sandboxes_{name}", "gauge", text, [("", total)]


def _process() -> Iterable[Family]:
    """The server itself, by the names that Prometheus' clients use."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm", encoding="ascii") as statm:
        resident = int(statm.read().split()[1]) * resource.getpagesize()
    cpu_s = used.ru_utime + used.ru_stime
    yield "process_cpu_seconds_total", "counter", "CPU time of the server.", [("", cpu_s)]
    yield "process_resident_memory_bytes", "gauge", "Memory of the server.", [("", resident)]
    yield "process_open_fds", "gauge", "Open descriptors of the server.", [("", len(os.listdir("/proc/self/fd")))]


def exposition(families: Iterable[Family]) -> str:
    """Prometheus' text format, version 0.0.4."""
    lines: list[str] = []
    for name, kind, text, samples in families:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [
            f"{name}{{{labels}}} {_number(value)}" if labels else f"{name} {_number(value)}"
            for labels, value in samples
        ]
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
