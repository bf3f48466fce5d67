"""A template of an image of 200 MB: its import from a registry, and cold creates from it, beside `base` itself."""

from __future__ import annotations

import json
import subprocess
import time

from tests.oci_images import Image, base_root
from tests.registry_fixture import running_registry
from tests.server_fixture import sandpty

from benchmarks.results import Report, p50, p99
from benchmarks.server import Bench, Server, create_from

TITLE = "Images: import, and cold create from one"
ROUNDS = 20
NAME = "measured"
GOAL_COLD_MS = 25.0  # as of any other template


def _image() -> Image:
    """The files of `base` as one layer: 230 MB."""
    argv = ["tar", "-C", str(base_root()), "--format=posix", "--numeric-owner", "--xattrs", "-cf", "-", "."]
    tree = subprocess.run(argv, check=True, capture_output=True).stdout
    return Image(
        [tree], {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["bash"]}
    )


def _import(server: Server, reference: str) -> tuple[float, int]:
    """Seconds, and bytes on the disk."""
    begin = time.perf_counter()
    argv = sandpty(
        "template", "import", reference, "--name", NAME, "--json", "--data-dir", str(server.running.data_dir)
    )
    said = subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
    return time.perf_counter() - begin, int(json.loads(said)["size_bytes"])


def run(bench: Bench) -> Report:
    """The two templates by turns, without a pool."""
    report = Report("images", TITLE)
    server = bench.server(0)
    with running_registry() as registry:
        reference = registry.push(_image(), "base")
        first_s, size_bytes = _import(server, reference)
        again_s, _ = _import(server, reference)
    ways = {"from the image": NAME, "from `base`, which holds the same files": "base"}
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for template in ways.values():
        create_from(server, template)  # the first reads the template's files from the disk
    for _ in range(bench.rounds(ROUNDS)):
        for way, template in ways.items():
            taken[way].append(create_from(server, template))
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
    report.goal(
        "cold create from the image: created p50",
        p50([s["created"] for s in taken["from the image"]]),
        GOAL_COLD_MS,
        "ms",
    )
    megabytes = size_bytes / 1e6
    report.notes.append(
        f"import of {megabytes:.0f} MB from a registry on loopback: {first_s:.1f} s; again: {again_s:.2f} s"
    )
    bench.stop_server(0)
    return report
