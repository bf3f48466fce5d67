"""The pure parts of the guest's program: results, environments, languages, requests."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from sandpty.interpreter import environments, keeper, limits, specs
from sandpty.interpreter.http import Connection, ProblemError, Request
from sandpty.interpreter.results import line, result
from tests.waiting import until_sync


def test_a_result_has_a_field_for_each_kind_and_the_rest_is_extra() -> None:
    """Lists of lines are joined; a string is shown without its quotes."""
    shown = result({"text/plain": "'a'", "text/html": ["<b>", "</b>"], "application/x": 1}, main=True)
    assert shown == {
        "type": "result",
        "is_main_result": True,
        "text": "a",
        "html": "<b></b>",
        "extra": {"application/x": 1},
    }
    assert result({"text/plain": '"a"'}, main=False)["text"] == '"a"'
    assert result({"text/plain": '"a"'}, main=False, quotes="'\"")["text"] == "a"
    assert result({"text/plain": "'"}, main=False)["text"] == "'"


def test_a_line_is_json_that_every_client_can_read() -> None:
    """NaN and infinities are null, however deep; one line whatever is in the text."""
    event = {"type": "result", "data": {"a": [math.nan, 1.5, [math.inf]]}, "text": "x\ny\u2028"}
    text = line(event)
    assert text.count(b"\n") == 1
    assert json.loads(text)["data"] == {"a": [None, 1.5, [None]]}
    assert json.loads(line({"type": "stdout", "text": "é😀"}))["text"] == "é😀"


@pytest.mark.parametrize(
    "bad", [{"A=B": "1"}, {"": "1"}, {"A": 1}, {"A": "x\0y"}, {"1A": ""}, {"A;rm": ""}, ["A"], "A"]
)
def test_environment_variables_are_names_and_texts(bad: object) -> None:
    """Anything else is refused before it becomes code."""
    with pytest.raises(ValueError, match="env"):
        environments.checked(bad)


def test_bash_gets_and_loses_variables_whatever_is_in_them() -> None:
    """Quotes, dollars and newlines are text; what was set before is set again."""
    nasty = 'it\'s $HOME `id` "x"\n$(id)'
    values = {"NASTY": nasty, "WAS": "new"}
    script = "\n".join(
        (
            "WAS=old",
            environments.setting("bash", values, keep=False),
            'printf "%s|%s|" "$NASTY" "$WAS"',
            environments.restoring("bash", values),
            'printf "%s|%s" "${NASTY-gone}" "$WAS"',
        )
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == f"{nasty}|new|gone|old"


def test_a_language_is_found_by_what_people_call_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TypeScript's kernel runs JavaScript; what is not there is named, with what is; broken files are passed over."""
    monkeypatch.setattr(specs, "_DIRECTORIES", (str(tmp_path),))
    for name, text in (
        ("deno", '{"argv": ["deno", "{resource_dir}/x"], "language": "TypeScript"}'),
        ("ir", '{"argv": ["R"], "language": "R", "env": {"A": "1"}}'),
        ("broken", "{"),
        ("odd", '{"argv": 5}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel.json").write_text(text)
    for word in ("js", "JavaScript", "ts", " typescript "):
        assert specs.find(specs.normalized(word)).argv == ("deno", f"{tmp_path}/deno/x")
    assert specs.find("r").env == {"A": "1"}
    assert specs.normalized(None) == "python"
    with pytest.raises(ProblemError, match="there are: javascript, r, typescript"):
        specs.find("python")


async def asked(data: bytes) -> Request | None:
    """What a connection makes of these bytes."""
    reader = asyncio.StreamReader(limit=limits.HEAD_BYTES_MAX)
    reader.feed_data(data)
    reader.feed_eof()
    return await Connection(reader, None).request()  # type: ignore[arg-type]


async def test_requests_come_with_a_length_or_in_chunks() -> None:
    """The query is not part of the path; an empty body is an empty object."""
    whole = await asked(b"POST /execute?x=1 HTTP/1.1\r\nContent-Length: 8\r\n\r\n" + b'{"a": 1}')
    chunked = await asked(
        b'POST /execute HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n5;x\r\n": 1}\r\n0\r\n\r\n'
    )
    assert whole is not None
    assert chunked is not None
    assert (whole.path, whole.json(), chunked.json()) == ("/execute", {"a": 1}, {"a": 1})
    empty = await asked(b"GET /contexts HTTP/1.1\r\n\r\n")
    assert empty is not None
    assert empty.json() == {}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n", 413),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * limits.HEAD_BYTES_MAX + b"\r\n\r\n", 431),
    ],
)
async def test_what_is_no_request_is_refused(data: bytes, status: int) -> None:
    """Before anything of it is kept."""
    with pytest.raises(ProblemError) as refused:
        await asked(data)
    assert refused.value.status == status


async def test_a_connection_that_ends_has_no_request() -> None:
    """In the middle of a head or of a body."""
    assert await asked(b"") is None
    assert await asked(b"GET / HT") is None
    assert await asked(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc") is None


def test_a_restart_while_a_program_is_being_started_ends_it_too() -> None:
    """Between vfork and exec its parent cannot be stopped, only killed."""
    starting = "import ctypes, signal; ctypes.CDLL(None).vfork(); signal.pause()"
    argv = [sys.executable, "-I", "-S", str(Path(keeper.__file__))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(json.dumps([sys.executable, "-c", starting]).encode() + b"\n")
        running.stdin.flush()
        kernel = Path(f"/proc/{int(running.stdout.readline())}")
        until_sync(lambda: (kernel / "stat").read_text().rpartition(")")[2].split()[0] == "D", 30)
        running.stdin.close()
        try:
            running.wait(30)
        finally:
            running.kill()
        assert not kernel.exists()
