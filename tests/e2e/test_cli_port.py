"""`sandpty port`: what a sandbox serves on its loopback, on this machine."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from sandpty.sdk import AsyncSandbox, Sandbox, SandptyError
from tests.e2e.cli_fixture import Cli
from tests.server_fixture import RunningServer, sandpty
from tests.waiting import until_sync

SERVE = "cd /tmp && echo from-the-sandbox > page && exec python3 -m http.server --bind {address} {port}"


@pytest.fixture(scope="module")
def cli(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command line, with a home of its own."""
    return Cli(server, Path(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def box(cli: Cli) -> Iterator[str]:
    """One sandbox for this file, with services on both loopbacks."""
    with cli.sandbox() as made, serving(cli, made, "127.0.0.1", 8000), serving(cli, made, "::1", 8001):
        yield made


@contextmanager
def serving(cli: Cli, box: str, address: str, port: int) -> Iterator[None]:
    """A web server in the sandbox."""
    line = SERVE.format(address=address, port=port)
    command = sandpty("exec", "--no-stdin", box, "--", "bash", "-c", line)
    with subprocess.Popen(command, env=cli.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def forwarding(cli: Cli, box: str, *ports: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """`sandpty port`, and the ports of this machine that it says."""
    with subprocess.Popen(
        sandpty("port", box, *ports), env=cli.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in ports]
            found = [re.match(r"127\.0\.0\.1:(\d+) -> ", line) for line in lines]
            yield process, [int(each[1]) for each in found if each]
        finally:
            process.kill()


def page(port: int) -> str:
    """What the web server behind a port of this machine serves; empty while it is not there."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/page", timeout=20).text
    except httpx.HTTPError:
        return ""


def test_services_on_a_sandboxs_loopback_are_here(cli: Cli, box: str) -> None:
    """Several at once, IPv4 and IPv6; Ctrl-C ends it, with status 0."""
    with forwarding(cli, box, "8000:0", "8001:0") as (process, (first, second)):
        until_sync(lambda: page(first) == "from-the-sandbox\n", 30)
        until_sync(lambda: page(second) == "from-the-sandbox\n", 30)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_port_where_nobody_listens_says_so_and_waits_for_somebody(cli: Cli, box: str) -> None:
    """One line on stderr for each try; the command goes on."""
    with forwarding(cli, box, "8002:0") as (process, (port,)):
        assert page(port) == ""
        assert process.stderr is not None
        assert "nothing listens on port 8002" in process.stderr.readline()
        with serving(cli, box, "127.0.0.1", 8002):
            until_sync(lambda: page(port) == "from-the-sandbox\n", 30)
        assert process.poll() is None


def test_it_ends_with_its_sandbox(cli: Cli) -> None:
    """Status 1 and a line, once somebody wants to connect."""
    with cli.sandbox() as short_lived, forwarding(cli, short_lived, "8000:0") as (process, (port,)):
        cli.out("kill", short_lived)
        until_sync(lambda: page(port) == "" and process.poll() is not None, 30)
        assert process.returncode == 1
        assert process.stderr is not None
        assert process.stderr.read().startswith("sandpty: ")


def test_what_cannot_be_forwarded_is_one_line(cli: Cli, box: str) -> None:
    """A port in use, no port at all, no sandbox."""
    with forwarding(cli, box, "8000:0") as (_, (port,)):
        for words, status, said in (
            ((box, f"8000:{port}"), 1, "in use"),
            ((box, "8000:x"), 2, "GUEST_PORT[:LOCAL]"),
            ((box, "0"), 2, "GUEST_PORT[:LOCAL]"),
            ((box, "8000:65536"), 2, "GUEST_PORT[:LOCAL]"),
            (("i00000000000000000000", "8000:0"), 1, "does not exist"),
        ):
            done = cli.run("port", *words)
            assert (done.returncode, done.stderr.count("\n")) == (status, 1), done.stderr
            assert said in done.stderr


async def test_the_sdk_forwards_ports_too(cli: Cli, box: str) -> None:
    """`async with sandbox.forward_port(8000)`."""
    sandbox = await AsyncSandbox.connect(box, url=cli.server.url, api_key=cli.server.api_key)
    try:
        async with sandbox.forward_port(8000) as forward, httpx.AsyncClient(timeout=20) as http:
            said = await http.get(f"http://127.0.0.1:{forward.port}/page")
        assert said.text == "from-the-sandbox\n"
    finally:
        await sandbox.close()


def test_the_blocking_sdk_forwards_ports_too(cli: Cli, box: str) -> None:
    """`with sandbox.forward_port(8000)`: in a thread, which ends with it; a port that is taken is an error."""
    sandbox = Sandbox.connect(box, url=cli.server.url, api_key=cli.server.api_key)
    try:
        with sandbox.forward_port(8000) as forward:
            assert httpx.get(f"http://127.0.0.1:{forward.port}/page", timeout=20).text == "from-the-sandbox\n"
            with pytest.raises(SandptyError, match="cannot be had"):
                sandbox.forward_port(8000, forward.port).open()
        assert forward._thread.is_alive() is False
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{forward.port}/page", timeout=20)
    finally:
        sandbox.close()
