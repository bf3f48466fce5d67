"""`/files` and the filesystem service by hand: what the SDKs never send, and what other clients do."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import socket
import struct
import zlib
from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import quote, urlparse

import httpx
import pytest
from e2b import Sandbox

from tests.conformance.conftest import Envd
from tests.conformance.wire import STREAM, check_error, ending, envelope, envelopes
from tests.server_fixture import RunningServer
from tests.waiting import until_sync

TEXT = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def shared(sdk_env: dict[str, str]) -> Iterator[Sandbox]:
    """One sandbox for the tests of this file."""
    created = Sandbox.create(timeout=600)
    created.files.write("/tmp/text", TEXT)
    yield created
    created.kill()


@pytest.fixture
def envd(server: RunningServer, shared: Sandbox) -> Envd:
    """Raw access to its API."""
    return Envd(server.url, shared)


def get(envd: Envd, path: str, **headers: str) -> httpx.Response:
    """GET /files, without the headers that httpx likes to add."""
    plain = {key: value for key, value in envd.headers.items() if key != "Content-Type"}
    plain |= {"Accept-Encoding": "identity", **headers}
    return httpx.get(f"{envd.url}/files?path={quote(path)}", headers=plain, timeout=20)


def post(
    envd: Envd, path: str, content: bytes, kind: str = "application/octet-stream", **headers: str
) -> httpx.Response:
    """POST /files."""
    query = f"?path={quote(path)}" if path else ""
    headers = {**envd.headers, "Content-Type": kind, **headers}
    return httpx.post(f"{envd.url}/files{query}", content=content, headers=headers, timeout=20)


def form(*parts: tuple[str, bytes], boundary: str = "x", name: str = "file") -> bytes:
    """A multipart body of (file name, content)."""
    body = b""
    for file_name, content in parts:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{file_name}"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


FORM = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=102300-", 102300, 102399),
        ("bytes=-5", 102395, 102399),
        ("bytes=-999999", 0, 102399),
        ("bytes=5-99999999999", 5, 102399),
    ],
)
def test_a_part_is_that_part(envd: Envd, asked: str, first: int, last: int) -> None:
    """206, where it lies, and its bytes."""
    answer = get(envd, "/tmp/text", Range=asked)
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(TEXT)}"
    assert answer.content == TEXT[first : last + 1]


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes=-"])
def test_what_is_no_range_is_passed_over(envd: Envd, asked: str) -> None:
    """As RFC 9110 has it: the whole file."""
    answer = get(envd, "/tmp/text", Range=asked)
    assert (answer.status_code, answer.content) == (200, TEXT)


def test_a_part_behind_the_end_cannot_be_had(envd: Envd) -> None:
    """416, with the size."""
    for asked in ("bytes=102400-", "bytes=-0"):
        answer = get(envd, "/tmp/text", Range=asked)
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{len(TEXT)}"


def test_a_client_that_has_the_file_is_told_so(envd: Envd, shared: Sandbox) -> None:
    """304 by tag and by date, until the file changes; a part only of the same file."""
    shared.files.write("/tmp/changes", "one")
    whole = get(envd, "/tmp/changes")
    tag, date = whole.headers["etag"], whole.headers["last-modified"]
    assert whole.headers["vary"] == "Accept-Encoding"
    assert get(envd, "/tmp/changes", **{"If-None-Match": f'"other", W/{tag}'}).status_code == 304
    assert get(envd, "/tmp/changes", **{"If-Modified-Since": date}).status_code == 304
    assert get(envd, "/tmp/changes", **{"If-Match": '"other"'}).status_code == 412
    assert get(envd, "/tmp/changes", **{"If-Range": tag, "Range": "bytes=1-1"}).content == b"n"
    shared.files.write("/tmp/changes", "other")
    assert get(envd, "/tmp/changes", **{"If-None-Match": tag}).content == b"other"
    assert get(envd, "/tmp/changes", **{"If-Range": tag, "Range": "bytes=1-1"}).content == b"other"


def test_head_says_what_get_would(envd: Envd) -> None:
    """Length and type without the content."""
    answer = httpx.head(f"{envd.url}/files?path=/tmp/text", headers=envd.headers)
    assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(TEXT)))


@pytest.mark.parametrize(
    ("accepts", "gets"),
    [
        ("gzip", "gzip"),
        ("gzip, identity;q=0", "gzip"),
        ("gzip, deflate, br", None),
        ("", None),
        ("*", None),
        ("gzip;q=0", None),
        ("br", None),
    ],
)
def test_the_coding_is_one_the_client_takes(envd: Envd, accepts: str, gets: str | None) -> None:
    """gzip for who asks for it alone, else the bytes as they are."""
    answer = get(envd, "/tmp/text", **{"Accept-Encoding": accepts})
    assert answer.headers.get("content-encoding") == gets
    assert answer.content == TEXT


def test_no_coding_at_all_is_a_406(envd: Envd) -> None:
    """Neither gzip nor plain."""
    check_error(get(envd, "/tmp/text", **{"Accept-Encoding": "br, identity;q=0"}), 406)


@pytest.mark.parametrize(
    ("name", "kind", "disposition"),
    [
        ("a.html", "text/html; charset=utf-8", "inline; filename=a.html"),
        ("b c.PNG", "image/png", 'inline; filename="b c.PNG"'),
        ("ü.bin", "application/octet-stream", "inline; filename*=utf-8''%C3%BC.bin"),
        ('"\\', "application/octet-stream", 'inline; filename="\\"\\\\"'),
    ],
)
def test_type_and_name_go_along(envd: Envd, shared: Sandbox, name: str, kind: str, disposition: str) -> None:
    """By the name's ending; and a browser believes nothing else."""
    shared.files.write(f"/tmp/{name}", "x", use_octet_stream=True)
    answer = get(envd, f"/tmp/{name}")
    assert (answer.headers["content-type"], answer.headers["content-disposition"]) == (kind, disposition)
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_name_that_is_no_text_is_kept(envd: Envd, shared: Sandbox) -> None:
    """Bytes in, bytes out; in a listing as near as JSON comes."""
    url = f"{envd.url}/files?path=/tmp/raw/%FF%FEname"
    headers = {**envd.headers, "Content-Type": "application/octet-stream"}
    answer = httpx.post(url, content=b"raw", headers=headers)
    assert answer.json()[0]["name"] == "\ufffd\ufffdname"
    assert httpx.get(url, headers=envd.headers).content == b"raw"
    assert shared.commands.run("ls /tmp/raw | od -An -tx1").stdout.split() == ["ff", "fe", "6e", "61", "6d", "65", "0a"]
    assert [entry.name for entry in shared.files.list("/tmp/raw")] == ["\ufffd\ufffdname"]
    assert (
        post(
            envd,
            "",
            b'--x\r\nContent-Disposition: form-data; name=file; filename="/tmp/raw/\xfe"\r\n\r\n1\r\n--x--',
            FORM,
        ).status_code
        == 200
    )
    assert httpx.get(f"{envd.url}/files?path=/tmp/raw/%FE", headers=envd.headers).content == b"1"


