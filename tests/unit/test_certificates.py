"""The local certificate authority, and the certificate that the server loads."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sandpty.certificates import authority, store
from sandpty.certificates.store import Choice
from sandpty.config import DataDir
from sandpty.server.tls import Tls
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Certificate
from tests.waiting import until

DOMAIN = "sandboxes.test"


def made(tmp_path: Path, domain: str = DOMAIN) -> Path:
    """An authority's directory, new."""
    directory = tmp_path / "ca" / domain
    assert authority.ensure(directory, domain)
    return directory


def verifies(directory: Path, certificate: Path, purpose: str = "sslserver") -> bool:
    """Whether OpenSSL believes a certificate by our authority."""
    argv = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(directory / "ca.pem")]
    return subprocess.run([*argv, str(certificate)], capture_output=True, check=False).returncode == 0


def signed(directory: Path, name: x509.GeneralName) -> Path:
    """A certificate for any name, by whoever stole the authority's key."""
    signer = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
    issuer = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.UTC)
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    stolen = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(x509.SubjectAlternativeName([name]), critical=True)
        .sign(signer, hashes.SHA256())
    )
    path = directory / "stolen.pem"
    path.write_bytes(stolen.public_bytes(serialization.Encoding.PEM))
    return path


def test_the_authority_vouches_for_its_domain_only(tmp_path: Path) -> None:
    """Whoever steals its key can pose as no other site, and make no other authority."""
    directory = made(tmp_path)
    assert verifies(directory, directory / "leaf.pem")
    assert verifies(directory, signed(directory, x509.DNSName(f"8080-ix.{DOMAIN}")))
    for name in ("example.com", "sandboxes.test.example.com", "evilsandboxes.test", "test"):
        assert not verifies(directory, signed(directory, x509.DNSName(name))), name
    assert not verifies(directory, signed(directory, x509.IPAddress(ipaddress.ip_address("10.0.0.1"))))


def test_keys_are_roots_alone(tmp_path: Path) -> None:
    """0600; what everybody may read is the certificates."""
    directory = made(tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {"ca.key": 0o600, "ca.pem": 0o644, "leaf.key": 0o600, "leaf.pem": 0o644}


def test_a_certificate_is_renewed_before_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same authority: what trusts it goes on to do so. One that is fresh is left alone."""
    monkeypatch.setattr(authority, "_LEAF_DAYS", authority.RENEW_DAYS - 1)
    directory = made(tmp_path)
    before, trusted = (directory / "leaf.pem").read_bytes(), (directory / "ca.pem").read_bytes()
    monkeypatch.setattr(authority, "_LEAF_DAYS", 90)
    assert authority.ensure(directory, DOMAIN)
    assert (directory / "leaf.pem").read_bytes() != before
    assert (directory / "ca.pem").read_bytes() == trusted
    assert not authority.ensure(directory, DOMAIN)
    assert verifies(directory, directory / "leaf.pem")


@pytest.mark.parametrize(
    "text", ["localhost", "", "a..b", "*.example.com", "-a.example", "exa mple.com", "../../etc", "1"]
)
def test_a_domain_that_cannot_have_a_wildcard_is_refused(text: str) -> None:
    """Before anything is made for it."""
    with pytest.raises(SandptyError) as caught:
        store.checked_domain(text)
    assert caught.value.reason.name == "bad_argument"


def test_domains_are_names_without_port() -> None:
    """In lower case."""
    assert store.checked_domain("Sandboxes.Test.:8443") == DOMAIN


def test_a_key_that_does_not_fit_is_told(tmp_path: Path) -> None:
    """Also files that are not there, and such that hold something else."""
    data = DataDir(tmp_path)
    one, two = made(tmp_path, "one.test"), made(tmp_path, "two.test")
    for cert, key in (
        (one / "leaf.pem", two / "leaf.key"),
        (one / "leaf.pem", one / "none"),
        (one / "leaf.key", one / "leaf.pem"),
    ):
        with pytest.raises(SandptyError) as caught:
            store.pair(data, Choice(cert=str(cert), key=str(key)))
        assert caught.value.reason.name == "bad_argument"
    chain, key_pem = store.pair(data, Choice(domain="one.test"))
    assert chain.startswith(b"-----BEGIN CERTIFICATE")
    assert key_pem.startswith(b"-----BEGIN PRIVATE KEY")


async def test_a_new_certificate_is_served_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New connections get it; while none is to be had, the old one serves on."""
    monkeypatch.setattr("sandpty.config.CERTIFICATE_CHECK_S", 0.01)
    data = DataDir(tmp_path)
    directory = made(tmp_path)

    class Source:
        asked = 0

        async def certificate(self) -> Certificate:
            self.asked += 1
            if self.asked == 2:
                raise SandptyError("supervisor_down", "for a moment")
            chain, key = store.pair(data, Choice(domain=DOMAIN))
            return Certificate(chain.decode(), key.decode())

    source = Source()
    tls = Tls(source)
    await tls.load()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=tls.context)
    running = asyncio.create_task(tls.run())
    trusting = ssl.create_default_context(cafile=str(directory / "ca.pem"))

    async def served() -> bytes:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting, server_hostname=f"80-x.{DOMAIN}")
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return bytes(certificate)

    try:
        first = await served()
        (directory / "leaf.pem").unlink()
        authority.ensure(directory, DOMAIN)

        async def renewed() -> bool:
            return await served() != first

        await until(renewed, 30)
        assert source.asked > 2
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.close()
