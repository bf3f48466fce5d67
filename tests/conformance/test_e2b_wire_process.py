"""E2B's process.Process by hand: what the SDKs never send, and what they never show."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlparse

import pytest
from e2b import Sandbox

from tests.conformance.conftest import Envd
from tests.conformance.wire import (
    STREAM,
    Stream,
    asked,
    b64,
    ending,
    envelope,
    envelopes,
    events,
    output,
    run,
)
from tests.server_fixture import RunningServer
from tests.waiting import until_sync


def test_a_stream_is_start_then_data_then_end_then_the_end_envelope(envd: Envd) -> None:
    """In this order, though the process ends at once; no error member on success."""
    body = run(envd, asked("/bin/sh", "-c", "printf out; printf err >&2"))
    kinds = [next(iter(event)) for event in events(body)]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert set(kinds[1:-1]) == {"data"}
    assert (output(body), output(body, "stderr")) == (b"out", b"err")
    assert events(body)[-1]["end"] == {"exitCode": 0, "exited": True, "status": "exit status 0"}
    assert envelopes(body)[-1] == (2, {})


@pytest.mark.parametrize(
    ("command", "end"),
    [
        ("exit 3", {"exitCode": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"}),
        ("kill -9 $$", {"exitCode": -1, "exited": False, "status": "signal: killed", "error": "signal: killed"}),
        (
            "kill -15 $$",
            {"exitCode": -1, "exited": False, "status": "signal: terminated", "error": "signal: terminated"},
        ),
        ("kill -1 $$", {"exitCode": -1, "exited": False, "status": "signal: hangup", "error": "signal: hangup"}),
    ],
)
def test_an_end_is_told_as_go_tells_it(envd: Envd, command: str, end: dict[str, Any]) -> None:
    """Exit codes and signals."""
    assert events(run(envd, asked("/bin/sh", "-c", command)))[-1]["end"] == end


def test_stdout_and_stderr_come_in_the_order_they_were_written(envd: Envd) -> None:
    """E2B promises none."""
    script = "for i in 1 2 3 4 5; do echo o$i; sleep 0.02; echo e$i >&2; sleep 0.02; done"
    body = run(envd, asked("/bin/sh", "-c", script))
    said = [
        base64.b64decode(next(iter(event["data"].values()))).decode().strip()
        for event in events(body)
        if "data" in event
    ]
    assert said == [f"{stream}{i}" for i in range(1, 6) for stream in "oe"]


def test_eight_thousand_bytes_and_half_a_character_arrive_raw(envd: Envd) -> None:
    """No decoding on the way."""
    body = run(envd, asked("/bin/sh", "-c", "head -c 8191 /dev/zero; printf '\\342'"))
    assert output(body) == b"\0" * 8191 + b"\xe2"


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        ({}, "invalid_argument", "command"),
        (asked("/no/such/binary"), "invalid_argument", "error starting process '/no/such/binary'"),
        (asked("/no/such/binary", pty={"size": {"cols": 80, "rows": 24}}), "invalid_argument", "error starting pty"),
        ({"process": {"cmd": "true", "cwd": "/nowhere"}}, "invalid_argument", "cwd '/nowhere' does not exist"),
        ({"process": {"cmd": "true", "cwd": "/etc/passwd"}}, "invalid_argument", "cwd '/etc/passwd'"),
        ({"process": {"cmd": "true", "cwd": "~root"}}, "invalid_argument", "~root"),
        (asked("true", pty={"size": {"cols": 0, "rows": 24}}), "invalid_argument", "window size"),
        (asked("true", pty={"size": {"cols": 80, "rows": 70000}}), "invalid_argument", "window size"),
        ({"process": 5}, "invalid_argument", ""),
    ],
)
def test_a_start_that_fails_says_why_in_the_end_envelope(envd: Envd, message: object, code: str, text: str) -> None:
    """HTTP 200: JavaScript loses the message of any other status."""
    body = run(envd, message)
    assert events(body) == []
    assert ending(body)["code"] == code
    assert text in ending(body)["message"]


def test_an_unknown_user_is_unauthenticated(envd: Envd) -> None:
    """Named in the text; a garbled header is the default user."""
    basic = base64.b64encode(b"who:").decode()
    body = run(envd, asked("true"), Authorization=f"Basic {basic}")
    assert ending(body) == {"code": "unauthenticated", "message": "invalid username: 'who'"}
    for value in ("Basic !!", "Basic", "Bearer x", f"Basic {base64.b64encode(b':').decode()}"):
        assert output(run(envd, asked("id", "-un"), Authorization=value)) == b"user\n"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"\x00\x00\x00\x00\x05{}",
        envelope({}) + envelope({}),
        b"\x01\x00\x00\x00\x02{}",
        b"\x02\x00\x00\x00\x02{}",
        b"\x00\xff\xff\xff\xff",
        b"\x00\x00\x00\x00\x01{",
        b"\x00\x00\x00\x00\x02\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(4096),
    ],
)
@pytest.mark.parametrize("method", ["Start", "Connect", "StreamInput"])
def test_garbage_instead_of_envelopes_is_an_error_of_the_stream(envd: Envd, method: str, body: bytes) -> None:
    """And the server goes on."""
    if method == "StreamInput" and body in (b"", envelope({}) + envelope({})):
        return  # an input stream that says nothing is a success
    answer = envd.raw(f"process.Process/{method}", body, **STREAM)
    assert answer.status_code == 200
    assert ending(answer.content)["code"] in ("invalid_argument", "unimplemented", "resource_exhausted")
    assert envd.unary("process.Process/List", {}).json() == {"processes": []}


@pytest.mark.parametrize("method", ["List", "SendInput", "SendSignal", "Update", "CloseStdin"])
@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"process":[]}', b'{"process":{"pid":{}}}'])
def test_garbage_instead_of_json_is_an_error_of_the_call(envd: Envd, method: str, body: bytes) -> None:
    """A string code and a message, with the code's own status."""
    answer = envd.raw(f"process.Process/{method}", body)
    if method == "List":
        assert answer.status_code == 200  # it has no fields to be wrong
        return
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_argument"


