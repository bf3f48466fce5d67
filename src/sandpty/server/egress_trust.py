"""A sandbox whose requests are given headers trusts whoever looks into its TLS for that (docs/reference/network.md).

As E2B's envd does it with `caBundle`: the certificate goes into the sandbox's own bundle, and beside it where
update-ca-certificates finds it again. Programs that bring a bundle of their own are told of it by variables: Node, and
whatever uses certifi (requests, httpx and with them most of Python's clients).
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from sandpty import config
from sandpty.server.supervisor_client import SupervisorClient
from sandpty.terminal.files import Files, open_files
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import EgressAuthority, Sandbox

log = logging.getLogger(__name__)
CERTIFICATE = "/usr/local/share/ca-certificates/sandpty-egress.crt"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"  # Debian's, Alpine's, Arch's; the variables need it everywhere
_OTHER_BUNDLES = ("/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")  # Fedora's, SUSE's
VARIABLES = {"NODE_EXTRA_CA_CERTS": CERTIFICATE, "SSL_CERT_FILE": BUNDLE, "REQUESTS_CA_BUNDLE": BUNDLE}
_HERE = Path(BUNDLE)  # of an image without any


class EgressTrust:
    """For the sandboxes of one supervisor."""

    def __init__(self, client: SupervisorClient) -> None:
        self._client = client

    async def install(self, sandbox: Sandbox) -> None:
        """Does nothing where it is not needed, or there already. What cannot be written is in the log: then programs in
        the sandbox say what they do not trust. Raises runtime_failed."""
        if not sandbox.network.headers or sandbox.state != "running":
            return
        certificate = (await self._client.call("egress_authority", {}, EgressAuthority)).pem.encode("ascii")
        try:
            async with asyncio.timeout(config.EGRESS_TRUST_S), await open_files(sandbox.socket, "root") as files:
                await _install(files, certificate)
        except (SandptyError, TimeoutError, OSError) as error:
            log.warning("sandbox %s does not trust its headers' authority: %s", sandbox.id, error)


async def _install(files: Files, certificate: bytes) -> None:
    await files.write(CERTIFICATE, certificate, parents=True, mode=0o644)
    known = b""
    for path in (*_OTHER_BUNDLES, BUNDLE):
        bundle = await _content(files, path)
        if bundle is not None and certificate not in bundle:
            await files.write(path, b"\n" + certificate, append=True)
        known = bundle or known
    if bundle is None:  # the last, which the variables name
        known = known or await asyncio.to_thread(_own_bundle)
        await files.write(BUNDLE, known + b"\n" + certificate, parents=True, mode=0o644)


async def _content(files: Files, path: str) -> bytes | None:
    try:
        async with files.open(path, length=config.EGRESS_BUNDLE_BYTES_MAX) as reading:
            return b"".join([piece async for piece in reading])
    except SandptyError as error:
        if error.reason.name == "no_such_file":
            return None
        raise


def _own_bundle() -> bytes:
    try:
        return _HERE.read_bytes()
    except OSError:
        return b""