def test_a_form_takes_paths_from_its_file_names(envd: Envd) -> None:
    """All of them, the leading slash too; other parts are passed over; the query wins over a name."""
    answer = post(envd, "", form(("/tmp/f1/a", b"1"), ("rel/b", b"2"), ("~/c", b"3")), FORM)
    assert [item["path"] for item in answer.json()] == ["/tmp/f1/a", "/home/user/rel/b", "/home/user/c"]
    assert post(envd, "", form(("/tmp/f1/other", b"x"), name="comment"), FORM).json() == []
    assert post(envd, "/tmp/f1/wins", form(("/tmp/f1/a", b"9")), FORM).json()[0]["path"] == "/tmp/f1/wins"
    assert get(envd, "/tmp/f1/a").content == b"1"
    check_error(get(envd, "/tmp/f1/other"), 404)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_a_form_is_the_same_in_any_pieces(envd: Envd, chunk: int) -> None:
    """Content that looks like boundaries, cut anywhere."""
    content = b"\r\n--\r\n--xy\r\n-\r\n--x" + b"\r" * 5 + b"--x--"
    body = form(("/tmp/pieces", content.replace(b"\r\n--x", b"\r\n--y")), ("/tmp/pieces2", b""))
    headers = {**envd.headers, "Content-Type": FORM}
    pieces = (body[at : at + chunk] for at in range(0, len(body), chunk))
    answer = httpx.post(f"{envd.url}/files", content=pieces, headers=headers)
    assert answer.status_code == 200, answer.text
    assert get(envd, "/tmp/pieces").content == content.replace(b"\r\n--x", b"\r\n--y")
    assert get(envd, "/tmp/pieces2").content == b""