def test_a_body_that_is_too_large_is_refused(envd: Envd) -> None:
    """Five megabytes of input in one call; an environment of three."""
    answer = envd.unary("process.Process/SendInput", {"process": {"pid": 1}, "input": {"pty": "A" * 5_000_000}})
    assert answer.status_code == 413
    body = run(envd, {"process": {"cmd": "true", "envs": {"A": "x" * 3_000_000}}})
    assert ending(body)["code"] in ("resource_exhausted", "invalid_argument")


@pytest.mark.parametrize(
    ("method", "message", "status", "said"),
    [
        (
            "SendInput",
            {"process": {"pid": 999999}, "input": {"pty": ""}},
            404,
            ("not_found", "process with pid 999999 not found"),
        ),
        (
            "SendInput",
            {"process": {"tag": "t"}, "input": {"stdin": ""}},
            404,
            ("not_found", "process with tag t not found"),
        ),
        ("SendInput", {"input": {"pty": ""}}, 501, ("unimplemented", "selector")),
        ("SendInput", {"process": {"pid": 1}}, 501, ("unimplemented", "input")),
        ("SendInput", {"process": {"pid": 1}, "input": {"pty": "***"}}, 400, ("invalid_argument", "base64")),
        ("SendSignal", {"process": {"pid": 999999}, "signal": "SIGNAL_SIGKILL"}, 404, ("not_found", "999999")),
        ("SendSignal", {"process": {"pid": 1}, "signal": "SIGNAL_SIGHUP"}, 501, ("unimplemented", "invalid signal")),
        ("SendSignal", {"process": {"pid": 1}}, 501, ("unimplemented", "invalid signal")),
        ("Update", {"process": {"pid": 999999}, "pty": {"size": {"cols": 1, "rows": 1}}}, 404, ("not_found", "999999")),
        ("Update", {"process": {"pid": 999999}}, 404, ("not_found", "999999")),
        ("Update", {"process": {"pid": 1}, "pty": {}}, 400, ("invalid_argument", "window size")),
        ("CloseStdin", {"process": {"pid": 999999}}, 404, ("not_found", "999999")),
        ("CloseStdin", {"process": {"pid": -1}}, 400, ("invalid_argument", "range")),
    ],
)
def test_calls_about_what_is_not_there_or_cannot_be(
    envd: Envd, method: str, message: object, status: int, said: tuple[str, str]
) -> None:
    """E2B's codes and words."""
    answer = envd.unary(f"process.Process/{method}", message)
    assert (answer.status_code, answer.json()["code"]) == (status, said[0])
    assert said[1] in answer.json()["message"]


