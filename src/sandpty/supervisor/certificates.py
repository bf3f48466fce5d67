"""The server's certificate: root reads the files, and renews the local authority's; the server only gets them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from sandpty import config
from sandpty.certificates import store
from sandpty.config import DataDir
from sandpty.isolation import program
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Certificate


async def current(data: DataDir) -> Certificate:
    """What `sandpty serve` was asked to use. Raises conflict without TLS, bad_argument, runtime_failed."""
    choice = store.chosen(data)
    if choice.domain:
        try:
            status = await program.run(store.issue_command(data, choice.domain), timeout_s=config.CERTIFICATE_TIMEOUT_S)
        except TimeoutError as error:
            raise SandptyError("runtime_failed", str(error)) from error
        if status != 0:
            raise SandptyError("runtime_failed", f"the certificate of {choice.domain} cannot be renewed")
    chain, key = await asyncio.to_thread(store.pair, data, choice)
    return Certificate(chain=chain.decode("ascii", "replace"), key=key.decode("ascii", "replace"))


def verb(data: DataDir) -> Callable[[msgspec.Raw], Awaitable[Certificate]]:
    """For the service."""

    async def certificate(_: msgspec.Raw) -> Certificate:
        return await current(data)

    return certificate