def test_bad_uploads_say_what_is_wrong(envd: Envd) -> None:
    """Each a 400 that names it."""
    assert "path" in check_error(post(envd, "", b"x"), 400)
    assert "content type" in check_error(post(envd, "/tmp/x", b"x", "text/plain"), 400)
    assert "boundary" in check_error(post(envd, "/tmp/x", b"x", "multipart/form-data"), 400)
    assert "boundary" in check_error(post(envd, "/tmp/x", b"--x\r\nno end", FORM), 400)
    assert "boundary" in check_error(post(envd, "/tmp/x", b"", FORM), 400)
    assert "too long" in check_error(post(envd, "/tmp/x", b"--x\r\n" + b"A: b\r\n" * 10_000, FORM), 400)
    assert "same path" in check_error(post(envd, "", form(("/tmp/s", b"1"), ("/tmp/s", b"2")), FORM), 400)
    assert get(envd, "/tmp/s").content == b"1"
    assert "NUL" in check_error(post(envd, "/tmp/a\0b", b"x"), 400)
    check_error(post(envd, "/tmp/" + "x/" * 3000, b"x"), 400)
    check_error(post(envd, "/tmp/x", b"not gzip", **{"Content-Encoding": "gzip"}), 400)


def test_compressed_uploads_are_unpacked(envd: Envd) -> None:
    """The whole body, forms too; a bomb costs only the disk it fills."""
    assert post(envd, "/tmp/z1", gzip.compress(TEXT), **{"Content-Encoding": "gzip"}).status_code == 200
    body = gzip.compress(form(("/tmp/z2", TEXT)))
    assert post(envd, "", body, FORM, **{"Content-Encoding": "gzip"}).status_code == 200
    assert get(envd, "/tmp/z1").content == get(envd, "/tmp/z2").content == TEXT
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(64)) + bomb.flush()
    assert post(envd, "/tmp/bomb", packed, **{"Content-Encoding": "gzip"}).status_code == 200
    assert httpx.head(f"{envd.url}/files?path=/tmp/bomb", headers=envd.headers).headers["content-length"] == str(
        64 << 20
    )


@pytest.mark.parametrize(
    "bad",
    [{"X-Metadata-": "x"}, {"X-Metadata-" + "k" * 247: "x"}, {"X-Metadata-k": "x" * 4096}, {"X-Metadata-k": "t\tb"}],
)
def test_metadata_has_bounds(envd: Envd, bad: dict[str, str]) -> None:
    """400, and no file."""
    check_error(post(envd, "/tmp/refused", b"x", **bad), 400)
    check_error(get(envd, "/tmp/refused"), 404)
    fits = {"X-Metadata-" + "k" * 246: "v" * 500, "x-metadata-B": "~ !"}
    assert post(envd, "/tmp/accepted", b"x", **fits).json()[0]["metadata"] == {"k" * 246: "v" * 500, "b": "~ !"}


def signature(token: str, path: str, operation: str, user: str = "", expiration: str = "") -> str:
    """As the SDKs make one."""
    text = ":".join([path, operation, user, token] + ([expiration] if expiration else []))
    return "v1_" + b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def test_who_may_is_asked_first(envd: Envd) -> None:
    """Each refusal in E2B's words; the header wins over a signature."""
    bare = {"E2b-Sandbox-Id": envd.headers["E2b-Sandbox-Id"]}
    url = f"{envd.url}/files?path=/etc/hostname"
    good = signature(envd.token, "/etc/hostname", "read")
    assert check_error(httpx.get(url, headers=bare), 401) == "missing signature query parameter"
    assert check_error(httpx.get(f"{url}&signature=v1_x", headers=bare), 401) == "invalid signature"
    wrong = {**bare, "X-Access-Token": "0" * 64}
    message = "access token present in header but does not match"
    assert check_error(httpx.get(f"{url}&signature={quote(good)}", headers=wrong), 401) == message
    assert httpx.get(f"{url}&signature={quote(good)}", headers=bare).status_code == 200
    assert httpx.get(f"{url}&signature={quote(good)}").status_code == 200
    assert httpx.get(f"{url}&signature={good}").status_code == 200  # a bare + is a space in a query
    assert check_error(httpx.post(f"{url}&signature={quote(good)}", content=b""), 401) == "invalid signature"
    check_error(httpx.get(f"{url}&signature={quote(good)}&signature_expiration=soon"), 400)
    late = signature(envd.token, "/etc/hostname", "read", expiration="100")
    answer = httpx.get(f"{url}&signature={quote(late)}&signature_expiration=100")
    assert answer.json() == {"code": 401, "message": "signature is already expired"}
    assert check_error(httpx.get(url), 502) == "The sandbox was not found"
    text = check_error(httpx.get(f"{url}&username=nobody-here", headers=envd.headers), 401)
    assert text == "error looking up user 'nobody-here': user: unknown user nobody-here"


