"""Requests about processes: from E2B's JSON to the agent's frames, and errors in E2B's words."""

from __future__ import annotations

from typing import Any

import pytest

from sandpty.server.dialects.e2b import models
from sandpty.server.dialects.e2b.connect import ConnectError, decode_message
from sandpty.server.dialects.e2b.selecting import (
    input_of,
    process_error,
    selector_of,
    selector_text,
    signal_of,
    window_size,
)
from sandpty.server.dialects.e2b.starting import listed, start_error, start_of
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import NEVER_MS, ProcessFlags, ProcessInfo, Selector, Start, StartFlags
from sandpty.wire.verbs import Limits, Sandbox

SANDBOX = Sandbox(
    id="i0123456789abcdefghij",
    template="base",
    state="running",
    tier="process",
    started_at=0,
    end_at=1,
    on_timeout="kill",
    limits=Limits(),
    internet=True,
    owner="me",
    annotations={"env": {"GIVEN": "at create", "E2B_SANDBOX": "overridden"}},
    socket="",
    boot_id="",
)


def _start(body: bytes, deadline_ms: int = 0) -> Start:
    return start_of(decode_message(body, models.StartRequest), SANDBOX, "user", deadline_ms)


def _refused(body: bytes) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        _start(body)
    return caught.value


def test_a_command_of_the_sdk_starts_with_pipes() -> None:
    """The body as Python sends it."""
    start = _start(
        b'{"process":{"cmd":"/bin/bash","args":["-l","-c","ls"],"envs":{"K":"v"},"cwd":"/tmp"},"stdin":false}', 60
    )
    assert list(start.argv) == ["/bin/bash", "-l", "-c", "ls"]
    assert (start.cwd, start.flags, start.deadline_ms) == ("/tmp", StartFlags(0), 60)
    assert start.stall_ms == NEVER_MS
    assert _start(b'{"process":{"cmd":"x"}}').flags == StartFlags.STDIN
    assert _start(b'{"process":{"cmd":"x"},"stdin":true}').flags == StartFlags.STDIN


def test_a_terminal_of_the_sdk_starts_with_its_window_size() -> None:
    """The body as both SDKs send it; without a size the agent's default holds."""
    start = _start(b'{"process":{"cmd":"/bin/bash","args":["-i","-l"]},"pty":{"size":{"cols":100,"rows":30}}}')
    assert (start.flags, start.cols, start.rows) == (StartFlags.PTY, 100, 30)
    start = _start(b'{"process":{"cmd":"sh"},"pty":{}}')
    assert (start.flags, start.cols, start.rows) == (StartFlags.PTY, 0, 0)


def test_the_environment_is_e2bs_then_the_sandboxs_then_the_requests() -> None:
    """Later wins."""
    env = _start(b'{"process":{"cmd":"x","envs":{"GIVEN":"now"}}}').env
    assert env == {
        "E2B_SANDBOX": "overridden",
        "E2B_SANDBOX_ID": SANDBOX.id,
        "E2B_TEMPLATE_ID": "base",
        "GIVEN": "now",
    }


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"process":{}}',
        b'{"process":{"cmd":"x","cwd":"~root"}}',
        b'{"process":{"cmd":"x","cwd":"/a\\u0000b"}}',
        b'{"process":{"cmd":"x","args":["a\\u0000"]}}',
        b'{"process":{"cmd":"x","envs":{"A=B":"1"}}}',
        b'{"process":{"cmd":"x","envs":{"":"1"}}}',
        b'{"process":{"cmd":"x"},"pty":{"size":{"cols":0,"rows":24}}}',
        b'{"process":{"cmd":"x"},"pty":{"size":{"cols":80,"rows":10001}}}',
        b'{"process":{"cmd":"x"},"pty":{"size":{"cols":4294967296,"rows":1}}}',
        b'{"process":{"cmd":"x"},"pty":{"size":{"cols":-1,"rows":1}}}',
        b'{"process":{"cmd":"x"},"pty":{"size":{"cols":"wide","rows":1}}}',
    ],
)
def test_a_start_that_cannot_be_is_an_invalid_argument(body: bytes) -> None:
    """Refused before the agent is asked."""
    assert _refused(body).code == "invalid_argument"


@pytest.mark.parametrize(
    ("reason", "code", "text"),
    [
        ("no_such_user", "unauthenticated", "invalid username: 'user'"),
        ("bad_cwd", "invalid_argument", "cwd '/gone' does not exist"),
        ("start_failed", "invalid_argument", "error starting process 'x': No such file or directory"),
    ],
)
def test_a_failed_start_is_told_in_e2bs_words(reason: str, code: str, text: str) -> None:
    """The texts that E2B's users know."""
    start = _start(b'{"process":{"cmd":"x","cwd":"/gone"}}')
    error = start_error(SandptyError(reason, "No such file or directory"), start)
    assert (error.code, error.message) == (code, text)


