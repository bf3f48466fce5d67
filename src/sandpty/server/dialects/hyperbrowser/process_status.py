"""Processes as Hyperbrowser's clients see them: summaries, and results with all output that is kept."""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncIterator
from typing import Any

from sandpty import config
from sandpty.server.dialects.hyperbrowser import models
from sandpty.server.dialects.hyperbrowser.starting import directory, exit_code, shown
from sandpty.terminal import attachment
from sandpty.wire.frames import Attach, Exit, ExitReason, From, Output, ProcessInfo, Selector, Stream
from sandpty.wire.verbs import Sandbox

_STATUSES: dict[ExitReason, models.ProcessStatus] = {
    ExitReason.DEADLINE: "timed_out",
    ExitReason.KILLED: "killed",
    ExitReason.OUT_OF_MEMORY: "failed",
    ExitReason.SANDBOX_ENDED: "killed",
}


def status_of(ended: Exit | None) -> models.ProcessStatus:
    if ended is None:
        return "running"
    return _STATUSES.get(ended.reason, "killed" if ended.signalled else "exited")


def summary(info: ProcessInfo) -> models.ProcessSummary:
    """`command` is the line that was asked for: the last argument of its shell."""
    return models.ProcessSummary(
        id=shown(info.tag),
        status=status_of(info.exit),
        command=shown(info.argv[-1]) if info.argv else "",
        cwd=directory(info),
        pid=info.pid,
        exit_code=exit_code(info.exit),
        started_at=info.started_ms,
        completed_at=info.ended_ms or None,
    )


def result_head(info: ProcessInfo, *, truncated: bool) -> dict[str, Any]:
    """A ProcessResult without its output."""
    return {
        "id": shown(info.tag),
        "status": status_of(info.exit),
        "exit_code": exit_code(info.exit),
        "started_at": info.started_ms,
        "completed_at": info.ended_ms or None,
        "error": "the command reached its time limit" if status_of(info.exit) == "timed_out" else None,
        "output_truncated": truncated,
    }


class JsonText:
    """Bytes as the inside of an ASCII JSON string, piece by piece; characters may be cut anywhere."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def piece(self, data: bytes, *, final: bool = False) -> bytes:
        return json.dumps(self._decoder.decode(data, final))[1:-1].encode()


async def result(sandbox: Sandbox, info: ProcessInfo, **members: Any) -> AsyncIterator[bytes]:
    """A ProcessResult as JSON, in pieces: a log is too big to be held for every request."""
    head = {**result_head(info, truncated=info.start > 0), **members}
    yield json.dumps(head).encode()[:-1]
    for stream, name in ((Stream.STDOUT, b"stdout"), (Stream.STDERR, b"stderr")):
        yield b',"%s":"' % name
        text = JsonText()
        async for data in kept(sandbox, info, stream):
            yield text.piece(data)
        yield text.piece(b"", final=True) + b'"'
    yield b"}"


async def kept(sandbox: Sandbox, info: ProcessInfo, stream: Stream) -> AsyncIterator[bytes]:
    """What the log held of one stream at `info`."""
    wanted = Attach(
        Selector.process(info.process),
        may_write=False,
        origin=From.OFFSET,
        value=info.start,
        window=config.ATTACH_WINDOW_BYTES,
        stall_ms=1,  # reading what is kept holds nobody back
    )
    if info.end == info.start:
        return
    async with await attachment.attach(sandbox.socket, wanted) as reading:
        while reading.position < info.end:
            event = await reading.receive()
            if isinstance(event, Exit):
                return
            if isinstance(event, Output):
                if event.stream == stream:
                    yield event.data
                reading.acknowledge()