def test_the_signature_is_the_one_e2b_makes() -> None:
    """The vector of E2B's own documents."""
    token = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"
    assert signature(token, "hello.txt", "read", "user") == "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E"


def test_files_are_composed(envd: Envd, shared: Sandbox) -> None:
    """One after the other, the parts are gone, and what was there is replaced only by the whole."""
    name = "w" * 255  # as long as names may be
    for i in range(3):
        shared.files.write(f"/tmp/part{i}", f"{i}" * 100_000)
    body = {"source_paths": [f"/tmp/part{i}" for i in range(3)], "destination": f"~/new/{name}"}
    answer = httpx.post(f"{envd.url}/files/compose", json=body, headers=envd.headers, timeout=20)
    assert answer.json() == {"path": f"/home/user/new/{name}", "name": name, "type": "file"}
    assert shared.files.read(f"new/{name}") == "0" * 100_000 + "1" * 100_000 + "2" * 100_000
    assert not shared.files.exists("/tmp/part1")
    assert shared.files.get_info(f"new/{name}").owner == "user"
    for bad, status in [
        ({}, 400),
        ({"source_paths": ["/tmp/none"], "destination": f"new/{name}"}, 404),
        ({"source_paths": ["/tmp"], "destination": f"new/{name}"}, 400),
        ({"source_paths": [f"new/{name}"], "destination": f"new/{name}"}, 400),
        ({"source_paths": [f"/home/user/./new/{name}"], "destination": f"new/{name}"}, 400),
        ({"source_paths": [f"new/{name}"], "destination": ""}, 400),
        ({"source_paths": [f"new/{name}"], "destination": "x", "username": "nobody-here"}, 401),
    ]:
        check_error(httpx.post(f"{envd.url}/files/compose", json=bad, headers=envd.headers), status)
    assert len(shared.files.read(f"new/{name}")) == 300_000
    assert [entry.name for entry in shared.files.list("new")] == [name]


