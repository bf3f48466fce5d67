"""Who gives tokens to a registry's clients (github.com/distribution/distribution, "Token Authentication")."""

from __future__ import annotations

import base64
import datetime
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

ISSUER, SERVICE = "token-giver", "registry"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class TokenGiver:
    """Gives a token for everything asked to who says this user and password."""

    credentials: str
    key: ec.EllipticCurvePrivateKey
    certificate: bytes
    url: str = ""
    given: int = 0

    @property
    def auth(self) -> dict[str, object]:
        """The registry's configuration."""
        return {"token": {"realm": self.url, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": ""}}

    def token(self, scope: str) -> str:
        now = int(time.time())
        access = []
        if scope:
            kind, name, actions = scope.split(":")
            access = [{"type": kind, "name": name, "actions": actions.split(",")}]
        claims = {"iss": ISSUER, "sub": "me", "aud": SERVICE, "exp": now + 300, "nbf": now - 60, "iat": now}
        x5c = [base64.b64encode(self.certificate).decode()]
        parts = [{"typ": "JWT", "alg": "ES256", "x5c": x5c}, {**claims, "jti": str(now), "access": access}]
        signed = ".".join(_b64(json.dumps(part).encode()) for part in parts)
        r, s = utils.decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


@contextmanager
def token_giver(directory: Path, credentials: str) -> Iterator[tuple[TokenGiver, dict[str, object]]]:
    """And the registry's `auth`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    bundle = directory / "tokens.pem"
    bundle.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    giver = TokenGiver(credentials, key, made.public_bytes(serialization.Encoding.DER))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = f"Basic {base64.b64encode(giver.credentials.encode()).decode()}"
            good = self.headers.get("Authorization") == wanted
            query = parse_qs(urlsplit(self.path).query)
            giver.given += good
            body = json.dumps({"token": giver.token(query.get("scope", [""])[0])} if good else {}).encode()
            self.send_response(200 if good else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        giver.url = f"http://127.0.0.1:{server.server_port}/token"
        yield (
            giver,
            {"token": {"realm": giver.url, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(bundle)}},
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
