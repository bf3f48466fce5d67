"""The server dies in the middle of transfers: who sent or read is told, and the files are there for the next server."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from urllib.parse import urlparse

import httpx
import pytest
from e2b import Sandbox

from tests.conformance.conftest import Envd
from tests.server_fixture import RunningServer, running_server


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server that this file may kill."""
    with running_server() as running:
        yield running


def test_a_server_killed_in_the_middle_of_an_upload_reports_nothing_as_done(server: RunningServer) -> None:
    """The client's connection breaks; after the restart the sandbox is there, and takes the file again."""
    sandbox = Sandbox.create(timeout=300)
    sandbox.files.write("kept", "before")
    envd = Envd(server.url, sandbox)
    signed = sandbox.download_url("kept")
    parts = urlparse(envd.url)
    up = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    up.putrequest("POST", "/files?path=/tmp/up")
    size = 64 << 20
    for key, value in {**envd.headers, "Content-Type": "application/octet-stream", "Content-Length": str(size)}.items():
        up.putheader(key, value)
    up.endheaders()
    up.send(b"x" * (size // 2))
    server.kill()
    with pytest.raises((OSError, http.client.HTTPException)):  # noqa: PT012 - wherever it is noticed
        up.send(b"x" * (size // 2))
        up.getresponse()
    server.start()
    assert sandbox.files.read("kept") == "before"
    assert httpx.get(signed).text == "before"
    assert sandbox.files.get_info("/tmp/up").size < size
    sandbox.files.write("/tmp/up", "whole")
    assert sandbox.files.read("/tmp/up") == "whole"
    sandbox.kill()


def test_watches_end_with_their_server(server: RunningServer) -> None:
    """A polled one is unknown to the next server, rather than silent for ever."""
    sandbox = Sandbox.create(timeout=300)
    watch = sandbox.files.watch_dir("/tmp")
    server.kill()
    server.start()
    with pytest.raises(Exception, match="not found"):
        watch.get_new_events()
    sandbox.files.watch_dir("/tmp").stop()
    sandbox.kill()
