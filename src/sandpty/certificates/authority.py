"""A certificate authority for one domain: it can vouch for that domain's names and this machine's loopback, no others.

Name constraints (RFC 5280 4.2.1.10) make it harmless to trust: whoever steals its key can pose as no other site.
"""

from __future__ import annotations

import datetime
from ipaddress import ip_address, ip_network
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sandpty.certificates.store import write

_CA_DAYS = 3650
_LEAF_DAYS = 90  # a stolen key is of use for as long at most
RENEW_DAYS = 30  # before the end
_BACKDATED = datetime.timedelta(hours=1)  # for clients whose clocks are slow
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_ADDRESSES = (ip_address("127.0.0.1"), ip_address("::1"))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def ensure(directory: Path, domain: str) -> bool:
    """Make what is missing, renew what expires soon. True: there is a new certificate. Raises OSError."""
    for made in (directory.parent, directory):
        made.mkdir(mode=0o755, exist_ok=True)
        made.chmod(0o755)  # everybody may read ca.pem
    if _expires_within(directory / "ca.pem", RENEW_DAYS) or not (directory / "ca.key").exists():
        _make_authority(directory, domain)
        (directory / "leaf.pem").unlink(missing_ok=True)
    if _expires_within(directory / "leaf.pem", RENEW_DAYS) or not (directory / "leaf.key").exists():
        _make_leaf(directory, domain)
        return True
    return False


def expiry(path: Path) -> datetime.datetime:
    """Raises OSError, ValueError."""
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc


def _expires_within(path: Path, days: int) -> bool:
    try:
        return expiry(path) - _now() < datetime.timedelta(days=days)
    except (OSError, ValueError):
        return True


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _BACKDATED)
        .not_valid_after(_now() + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _make_authority(directory: Path, domain: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"sandpty local authority of {domain}"[:64])])
    permitted = [x509.DNSName(domain), *(x509.IPAddress(network) for network in _LOOPBACK)]
    certificate = (
        _builder(name, name, key.public_key(), _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    write(directory / "ca.key", _key_pem(key), 0o600)
    write(directory / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _make_leaf(directory: Path, domain: str) -> None:
    authority = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    signer = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName(domain), x509.DNSName(f"*.{domain}"), *(x509.IPAddress(each) for each in _ADDRESSES)]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"*.{domain}"[:64])])
    certificate = (
        _builder(subject, authority.subject, key.public_key(), _LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_issuer_id(authority), critical=False)
        .sign(signer, hashes.SHA256())
    )
    write(directory / "leaf.key", _key_pem(key), 0o600)
    write(directory / "leaf.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _issuer_id(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