def test_calls_that_do_not_fit_the_process(envd: Envd) -> None:
    """Terminal input for a command, stdin for a terminal, a size for a command, an end of stdin for a terminal."""
    command = Stream(envd, "Start", asked("sleep", "60"))
    terminal = Stream(envd, "Start", asked("sleep", "60", pty={"size": {"cols": 80, "rows": 24}}))
    command.next()
    terminal.next()
    for method, pid, more, code, text in (
        ("SendInput", command.pid, {"input": {"pty": "eA=="}}, "internal", "tty not assigned"),
        ("SendInput", terminal.pid, {"input": {"stdin": "eA=="}}, "internal", "stdin"),
        ("Update", command.pid, {"pty": {"size": {"cols": 9, "rows": 9}}}, "internal", "tty not assigned to process"),
        ("CloseStdin", terminal.pid, {}, "unknown", "send Ctrl+D (0x04) instead"),
    ):
        answer = envd.unary(f"process.Process/{method}", {"process": {"pid": pid}, **more})
        assert (answer.status_code, answer.json()["code"]) == (500, code)
        assert text in answer.json()["message"]
    assert envd.unary("process.Process/Update", {"process": {"pid": command.pid}}).json() == {}
    for stream in (command, terminal):
        kill = {"process": {"pid": stream.pid}, "signal": 9}
        assert envd.unary("process.Process/SendSignal", kill).json() == {}
        stream.close()


def test_sigterm_goes_to_the_leader(envd: Envd) -> None:
    """A trap hears it; the tree is not touched."""
    stream = Stream(
        envd,
        "Start",
        asked("/bin/sh", "-c", "trap 'echo heard; exit 4' TERM; echo up; while :; do sleep 0.05; done"),
    )
    stream.next()
    assert base64.b64decode(stream.next()["data"]["stdout"]) == b"up\n"
    envd.unary("process.Process/SendSignal", {"process": {"pid": stream.pid}, "signal": "SIGNAL_SIGTERM"})
    assert base64.b64decode(stream.next()["data"]["stdout"]) == b"heard\n"
    assert stream.next()["end"]["exitCode"] == 4
    stream.close()


def test_processes_are_found_by_tag(envd: Envd) -> None:
    """Also when several are tagged; the list shows the tags."""
    one = Stream(envd, "Start", asked("cat", tag="one"))
    two = Stream(envd, "Start", asked("cat", tag="two"))
    one.next()
    two.next()
    listed = envd.unary("process.Process/List", {}).json()["processes"]
    assert [(item["tag"], item["pid"]) for item in listed] == [("one", one.pid), ("two", two.pid)]
    assert listed[0]["config"] == {"cmd": "cat"}
    envd.unary("process.Process/SendInput", {"process": {"tag": "one"}, "input": {"stdin": b64(b"hi")}})
    assert base64.b64decode(one.next()["data"]["stdout"]) == b"hi"
    for tag in ("one", "two"):
        assert envd.unary("process.Process/CloseStdin", {"process": {"tag": tag}}).json() == {}
    assert one.next()["end"]["exitCode"] == 0
    one.close()
    two.close()


def test_keepalives_come_at_the_interval_that_was_asked_for(envd: Envd) -> None:
    """While nothing else is said; on Start and on Connect."""
    start = Stream(envd, "Start", asked("sleep", "60"), **{"Keepalive-Ping-Interval": "1"})
    assert "start" in start.next()
    began = time.monotonic()
    assert start.next() == {"keepalive": {}}
    assert start.next() == {"keepalive": {}}
    assert 1.5 < time.monotonic() - began < 4
    connect = Stream(envd, "Connect", {"process": {"pid": start.pid}}, **{"Keepalive-Ping-Interval": "1"})
    assert connect.next() == {"start": {"pid": start.pid}}
    assert connect.next() == {"keepalive": {}}
    for stream in (start, connect):
        stream.close()


@pytest.mark.parametrize("value", ["soon", "-1", "1.5", "9" * 20])
def test_a_timeout_that_is_no_number_is_an_invalid_argument(envd: Envd, value: str) -> None:
    """On streams and on calls; nothing is started."""
    assert ending(run(envd, asked("true"), **{"Connect-Timeout-Ms": value}))["code"] == "invalid_argument"
    answer = envd.unary("process.Process/List", {}, **{"Connect-Timeout-Ms": value})
    assert answer.json()["code"] == "invalid_argument"