def test_metrics_and_environment_of_the_sandbox(envd: Envd, shared: Sandbox) -> None:
    """As envd has them."""
    metrics = httpx.get(f"{envd.url}/metrics", headers=envd.headers).json()
    assert set(metrics) >= {"ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "disk_used", "disk_total"}
    assert 0 < metrics["mem_used"] < metrics["mem_total"]
    environment = httpx.get(f"{envd.url}/envs", headers=envd.headers).json()
    assert environment["E2B_SANDBOX_ID"] == shared.sandbox_id
    check_error(httpx.get(f"{envd.url}/envs", headers={"E2b-Sandbox-Id": shared.sandbox_id}), 401)


def test_the_services_messages_may_have_either_spelling(envd: Envd) -> None:
    """proto3 JSON: lowerCamelCase or as in the definition; what is default is left out."""
    envd.unary("filesystem.Filesystem/MakeDir", {"path": "/tmp/spelling"})
    for spelled, entry in (("watcherId", "includeEntry"), ("watcher_id", "include_entry")):
        made = envd.unary("filesystem.Filesystem/CreateWatcher", {"path": "/tmp/spelling", entry: True}).json()
        assert made["watcherId"].startswith("w")
        post(envd, f"/tmp/spelling/{entry}", b"x")
        found = envd.unary("filesystem.Filesystem/GetWatcherEvents", {spelled: made["watcherId"]}).json()
        assert found["events"][0]["entry"]["size"] == "0" or found["events"][0]["entry"]["size"] == "1"
        assert "symlinkTarget" not in found["events"][0]["entry"]
        assert envd.unary("filesystem.Filesystem/RemoveWatcher", {spelled: made["watcherId"]}).json() == {}
        gone = envd.unary("filesystem.Filesystem/RemoveWatcher", {spelled: made["watcherId"]})
        assert (gone.status_code, gone.json()["code"]) == (404, "not_found")
    listed = envd.unary("filesystem.Filesystem/ListDir", {"path": "/tmp/spelling", "depth": "0"}).json()
    assert [entry["name"] for entry in listed["entries"]] == ["includeEntry", "include_entry"]
    assert envd.unary("filesystem.Filesystem/ListDir", {"path": "/tmp/spelling", "depth": -1}).status_code == 400
    assert envd.unary("filesystem.Filesystem/Remove", {"path": "/tmp/none/at/all"}).json() == {}


def test_a_watch_stream_starts_keeps_alive_and_ends_in_its_envelope(envd: Envd) -> None:
    """`start` first; keepalives as asked; a timeout and a missing directory are in the end envelope, with 200."""
    headers = {**STREAM, "Keepalive-Ping-Interval": "1", "Connect-Timeout-Ms": "2500"}
    answer = envd.raw("filesystem.Filesystem/WatchDir", envelope({"path": "/srv"}), **headers)
    messages = [message for flags, message in envelopes(answer.content) if flags == 0]
    assert messages[0] == {"start": {}}
    assert {"keepalive": {}} in messages
    assert ending(answer.content)["code"] == "deadline_exceeded"
    answer = envd.raw("filesystem.Filesystem/WatchDir", envelope({"path": "/none"}), **STREAM)
    assert (answer.status_code, ending(answer.content)["code"]) == (200, "not_found")
    answer = envd.raw("filesystem.Filesystem/WatchDir", b"", **STREAM)
    assert ending(answer.content)["code"] == "invalid_argument"


def test_a_client_that_stops_sending_leaves_no_good_file(envd: Envd, shared: Sandbox) -> None:
    """The connection breaks in the middle: no answer, and its place for a connection is free again."""
    parts = urlparse(envd.url)
    for _ in range(30):
        raw = socket.create_connection((parts.hostname, parts.port))
        head = "".join(f"{key}: {value}\r\n" for key, value in envd.headers.items() if key != "Content-Type")
        raw.sendall(
            f"POST /files?path=/tmp/half HTTP/1.1\r\nHost: x\r\n{head}Content-Type: application/octet-stream\r\n"
            f"Content-Length: 1000000\r\n\r\n".encode()
            + b"x" * 1000
        )
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()
    assert post(envd, "/tmp/after", b"x").status_code == 200
    assert shared.files.read("/tmp/after") == "x"


def test_a_sandbox_that_ends_cuts_what_is_under_way(server: RunningServer) -> None:
    """Neither an upload nor a download of it ends well."""
    sandbox = Sandbox.create(timeout=120)
    envd = Envd(server.url, sandbox)
    sandbox.commands.run("truncate -s 3G /tmp/big")
    parts = urlparse(envd.url)
    url = f"{envd.url}/files?path=/tmp/big"
    up = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    up.putrequest("POST", "/files?path=/tmp/up")
    for key, value in {
        **envd.headers,
        "Content-Type": "application/octet-stream",
        "Content-Length": "99999999",
    }.items():
        up.putheader(key, value)
    up.endheaders()
    up.send(b"x" * 100_000)
    with httpx.stream("GET", url, headers={**envd.headers, "Accept-Encoding": "identity"}, timeout=30) as down:
        pieces = down.iter_raw()
        assert next(pieces)
        sandbox.kill()
        with pytest.raises(httpx.TransportError):
            sum(map(len, pieces))
    try:
        up.send(b"x" * 1_000_000)
        refused = up.getresponse()
    except OSError:
        pass
    else:
        assert refused.status == 502
        assert json.loads(refused.read())["message"] == "The sandbox was not found"
    until_sync(lambda: httpx.get(f"{envd.url}/health", headers=envd.headers).status_code == 502, 30)


def test_transfers_take_no_memory(server: RunningServer, envd: Envd) -> None:
    """A gigabyte each way, and the server has grown by less than 32 MiB."""
    assert server.process is not None
    status = f"/proc/{server.process.pid}/status"

    def peak() -> int:
        with open(status, encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024

    block = os.urandom(1 << 20)
    headers = {**envd.headers, "Content-Type": "application/octet-stream"}
    httpx.post(f"{envd.url}/files?path=/tmp/warm", content=block, headers=headers, timeout=60)
    get(envd, "/tmp/warm")
    before = peak()
    url = f"{envd.url}/files?path=/tmp/huge"
    answer = httpx.post(url, content=(block for _ in range(1024)), headers=headers, timeout=100)
    assert answer.status_code == 200
    size = 0
    with httpx.stream("GET", url, headers={**envd.headers, "Accept-Encoding": "identity"}, timeout=100) as stream:
        for piece in stream.iter_raw():
            size += len(piece)
    assert size == 1 << 30
    assert peak() - before < 32 << 20
