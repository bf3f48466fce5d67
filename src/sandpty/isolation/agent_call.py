"""Run one command in a sandbox by the agent protocol, and collect what it says. For probes: small outputs only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sandpty.wire import frames

OUTPUT_BYTES_MAX = 256 * 1024


async def output_of(socket_path: str, argv: Sequence[str], *, user: str = "root", timeout_s: float) -> tuple[int, str]:
    """Exit code (128 + signal) and output. Raises TimeoutError, OSError, FrameError (the agent talks nonsense)."""
    start = frames.Start(argv=argv, env={}, user=user, cwd="/", flags=frames.StartFlags(0))
    return await ended(socket_path, start, timeout_s=timeout_s)


async def ended(socket_path: str, start: frames.Start, *, timeout_s: float) -> tuple[int, str]:
    """As `output_of`, of a process that is described whole."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_unix_connection(socket_path)
        try:
            writer.write(frames.encode_hello() + frames.encode_start(start))
            return await _collect(reader)
        finally:
            writer.close()


async def _collect(reader: asyncio.StreamReader) -> tuple[int, str]:
    cutter = frames.FrameReader()
    text = bytearray()
    while data := await reader.read(64 * 1024):
        for kind, payload in cutter.feed(data):
            value = frames.decode(kind, payload)
            if isinstance(value, frames.Output):
                text += value.data
                if len(text) > OUTPUT_BYTES_MAX:
                    raise frames.FrameError("too much output")
            elif isinstance(value, frames.Exit):
                code = 128 + value.value if value.signalled else value.value
                return code, text.decode("utf-8", "replace")
            elif isinstance(value, frames.AgentError):
                raise frames.FrameError(value.message)
    raise ConnectionResetError("the agent closed the connection")