@pytest.mark.parametrize(
    ("reason", "doing", "code", "part"),
    [
        ("no_such_process", "tty", "not_found", "process with pid 7 not found"),
        ("exited", "signal", "not_found", "process with pid 7 not found"),
        ("stdin_closed", "stdin", "internal", "error writing to stdin: stdin not enabled or closed"),
        ("not_a_pipe", "stdin", "internal", "error writing to stdin"),
        ("not_a_pipe", "close", "unknown", "send Ctrl+D (0x04) instead"),
        ("not_a_pty", "resize", "internal", "error resizing tty: tty not assigned to process"),
        ("not_a_pty", "tty", "internal", "tty not assigned to process"),
        ("not_a_pipe", "tty", "internal", "tty not assigned to process"),
        ("limit", "stdin", "resource_exhausted", "text"),
    ],
)
def test_a_failed_request_about_a_process_is_told_in_e2bs_words(reason: str, doing: str, code: str, part: str) -> None:
    """The code decides the SDK's exception, the text what its user reads."""
    error = process_error(SandptyError(reason, "text"), Selector.pid(7), doing)
    assert error.code == code
    assert part in error.message


def test_processes_are_named_by_pid_or_by_tag() -> None:
    """One of the two; numbers also as text, which proto3 JSON allows."""
    assert selector_of(models.ProcessSelector(pid=7)) == Selector.pid(7)
    assert selector_of(models.ProcessSelector(pid="7")) == Selector.pid(7)
    assert selector_of(models.ProcessSelector(tag="t")) == Selector.tagged("t")
    assert selector_text(Selector.tagged("t")) == "tag t"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (None, "unimplemented"),
        (models.ProcessSelector(), "unimplemented"),
        (models.ProcessSelector(pid=1, tag="t"), "invalid_argument"),
        (models.ProcessSelector(pid=-1), "invalid_argument"),
        (models.ProcessSelector(pid=2**32), "invalid_argument"),
        (models.ProcessSelector(pid="x"), "invalid_argument"),
    ],
)
def test_a_selector_that_selects_nothing_is_refused(given: Any, code: str) -> None:
    """An empty one is unimplemented, as in E2B."""
    with pytest.raises(ConnectError) as caught:
        selector_of(given)
    assert caught.value.code == code


def test_empty_input_is_input() -> None:
    """JavaScript's own tests send an empty stdin and want success."""
    assert input_of(models.ProcessInput(stdin="")) == (1, b"")
    assert input_of(models.ProcessInput(pty="aGk=")) == (0, b"hi")
    for given in (None, models.ProcessInput()):
        with pytest.raises(ConnectError) as caught:
            input_of(given)
        assert caught.value.code == "unimplemented"


def test_only_term_and_kill_are_signals() -> None:
    """By name or number; the rest is unimplemented, as in E2B."""
    assert [signal_of(given) for given in ("SIGNAL_SIGKILL", 9, "SIGNAL_SIGTERM", 15)] == [9, 9, 15, 15]
    for given in (None, 0, 2, "SIGNAL_SIGINT", "SIGNAL_UNSPECIFIED"):
        with pytest.raises(ConnectError) as caught:
            signal_of(given)
        assert caught.value.code == "unimplemented"


def test_a_window_of_nothing_is_no_window() -> None:
    """1 to 10,000 each way."""
    assert window_size(models.Size(10000, 1)) == (10000, 1)
    for size in (None, models.Size(), models.Size(0, 1), models.Size(1, 10001)):
        with pytest.raises(ConnectError) as caught:
            window_size(size)
        assert caught.value.code == "invalid_argument"


def test_a_list_shows_the_configuration_as_it_was_asked_for() -> None:
    """Without the variables that every process of the sandbox gets."""
    start = _start(b'{"process":{"cmd":"/bin/bash","args":["-c","x"],"envs":{"K":"v"}},"tag":"t"}')
    info = ProcessInfo(
        1, 42, ProcessFlags.RUNNING, 0, 0, 0, 0, 0, 0, None, 0, "user", "", "t", tuple(start.argv), dict(start.env)
    )
    item = listed(info, SANDBOX)
    assert (item.config.cmd, item.config.args, item.config.envs, item.config.cwd) == (
        "/bin/bash",
        ("-c", "x"),
        {"K": "v"},
        None,
    )
    assert (item.pid, item.tag) == (42, "t")
