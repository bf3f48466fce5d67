"""Process events as E2B's SDKs read them."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest

from sandpty.server.dialects.e2b import events
from sandpty.wire.characters import incomplete_tail
from sandpty.wire.frames import Exit, ExitReason, Stream


def _message(envelope: bytes) -> Any:
    assert envelope[0] == 0
    assert int.from_bytes(envelope[1:5], "big") == len(envelope) - 5
    return json.loads(envelope[5:])["event"]


def _exit(value: int, *, signalled: bool = False, core: bool = False, reason: ExitReason | None = None) -> Exit:
    default = ExitReason.SIGNALLED if signalled else ExitReason.EXITED
    return Exit(signalled, value, reason or default, core, 0)


@pytest.mark.parametrize(
    ("stream", "name"), [(Stream.PTY, "pty"), (Stream.STDOUT, "stdout"), (Stream.STDERR, "stderr")]
)
@pytest.mark.parametrize("size", [1, 2, 3, 57, 65536])
def test_output_arrives_as_the_very_bytes(stream: Stream, name: str, size: int) -> None:
    """The hand-built JSON is JSON, its length is right, its bytes are untouched."""
    raw = os.urandom(size)
    data = _message(events.data_event(stream, raw))["data"]
    assert list(data) == [name]
    assert base64.b64decode(data[name], validate=True) == raw


def test_start_and_keepalive_are_the_messages_the_sdks_wait_for() -> None:
    """The pid in `start`, an empty object in `keepalive`."""
    assert _message(events.start_event(4_000_000_000)) == {"start": {"pid": 4_000_000_000}}
    assert _message(events.KEEPALIVE) == {"keepalive": {}}


def test_success_has_no_error() -> None:
    """Python reads `.error` as None only when it is absent."""
    assert _message(events.end_event(_exit(0)))["end"] == {"exitCode": 0, "exited": True, "status": "exit status 0"}


def test_a_failing_exit_code_is_status_and_error() -> None:
    """Go's text for both, as envd has it."""
    end = _message(events.end_event(_exit(137)))["end"]
    assert end == {"exitCode": 137, "exited": True, "status": "exit status 137", "error": "exit status 137"}


@pytest.mark.parametrize(
    ("signal", "core", "text"),
    [
        (9, False, "signal: killed"),
        (15, False, "signal: terminated"),
        (1, False, "signal: hangup"),
        (11, True, "signal: segmentation fault (core dumped)"),
        (34, False, "signal: signal 34"),
    ],
)
def test_a_signal_is_exit_code_minus_one_and_gos_words(signal: int, core: bool, text: str) -> None:
    """E2B's CLI takes exactly -1 and "signal: killed" for a normal end of a terminal."""
    end = _message(events.end_event(_exit(signal, signalled=True, core=core)))["end"]
    assert end == {"exitCode": -1, "exited": False, "status": text, "error": text}


def test_running_out_of_memory_is_told_from_being_killed() -> None:
    """Both are SIGKILL; only one is the sandbox's limit."""
    end = _message(events.end_event(_exit(9, signalled=True, reason=ExitReason.OUT_OF_MEMORY)))["end"]
    assert end["status"] == "signal: killed"
    assert "out of memory" in end["error"]


@pytest.mark.parametrize("text", ["a", "é", "€", "😀", "aé€😀b"])
def test_a_chunk_is_cut_between_characters_wherever_it_ends(text: str) -> None:
    """What is kept back is exactly the unfinished character."""
    raw = text.encode()
    for at in range(1, len(raw) + 1):
        tail = incomplete_tail(raw[:at])
        raw[: at - tail].decode()
        assert tail <= 3
        assert (tail == 0) == (raw[:at].decode(errors="ignore").encode() == raw[:at])


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\x80" * 9, b"\xff", b"a\xff\xbf", b"\xc3(", b"\xf9\x80"])
def test_bytes_that_are_no_text_are_not_kept_back(raw: bytes) -> None:
    """Only what can still become a character."""
    assert incomplete_tail(raw) == 0
