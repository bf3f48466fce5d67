"""A template of ten steps: its first build, a rebuild with nothing changed, and cold creates from it beside `base`."""

from __future__ import annotations

import time

from benchmarks.client import Http
from benchmarks.results import Report, p50, p99
from benchmarks.server import Bench, create_from

TITLE = "Builds: ten steps, and again with nothing changed"
ROUNDS = 20
REBUILDS = 10
NAME = "measured-build"
STEPS = 10
GOAL_REBUILD_S = 2.0
_POLL_S = 0.005


def _build(http: Http) -> float:
    """Seconds from the first request to the word that it is ready."""
    steps = [{"type": "RUN", "args": [f"head -c 1000000 /dev/urandom > file{number}"]} for number in range(STEPS)]
    begin = time.perf_counter()
    asked = http.request("POST", "/v3/templates", {"name": NAME})
    place = f"/templates/{asked['templateID']}/builds/{asked['buildID']}"
    http.request("POST", f"/v2{place}", {"fromTemplate": "base", "steps": steps})
    while (status := http.request("GET", f"{place}/status")["status"]) == "building":
        time.sleep(_POLL_S)
    assert status == "ready", status
    return time.perf_counter() - begin


def run(bench: Bench) -> Report:
    """Without a pool."""
    report = Report("builds", TITLE)
    server = bench.server(0)
    with server.http() as http:
        first_s = _build(http)
        rebuilds_s = [_build(http) for _ in range(bench.rounds(REBUILDS))]
    ways = {f"from the template, {STEPS} layers": NAME, "from `base`": "base"}
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for template in ways.values():
        create_from(server, template)
    for _ in range(bench.rounds(ROUNDS)):
        for way, template in ways.items():
            taken[way].append(create_from(server, template))
    report.row("first build", p50_ms=first_s * 1e3, times="1")
    report.row("rebuild, nothing changed", p50_ms=p50(rebuilds_s) * 1e3, times=str(len(rebuilds_s)))
    for way, samples in taken.items():
        created, prompt = ([sample[step] for sample in samples] for step in ("created", "prompt"))
        report.row(
            f"cold create {way}",
            created_p50_ms=p50(created),
            created_p99_ms=p99(created),
            prompt_p50_ms=p50(prompt),
            prompt_p99_ms=p99(prompt),
            times=str(len(samples)),
        )
    report.goal("rebuild with nothing changed: p50", p50(rebuilds_s), GOAL_REBUILD_S, "s")
    bench.stop_server(0)
    return report
