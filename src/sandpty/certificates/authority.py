"""A certificate authority for one domain: it can vouch for that domain's names and this machine's loopback, no others.

Name constraints (RFC 5280 4.2.1.10) make it harmless to trust: whoever steals its key can pose as no other site.
"""

from __future__ import annotations

import datetime
from ipaddress import ip_address, ip_network
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sandpty.certificates import signing
from sandpty.certificates.store import write

_CA_DAYS = 3650
_LEAF_DAYS = 90  # a stolen key is of use for as long at most
RENEW_DAYS = 30  # before the end
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_ADDRESSES = (ip_address("127.0.0.1"), ip_address("::1"))


def ensure(directory: Path, domain: str) -> bool:
    """Make what is missing, renew what expires soon. True: there is a new certificate. Raises OSError."""
    for made in (directory.parent, directory):
        made.mkdir(mode=0o755, exist_ok=True)
        made.chmod(0o755)  # everybody may read ca.pem
    if expires_within(directory / "ca.pem", RENEW_DAYS) or not (directory / "ca.key").exists():
        _make_authority(directory, domain)
        (directory / "leaf.pem").unlink(missing_ok=True)
    if expires_within(directory / "leaf.pem", RENEW_DAYS) or not (directory / "leaf.key").exists():
        _make_leaf(directory, domain)
        return True
    return False


def expiry(path: Path) -> datetime.datetime:
    """Raises OSError, ValueError."""
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc


def expires_within(path: Path, days: int) -> bool:
    """Also when there is none."""
    try:
        return expiry(path) - signing.now() < datetime.timedelta(days=days)
    except (OSError, ValueError):
        return True


def read(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority's certificate and key. Raises OSError, ValueError."""
    certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return certificate, key


def _make_authority(directory: Path, domain: str) -> None:
    key = signing.new_key()
    permitted = [x509.DNSName(domain), *(x509.IPAddress(network) for network in _LOOPBACK)]
    certificate = signing.authority(f"sandpty local authority of {domain}", key, _CA_DAYS, permitted=permitted)
    write(directory / "ca.key", signing.key_pem(key), 0o600)
    write(directory / "ca.pem", signing.pem(certificate), 0o644)


def _make_leaf(directory: Path, domain: str) -> None:
    issuer, signer = read(directory)
    key = signing.new_key()
    names = [x509.DNSName(domain), x509.DNSName(f"*.{domain}"), *(x509.IPAddress(each) for each in _ADDRESSES)]
    certificate = signing.leaf(issuer, signer, key.public_key(), names, title=f"*.{domain}", days=_LEAF_DAYS)
    write(directory / "leaf.key", signing.key_pem(key), 0o600)
    write(directory / "leaf.pem", signing.pem(certificate), 0o644)