def test_the_timeout_of_start_kills_the_whole_tree_and_ends_the_stream(envd: Envd) -> None:
    """All output before, deadline_exceeded after, nobody left; who connects later learns the end."""
    script = "echo before; setsid sleep 3131 & sleep 3132"
    stream = Stream(envd, "Start", asked("/bin/sh", "-c", script), **{"Connect-Timeout-Ms": "700"})
    stream.next()
    assert base64.b64decode(stream.next()["data"]["stdout"]) == b"before\n"
    kind, error = stream.next()
    assert (kind, error["code"]) == ("end", "deadline_exceeded")
    left = run(envd, asked("/bin/sh", "-c", "ps -eo args | grep -c '^sleep 313[12]'"))
    assert output(left) == b"0\n"
    late = envd.raw("process.Process/Connect", envelope({"process": {"pid": stream.pid}}), **STREAM)
    assert events(late.content)[-1]["end"]["status"] == "signal: killed"
    assert output(late.content) == b""
    stream.close()


def test_the_timeout_of_a_call_bounds_it(envd: Envd) -> None:
    """Input to a program that does not read does not hang for ever."""
    stream = Stream(envd, "Start", asked("sleep", "60"))
    stream.next()
    message = {"process": {"pid": stream.pid}, "input": {"stdin": b64(b"x" * 1_000_000)}}
    answer = envd.unary("process.Process/SendInput", message, **{"Connect-Timeout-Ms": "300"})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    envd.unary("process.Process/SendSignal", {"process": {"pid": stream.pid}, "signal": 9})
    stream.close()


def test_connecting_to_an_ended_process_gives_its_end_and_nothing_twice(envd: Envd) -> None:
    """What the first client got stays its own; the exit status is kept."""
    first = run(envd, asked("/bin/sh", "-c", "echo told; exit 5"))
    assert output(first) == b"told\n"
    pid = events(first)[0]["start"]["pid"]
    again = envd.raw("process.Process/Connect", envelope({"process": {"pid": pid}}), **STREAM).content
    assert events(again)[0] == {"start": {"pid": pid}}
    assert output(again) == b""
    assert events(again)[-1]["end"]["exitCode"] == 5
    assert ending(again) == {}


def test_connecting_to_nothing_is_not_found_in_the_end_envelope(envd: Envd) -> None:
    """HTTP 200, so that JavaScript sees the message."""
    answer = envd.raw("process.Process/Connect", envelope({"process": {"pid": 999999}}), **STREAM)
    assert answer.status_code == 200
    assert ending(answer.content) == {"code": "not_found", "message": "process with pid 999999 not found"}


def test_a_client_that_vanishes_leaves_the_process_alone(envd: Envd) -> None:
    """Its output goes on; the next client gets it."""
    stream = Stream(envd, "Start", asked("/bin/sh", "-c", "echo one; read x; echo two; read x"))
    stream.next()
    assert base64.b64decode(stream.next()["data"]["stdout"]) == b"one\n"
    stream.close()
    envd.unary("process.Process/SendInput", {"process": {"pid": stream.pid}, "input": {"stdin": b64(b"\n")}})
    again = Stream(envd, "Connect", {"process": {"pid": stream.pid}})
    assert again.next() == {"start": {"pid": stream.pid}}
    assert base64.b64decode(again.next()["data"]["stdout"]) == b"two\n"
    envd.unary("process.Process/SendSignal", {"process": {"pid": stream.pid}, "signal": 9})
    again.close()


