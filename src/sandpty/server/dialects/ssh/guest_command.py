"""Small commands in a sandbox, as a user of it, for what neither agent nor files connection does."""

from __future__ import annotations

import asyncio

from sandpty import config
from sandpty.terminal import attachment
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import Exit, Output, Start, StartFlags, Stream
from sandpty.wire.verbs import Sandbox

_WHAT_IT_SAYS = 300


async def run(sandbox: Sandbox, user: str, *argv: str) -> str:
    """What it prints; the guest's word. Raises file_error with what it says when it fails, timeout, limit, ..."""
    said: dict[int, bytearray] = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
    deadline_ms = int(config.SSH_COMMAND_S * 1000)
    request = Start(argv, {"LC_ALL": "C"}, user, cwd="/", flags=StartFlags(0), deadline_ms=deadline_ms)
    try:
        async with (
            asyncio.timeout(config.SSH_COMMAND_S),
            await attachment.start(sandbox.socket, request) as attached,
        ):
            while not isinstance(event := await attached.receive(), Exit):
                if isinstance(event, Output):
                    said[event.stream] += event.data
                    if len(said[event.stream]) > config.SSH_COMMAND_OUTPUT_BYTES:
                        raise SandptyError("too_large", f"{argv[0]} says too much")
                    attached.acknowledge()
    except TimeoutError as error:
        raise SandptyError("timeout", f"{argv[0]} takes too long in the sandbox") from error
    if event.signalled or event.value:
        text = said[Stream.STDERR][:_WHAT_IT_SAYS].decode("utf-8", "replace").strip()
        raise SandptyError("file_error", text or f"{argv[0]} failed in the sandbox")
    return said[Stream.STDOUT].decode("utf-8", "surrogateescape")
