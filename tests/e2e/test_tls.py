"""`sandpty serve` with TLS, and `sandpty ca`."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandpty import AsyncSandbox, Sandbox, ServerUnreachableError
from tests.e2e.test_cli_commands import assert_one_line
from tests.e2e.test_cli_serve import refused
from tests.server_fixture import RunningServer, running_server, sandpty

DOMAIN = "own.test"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and a key of one's own, which only root can read."""
    directory = tmp_path_factory.mktemp("tls")
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={DOMAIN}", "-addext", f"subjectAltName=DNS:{DOMAIN},DNS:*.{DOMAIN},IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    os.chmod(key, 0o600)
    return cert, key


@pytest.fixture(scope="module")
def secure(files: tuple[Path, Path]) -> Iterator[RunningServer]:
    """A server with it."""
    cert, key = map(str, files)
    with running_server("--domain", DOMAIN, "--tls-port", "0", "--tls-cert", cert, "--tls-key", key) as server:
        yield server


def tls_port(server: RunningServer) -> int:
    """Where it listens for TLS."""
    domain: str = json.loads((server.data_dir / "server.json").read_text())["domain"]
    return int(domain.rpartition(":")[2])


def ask(server: RunningServer, cert: Path, name: str, host: str, path: str = "/healthz") -> tuple[int, bytes]:
    """Status and body of a GET over TLS for `name`."""
    context = ssl.create_default_context(cafile=str(cert))
    address = ("127.0.0.1", tls_port(server))
    with (
        socket.create_connection(address, timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=name) as connected,
    ):
        connected.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connected.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_ones_own_certificate_is_served(secure: RunningServer, files: tuple[Path, Path]) -> None:
    """For the domain and for the names below it; the server's account could not have read the key."""
    assert ask(secure, files[0], DOMAIN, DOMAIN)[0] == 200
    unknown = f"80-i{'0' * 20}.{DOMAIN}"
    status, body = ask(secure, files[0], unknown, unknown)
    assert (status, json.loads(body)["message"]) == (502, "The sandbox was not found")
    # Below the domain every name of this form is a sandbox's.
    status, body = ask(secure, files[0], f"80-other.{DOMAIN}", f"80-other.{DOMAIN}:1")
    assert (status, json.loads(body)["sandboxId"]) == (502, "other")


TEXT = "".join(f"{number:07}\n" for number in range(100_000))  # more than sockets hold


def test_the_sdk_reads_and_types_at_once_over_tls(
    secure: RunningServer, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread reads what another types, on one connection; then the same by tasks. A stranger is not believed."""
    url = f"https://127.0.0.1:{tls_port(secure)}"
    with pytest.raises(ServerUnreachableError, match="certificate"):
        Sandbox(url=url, api_key=secure.api_key)
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
    with Sandbox(url=url, api_key=secure.api_key) as sandbox:
        said: list[str] = []
        echo = sandbox.commands.run("cat", background=True, on_stdout=said.append, stdin=True)
        echo.send_stdin(TEXT)
        sandbox.commands.close_stdin(echo.pid)
        echo.wait()
        assert "".join(said) == TEXT
        assert asyncio.run(_echoed(url, secure.api_key, sandbox.id)) == TEXT


async def _echoed(url: str, key: str, sandbox_id: str) -> str:
    sandbox = await AsyncSandbox.connect(sandbox_id, url=url, api_key=key)
    said: list[str] = []
    echo = await sandbox.commands.run("cat", background=True, on_stdout=said.append, stdin=True)
    await echo.send_stdin(TEXT)
    await sandbox.commands.close_stdin(echo.pid)
    await echo.wait()
    await sandbox.close()
    return "".join(said)


def test_a_connection_for_one_name_serves_no_other(secure: RunningServer, files: tuple[Path, Path]) -> None:
    """The Host of a sandbox on a connection for another name: 421."""
    assert ask(secure, files[0], DOMAIN, f"80-i{'0' * 20}.{DOMAIN}")[0] == 421


def test_old_protocols_are_refused(secure: RunningServer) -> None:
    """TLS 1.2 is the oldest."""
    address = f"127.0.0.1:{tls_port(secure)}"
    old = ["openssl", "s_client", "-connect", address, "-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"]
    done = subprocess.run(old, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--tls-port", "0"], "--domain"),
        (["--tls-port", "0", "--domain", "localhost"], "two parts"),
        (["--tls-cert", "/nonexistent", "--domain", DOMAIN], "--tls-key"),
        (["--tls-cert", "/nonexistent", "--tls-key", "/nonexistent", "--domain", DOMAIN], "cannot be read"),
        (["--tls-cert", "/etc/passwd", "--tls-key", "/etc/passwd", "--domain", DOMAIN], "no certificate"),
    ],
)
def test_half_of_what_tls_needs_is_told_in_one_line(tmp_path: Path, words: list[str], what: str) -> None:
    """Before anything is started."""
    assert_one_line(refused("--data-dir", str(tmp_path / "data"), "--port", "0", *words), 2, what)


def test_ca_prints_the_one_command_that_trusts_it(tmp_path: Path) -> None:
    """It makes an authority when asked to, and says where there is none."""

    def ca(*words: str) -> subprocess.CompletedProcess[str]:
        command = sandpty("ca", "--data-dir", str(tmp_path), *words)
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert_one_line(ca(), 1, "no local certificate authority", "--domain")
    made = ca("--domain", DOMAIN)
    assert made.returncode == 0, made.stderr
    certificate = tmp_path / "ca" / DOMAIN / "ca.pem"
    commands = [line for line in made.stdout.splitlines() if not line.startswith("#")]
    trusting = f"sudo install -m 644 {certificate} /usr/local/share/ca-certificates/sandpty-{DOMAIN}.crt"
    assert commands[0] == f"{trusting} && sudo update-ca-certificates"
    assert f"NODE_EXTRA_CA_CERTS={certificate}" in commands[1]
    assert ca().stdout == made.stdout  # the same one
