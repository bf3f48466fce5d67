"""E2B's metrics of sandboxes: GET /sandboxes/{id}/metrics, and the newest of many in one request."""

from __future__ import annotations

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.e2b.errors import bad_request
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.listing import rfc3339
from sandpty.server.dialects.e2b.replies import json_reply
from sandpty.server.metrics import Sample
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

_MIB = 1024 * 1024


class SandboxMetric(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All members are required by the SDKs. Bytes; cpuUsedPct is of all CPUs, 0 to 100."""

    timestamp: str
    timestamp_unix: int
    cpu_count: int
    cpu_used_pct: float
    mem_used: int
    mem_total: int
    mem_cache: int
    disk_used: int
    disk_total: int


def metric(sandbox: Sandbox, sample: Sample) -> SandboxMetric:
    """memUsed is without memCache, as `free` counts."""
    limits = sandbox.limits
    return SandboxMetric(
        timestamp=rfc3339(sample.at),
        timestamp_unix=int(sample.at),
        cpu_count=max(1, round(limits.cpu_count)),
        cpu_used_pct=round(sample.cpu_pct, 2),
        mem_used=sample.used_bytes,
        mem_total=limits.memory_mb * _MIB,
        mem_cache=sample.cache_bytes,
        disk_used=sample.disk_bytes,
        disk_total=limits.disk_mb * _MIB,
    )


def unix_seconds(request: web.Request, name: str) -> int | None:
    """A query parameter, None when it is absent. Raises HttpError 400."""
    raw = request.query.get(name)
    if raw is None or raw == "":
        return None
    if not (raw.isascii() and raw.isdigit() and len(raw) <= 12):
        raise bad_request(f"{name} is not a number of unix seconds: {raw[:40]!r}")
    return int(raw)


class Measures:
    """The handlers."""

    def __init__(self, context: Context) -> None:
        self._registry = context.registry
        self._metrics = context.metrics

    def routes(self) -> list[Row]:
        return [
            ("GET", "/sandboxes/metrics", self.newest),
            ("GET", "/sandboxes/{id}/metrics", self.metrics),
        ]

    async def metrics(self, request: web.Request, principal: Principal) -> web.Response:
        """Oldest first. `end` includes its whole second."""
        sandbox = self._registry.get(request.match_info["id"], principal)
        start, end = unix_seconds(request, "start"), unix_seconds(request, "end")
        if start is not None and end is not None and start > end:
            raise bad_request("start is after end")
        await self._metrics.latest(sandbox)  # so that a sandbox that was just made has one
        samples = self._metrics.of(sandbox).samples(start, None if end is None else end + 1 - 1e-6)
        return json_reply([metric(sandbox, sample) for sample in samples])

    async def newest(self, request: web.Request, principal: Principal) -> web.Response:
        """The newest of each of `sandbox_ids`, a comma list; those that are not there are left out."""
        ids = [id_ for id_ in ",".join(request.query.getall("sandbox_ids", [])).split(",") if id_]
        if not ids or len(ids) > config.METRICS_BATCH_MAX:
            raise bad_request(f"sandbox_ids names 1 to {config.METRICS_BATCH_MAX} sandboxes")
        found: dict[str, SandboxMetric] = {}
        for sandbox_id in ids:
            try:
                sandbox = self._registry.get(sandbox_id, principal)
            except SandptyError:
                continue
            sample = await self._metrics.latest(sandbox)
            if sample is not None:
                found[sandbox.id] = metric(sandbox, sample)
        return json_reply({"sandboxes": found})
