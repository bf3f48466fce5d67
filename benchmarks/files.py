"""Files of a sandbox: big ones up and down, against nginx; small ones; a big directory."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import until_sync

from benchmarks.results import Report, p50, p99
from benchmarks.sdk import Worker, worker
from benchmarks.server import SANDBOX_S, Bench, Server

TITLE = "Files: up, down, small and many"
BIG_BYTES = 1024 * 1024 * 1024
ROUNDS = 3
SMALL_TIMES = 200
MANY = 10_000
LIST_TIMES = 5
GOAL_RATIO = 0.5
GOAL_LIST_MS = 300.0
GOAL_SMALL_MS = 2.0
CURL_TIMEOUT_S = 60
CONFIGURATION = """
daemon off; user root; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log;
events {{}}
http {{
  access_log off; sendfile on; client_max_body_size 0; client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u;
  scgi_temp_path {directory}/s;
  server {{ listen 127.0.0.1:{port}; root {directory}; location /up/ {{ dav_methods PUT; }} }}
}}
"""


@contextmanager
def _nginx(bench: Bench) -> Iterator[str]:
    """nginx with one worker, serving a directory of the benchmark's; its URL."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        raise FileNotFoundError("nginx, which this is compared with, is not installed: apt-get install nginx-light")
    directory = bench.directory / "nginx"
    (directory / "up").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configuration = directory / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(directory=directory, port=port))
    process = subprocess.Popen([program, "-c", str(configuration)], stderr=subprocess.DEVNULL)
    try:
        until_sync(lambda: (directory / "pid").exists() and _answers(port), what="nginx listens")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=10)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _curl(*words: str) -> float:
    """Megabytes per second, as curl says."""
    what = "%{http_code} %{speed_download} %{speed_upload} %{size_download} %{size_upload}"
    command = ["curl", "--silent", "--output", "/dev/null", "--write-out", what, "-H", "Expect:", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=CURL_TIMEOUT_S)
    status, down, up, received, sent = result.stdout.split()
    if not status.startswith("2") or max(int(received), int(sent)) < BIG_BYTES:
        raise RuntimeError(f"curl of {words[-1]}: {result.stdout}")
    return (float(down) if int(received) >= BIG_BYTES else float(up)) / 1e6


def _cold(source: Path, url: str) -> float:
    """As `_curl`, of a file that is not in memory: what the disk gives. No goal stands on it."""
    with source.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return _curl(url)


def _ways(server: Server, sdk: Worker, nginx: str, source: Path) -> dict[str, Callable[[], float]]:
    """Each way of moving the big file once; megabytes per second."""
    opened = sdk.ask("opened")
    headers = ["-H", f"E2b-Sandbox-Id: {opened['id']}", "-H", "E2b-Sandbox-Port: 49983"]
    headers += ["-H", f"X-Access-Token: {opened['token']}"]
    ours = f"{server.url}/files?path=/home/user/big&username=user"
    octets = ["-X", "POST", "-H", "Content-Type: application/octet-stream"]

    def through_sdk(op: str, **order: object) -> float:
        return BIG_BYTES / 1e6 / float(sdk.ask(op, **order))

    return {
        "upload, curl": lambda: _curl("-T", str(source), *octets, *headers, ours),
        "upload, curl to nginx": lambda: _curl("-T", str(source), f"{nginx}/up/big"),
        "upload, SDK": lambda: through_sdk("upload", source=str(source)),
        "upload, httpx to nginx": lambda: through_sdk("put", source=str(source), url=f"{nginx}/up/big"),
        "download, curl": lambda: _curl(*headers, ours),
        "download, curl from nginx": lambda: _curl(f"{nginx}/big"),
        "download, curl from nginx, file on disk alone": lambda: _cold(source, f"{nginx}/big"),
        "download, SDK": lambda: through_sdk("download"),
        "download, httpx from nginx": lambda: through_sdk("get", url=f"{nginx}/big"),
    }


def _big(bench: Bench, server: Server, sdk: Worker, report: Report) -> None:
    with _nginx(bench) as nginx:
        source = bench.directory / "nginx" / "big"
        with source.open("wb") as file:
            for _ in range(BIG_BYTES >> 20):
                file.write(bytes(1 << 20))
        ways = _ways(server, sdk, nginx, source)
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(bench.rounds(ROUNDS)):
            for way, move in ways.items():
                speeds[way].append(move())
        source.unlink()
    for way, found in speeds.items():
        report.row(f"1 GiB: {way}", MB_per_s=round(p50(found)))
    for direction, client in (("upload", "curl"), ("upload", "SDK"), ("download", "curl"), ("download", "SDK")):
        other = "curl" if client == "curl" else "httpx"
        beside = speeds[f"{direction}, {other} {'to' if direction == 'upload' else 'from'} nginx"]
        ratio = p50(speeds[f"{direction}, {client}"]) / p50(beside)
        report.goal(f"1 GiB {direction}, {client}, of nginx's speed", ratio, GOAL_RATIO, "x", at_least=True)


def run(bench: Bench) -> Report:
    """Interleaved: each round moves the big file once in every way."""
    report = Report("files", TITLE)
    server = bench.server()
    with worker() as sdk:
        sdk.ask("open", url=server.url, key=server.key)
        try:
            small = sdk.ask("small", times=bench.rounds(SMALL_TIMES))
            bare = [_health(server) for _ in range(bench.rounds(SMALL_TIMES))]
            listed = sdk.ask("list", count=MANY, times=LIST_TIMES)
            report.row("write and read 1 KB, SDK", p50_ms=p50(small), p99_ms=p99(small))
            report.row("a request that does nothing, no SDK", p50_ms=p50(bare), p99_ms=p99(bare))
            report.row(f"list {MANY:,} entries, SDK", p50_ms=p50(listed), p99_ms=p99(listed))
            report.goal(f"list {MANY:,} entries", p50(listed), GOAL_LIST_MS, "ms")
            server_ms = sdk.ask("small_server", times=bench.rounds(SMALL_TIMES))
            report.row("write and read 1 KB, no SDK", p50_ms=p50(server_ms), p99_ms=p99(server_ms))
            report.goal("write and read 1 KB, the server's share", p50(server_ms), GOAL_SMALL_MS, "ms")
            _big(bench, server, sdk, report)
        finally:
            sdk.ask("close")
    report.notes.append(f"sandboxes live {SANDBOX_S} s; nginx serves with one worker and sendfile")
    return report


def _health(server: Server) -> float:
    start = time.perf_counter()
    with server.http() as http:
        http.request("GET", "/healthz")
    return (time.perf_counter() - start) * 1e3
