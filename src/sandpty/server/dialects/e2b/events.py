"""process.ProcessEvent messages as envelopes, built by hand: they are the hot path of every terminal. Pure."""

from __future__ import annotations

import binascii

import msgspec

from sandpty.server.dialects.e2b.connect import envelope
from sandpty.wire.frames import Exit, ExitReason, Stream

KEEPALIVE = envelope(b'{"event":{"keepalive":{}}}')

_DATA_HEAD = {
    Stream.PTY: b'{"event":{"data":{"pty":"',
    Stream.STDOUT: b'{"event":{"data":{"stdout":"',
    Stream.STDERR: b'{"event":{"data":{"stderr":"',
}
_DATA_TAIL = b'"}}}'
_FIXED = {stream: len(head) + len(_DATA_TAIL) for stream, head in _DATA_HEAD.items()}

# What Go's syscall.Signal prints on Linux: E2B's `status` and `error` carry it, its CLI compares it.
SIGNAL_TEXTS: dict[int, str] = {
    1: "hangup",
    2: "interrupt",
    3: "quit",
    4: "illegal instruction",
    5: "trace/breakpoint trap",
    6: "aborted",
    7: "bus error",
    8: "floating point exception",
    9: "killed",
    10: "user defined signal 1",
    11: "segmentation fault",
    12: "user defined signal 2",
    13: "broken pipe",
    14: "alarm clock",
    15: "terminated",
}


def start_event(pid: int) -> bytes:
    return envelope(b'{"event":{"start":{"pid":%d}}}' % pid)


def data_event(stream: int, data: bytes) -> bytes:
    """One chunk of output. Bytes go through untouched, as base64."""
    encoded = binascii.b2a_base64(data, newline=False)
    length = _FIXED[stream] + len(encoded)  # type: ignore[index]  # IntEnum keys compare as ints
    return b"".join(
        (b"\x00", length.to_bytes(4, "big"), _DATA_HEAD[stream], encoded, _DATA_TAIL)  # type: ignore[index]
    )


def exit_fields(status: Exit) -> dict[str, int | bool | str]:
    """E2B's end event: a signal gives exit code -1; `error` is absent on success (the SDKs show it when present)."""
    if not status.signalled:
        text = f"exit status {status.value}"
        fields: dict[str, int | bool | str] = {"exitCode": status.value, "exited": True, "status": text}
        if status.value:
            fields["error"] = text
        return fields
    text = f"signal: {SIGNAL_TEXTS.get(status.value, f'signal {status.value}')}"
    if status.core_dumped:
        text += " (core dumped)"
    error = f"{text} (out of memory)" if status.reason is ExitReason.OUT_OF_MEMORY else text
    return {"exitCode": -1, "exited": False, "status": text, "error": error}


def end_event(status: Exit) -> bytes:
    return envelope(msgspec.json.encode({"event": {"end": exit_fields(status)}}))