def _pieces(sock: socket.socket, *messages: object) -> None:
    for message in messages:
        raw = envelope(message)
        sock.sendall(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")


def test_streamed_input_is_typed_before_the_request_ends(envd: Envd) -> None:
    """Piece by piece, keepalives between; the answer comes after the request's end."""
    stream = Stream(envd, "Start", asked("cat"))
    stream.next()
    parts = urlparse(envd.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as sock:
        head = {**envd.headers, **STREAM, "Host": "x", "Transfer-Encoding": "chunked"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        sock.sendall(f"POST /process.Process/StreamInput HTTP/1.1\r\n{lines}\r\n".encode())
        _pieces(sock, {"start": {"process": {"pid": stream.pid}}})
        for text in (b"one", b"two"):
            _pieces(sock, {"data": {"input": {"stdin": b64(text)}}}, {"keepalive": {}})
            assert base64.b64decode(stream.next()["data"]["stdout"]) == text
        sock.sendall(b"0\r\n\r\n")
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.status == 200
        assert envelopes(response.read()) == [(0, {}), (2, {})]
    envd.unary("process.Process/CloseStdin", {"process": {"pid": stream.pid}})
    assert stream.next()["end"]["exitCode"] == 0
    stream.close()


def test_input_before_its_start_is_an_invalid_argument(envd: Envd) -> None:
    """E2B's daemon crashes on it."""
    message = {"data": {"input": {"stdin": "eA=="}}}
    answer = envd.raw("process.Process/StreamInput", envelope(message), **STREAM)
    assert ending(answer.content)["code"] == "invalid_argument"


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_streams_are_reset_when_the_sandbox_goes(envd: Envd, sandbox: Sandbox, how: str) -> None:
    """RST, not an orderly end: every version of the SDK takes that for what it is. And at once."""
    streams = [Stream(envd, "Start", asked("sleep", "60")) for _ in range(3)]
    for stream in streams:
        stream.next()
    ended = threading.Thread(target=getattr(sandbox, how))
    began = time.monotonic()
    ended.start()
    for stream in streams:
        with pytest.raises(ConnectionResetError):
            stream.next()
        stream.close()
    assert time.monotonic() - began < 2
    ended.join()


def _collect(stream: Stream, said: bytearray) -> Any:
    """Everything that is said, up to the first event that is no output."""
    while "data" in (event := stream.next()):
        said += base64.b64decode(event["data"]["stdout"])
    return event


def test_a_pause_in_the_middle_of_a_stream_costs_no_byte(envd: Envd, sandbox: Sandbox) -> None:
    """The stream is cut where it is; after the resume the next one goes on exactly from there, to the end."""
    count, said = 150_000, bytearray()
    stream = Stream(envd, "Start", asked("seq", str(count)))
    stream.next()
    said += base64.b64decode(stream.next()["data"]["stdout"])  # the rest comes as far as there is room for it
    assert sandbox.pause()
    with pytest.raises(ConnectionResetError):
        _collect(stream, said)
    stream.close()
    sandbox.connect(timeout=60)
    stream = Stream(envd, "Connect", {"process": {"pid": stream.pid}})
    assert "start" in stream.next()
    assert _collect(stream, said)["end"]["exited"] is True
    stream.close()
    assert said == b"".join(b"%d\n" % number for number in range(1, count + 1))


def _viewer(envd: Envd, pid: int) -> Stream:
    stream = Stream(envd, "Connect", {"process": {"pid": pid}})
    assert stream.next()["start"]["pid"] == pid
    return stream


def test_a_thousand_streams_side_by_side_all_say_everything(envd: Envd) -> None:
    """Of twenty processes in one sandbox; calls are answered meanwhile, and every stream has its end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    with contextlib.ExitStack() as stack:
        viewers: dict[int, list[Stream]] = {}
        for _ in range(20):
            first = Stream(envd, "Start", asked("cat"))
            stack.callback(first.close)
            first.next()
            viewers[first.pid] = [first]
        # Side by side: a viewer waits a moment for another that may be about to leave.
        with ThreadPoolExecutor(40) as threads:
            for stream in threads.map(partial(_viewer, envd), [pid for pid in viewers for _ in range(49)]):
                viewers[stream.pid].append(stream)
                stack.callback(stream.close)
        for pid in viewers:
            selected = {"process": {"pid": pid}}
            envd.unary("process.Process/SendInput", {**selected, "input": {"stdin": b64(b"%d\n" % pid)}})
            envd.unary("process.Process/CloseStdin", selected)
        for pid, streams in viewers.items():
            for stream in streams:
                assert base64.b64decode(stream.next()["data"]["stdout"]) == b"%d\n" % pid
                assert stream.next()["end"]["exited"] is True
                assert stream.next() == ("end", None)


def test_streams_that_come_and_go_leave_nothing(envd: Envd, server: RunningServer) -> None:
    """Descriptors of the server are as many as before."""
    assert server.process is not None
    fds = f"/proc/{server.process.pid}/fd"
    keeper = Stream(envd, "Start", asked("cat"))
    keeper.next()

    def cycle() -> None:
        stream = Stream(envd, "Connect", {"process": {"pid": keeper.pid}})
        stream.next()
        stream.close()

    for _ in range(20):
        cycle()
    before = len(os.listdir(fds))
    for _ in range(100):
        cycle()
    until_sync(lambda: len(os.listdir(fds)) <= before + 2, what="the descriptors come back")
    keeper.close()
