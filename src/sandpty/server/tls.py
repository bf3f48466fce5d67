"""TLS for the second listener: a certificate that the supervisor hands over, looked at again from time to time."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from typing import Protocol

from aiohttp import web

from sandpty import config
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Certificate

log = logging.getLogger(__name__)


class Source(Protocol):
    """Where certificates come from."""

    async def certificate(self) -> Certificate:
        """Raises SandptyError."""


class Tls:
    """`context` is for the listener; `run` keeps its certificate fresh: new connections get the new one."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._loaded: Certificate | None = None
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self.context.sni_callback = _remember_name

    async def load(self) -> None:
        """Raises SandptyError, ssl.SSLError."""
        certificate = await self._source.certificate()
        if certificate != self._loaded:
            load_pem(self.context, certificate)
            self._loaded = certificate

    async def run(self) -> None:
        """For ever; a certificate that cannot be had is tried again, and the old one serves on."""
        while True:
            await asyncio.sleep(config.CERTIFICATE_CHECK_S)
            try:
                await self.load()
            except (SandptyError, OSError) as error:  # ssl.SSLError is an OSError
                log.warning("the certificate is not renewed: %s", error)


def load_pem(context: ssl.SSLContext, certificate: Certificate) -> None:
    """OpenSSL reads files only; this one is nowhere on a disk, and the server's account may write nowhere else."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, f"{certificate.chain}\n{certificate.key}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _remember_name(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
    connection.sandpty_name = name  # type: ignore[union-attr]


def asked_name(request: web.Request) -> str | None:
    """The name for which the client asked during the TLS handshake; None without TLS, or when it asked for none."""
    connection = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    return getattr(connection, "sandpty_name", None)
