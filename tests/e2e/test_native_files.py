"""Files over the native dialect: whole, in part, as somebody, with any name; what goes wrong is said."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx
import pytest
import pytest_asyncio

from tests.e2e.native import Box, sandbox
from tests.server_fixture import RunningServer
from tests.waiting import until

MIB = 1024 * 1024


@pytest_asyncio.fixture(scope="module")
async def box(server: RunningServer) -> AsyncIterator[Box]:
    """One sandbox for this file."""
    async with sandbox(server) as made:
        yield made


async def put(box: Box, path: str, body: Any = b"", query: str = "") -> httpx.Response:
    """Write a file."""
    return await box.api.put(f"{box.path}/files/content?path={quote(path)}&{query}", content=body)


async def get(box: Box, path: str, query: str = "", **headers: str) -> httpx.Response:
    """Read a file; `If_Match` is a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await box.api.get(f"{box.path}/files/content?path={quote(path)}&{query}", headers=named)


async def run(box: Box, script: str, user: str = "root") -> None:
    """A line of shell in the sandbox, to its end."""
    assert (await box.wait(await box.start("sh", "-c", script, user=user)))["code"] == 0


def reason(answer: httpx.Response) -> str:
    """Of an error."""
    return str(answer.json()["error"]["reason"])


async def test_a_big_file_passes_both_ways_in_pieces(box: Box) -> None:
    """As a stream of unknown length, and back; what the guest has is what was sent."""
    content = bytes(range(256)) * 4096 * 16  # 16 MiB

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 100_000):
            yield content[at : at + 100_000]

    answer = await put(box, "/tmp/big", pieces())
    assert (answer.status_code, answer.json()["size"]) == (201, len(content))
    back = hashlib.sha256()
    async with box.api.stream("GET", f"{box.path}/files/content?path=/tmp/big") as response:
        assert int(response.headers["content-length"]) == len(content)
        async for piece in response.aiter_bytes():
            back.update(piece)
    assert back.digest() == hashlib.sha256(content).digest()


def read_from_disk(box: Box) -> int:
    """Bytes that the kernel has read from the sandbox's disk so far."""
    image = f"{box.server.data_dir}/sandboxes/{box.id}/disk.img"
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if backing.read_text().strip() == image:
                return int((backing.parent.parent / "stat").read_text().split()[2]) * 512
    raise AssertionError(f"no device has {image}")


async def test_a_file_bigger_than_the_memory_is_mostly_read_from_memory(server: RunningServer) -> None:
    """What was written last has not driven out what is read first: neither after the upload nor after a download."""
    memory, size = 192 * MIB, 208 * MIB

    async def zeros() -> AsyncIterator[bytes]:
        for _ in range(size // MIB):
            yield bytes(MIB)

    async with sandbox(server, limits={"memory_mb": memory // MIB}) as own:
        assert (await put(own, "/home/user/big", zeros())).status_code == 201
        for _ in range(2):
            before, count = read_from_disk(own), 0
            async with own.api.stream("GET", f"{own.path}/files/content?path=/home/user/big") as response:
                async for piece in response.aiter_raw():
                    count += len(piece)
            assert count == size
            assert read_from_disk(own) - before < size // 2


async def test_a_download_goes_on_where_it_was_cut_unless_the_file_is_another(box: Box) -> None:
    """Range with If-Match: the rest, or 412; a range behind the end is 416."""
    whole = await put(box, "/tmp/part", b"0123456789")
    assert whole.status_code == 201
    first = await get(box, "/tmp/part")
    tag = first.headers["etag"]
    rest = await get(box, "/tmp/part", Range="bytes=4-", If_Match=tag)
    assert (rest.status_code, rest.content, rest.headers["content-range"]) == (206, b"456789", "bytes 4-9/10")
    assert (await get(box, "/tmp/part", Range="bytes=10-")).status_code == 416
    assert (await get(box, "/tmp/part", If_None_Match=tag)).status_code == 304
    await put(box, "/tmp/part", b"abcdefghij")
    assert (await get(box, "/tmp/part", Range="bytes=4-", If_Match=tag)).status_code == 412
    head = await box.api.head(f"{box.path}/files/content?path=/tmp/part")
    assert (head.headers["content-length"], head.headers["x-sandpty-mode"], head.content) == ("10", "0644", b"")


async def test_files_of_proc_are_whole(box: Box) -> None:
    """Whose size says 0."""
    answer = await get(box, "/proc/self/status")
    assert answer.status_code == 200
    assert b"VmRSS" in answer.content
    assert "etag" not in answer.headers


async def test_what_is_there_is_kept_where_it_is_asked_for(box: Box) -> None:
    """append, offset, exclusive, truncate; in place, with the mode that is wanted."""
    await put(box, "/tmp/kept", b"0123456789", "mode=0640")
    assert (await put(box, "/tmp/kept", b"ab", "offset=3")).status_code == 200
    assert (await put(box, "/tmp/kept", b"!", "append=true")).status_code == 200
    assert (await get(box, "/tmp/kept")).content == b"012ab56789!"
    assert reason(await put(box, "/tmp/kept", b"", "exclusive=true")) == "file_exists"
    answer = await put(box, "/tmp/kept", b"xy", "truncate=false")
    assert (answer.json()["size"], answer.json()["mode"]) == (11, "0640")
    assert reason(await put(box, "/tmp/no/such", b"")) == "no_such_file"
    assert (await put(box, "/tmp/no/such", b"", "parents=true&metadata=" + quote('{"k":"é"}'))).status_code == 201
    found = await box.api.get(f"{box.path}/files/stat?path=/tmp/no/such")
    assert found.json()["metadata"] == {"k": "é"}


async def test_who_is_named_really_acts(box: Box) -> None:
    """The guest's kernel says what they may; what is made is theirs, or of whom root names."""
    assert reason(await put(box, "/etc/mine")) == "permission_denied"
    made = (await put(box, "/etc/mine", b"", "user=root&owner=user")).json()
    assert (made["owner"], made["uid"], made["gid"]) == ("user", 1000, 1000)
    assert (await put(box, "/etc/ours", b"", "user=root&owner=7:8")).json()["gid"] == 8
    assert (await put(box, "mine", b"")).json()["owner"] == "user"
    assert (await put(box, "~/mine", b"", "user=root")).json()["path"] == "/root/mine"
    refused = await put(box, "/tmp/x", b"", "user=nobody-knows")
    assert (refused.status_code, reason(refused)) == (401, "no_such_user")
    changed = await box.api.post(f"{box.path}/files/change?path=/etc/ours&user=root&owner=user&mode=4755")
    assert (changed.json()["permissions"], changed.json()["owner"]) == ("-rwsr-xr-x", "user")


async def test_a_listing_is_streamed_and_bounded(box: Box) -> None:
    """Ten thousand entries line by line; more than the limit is an error, also after the first lines."""
    await run(box, "mkdir /tmp/many && cd /tmp/many && seq -f %05g 10000 | xargs touch")
    url = f"{box.path}/files/list?path=/tmp/many"
    names = []
    async with box.api.stream("GET", url) as response:
        assert "content-length" not in response.headers
        async for line in response.aiter_lines():
            names.append(json.loads(line)["name"])
    assert names == [f"{number:05}" for number in range(1, 10001)]
    few = await box.api.get(url + "&limit=9000")
    last = json.loads(few.text.splitlines()[-1]) if few.status_code == 200 else few.json()
    assert last["error"]["reason"] == "limit"
    assert reason(await box.api.get(f"{box.path}/files/list?path=/etc/passwd")) == "not_a_directory"
    assert reason(await box.api.get(f"{box.path}/files/list?path=/nowhere")) == "no_such_file"


@pytest.mark.parametrize(
    ("method", "route", "query", "expected"),
    [
        ("GET", "/stat", "", "bad_request"),
        ("GET", "/stat", "path=/x&misspelt=1", "bad_request"),
        ("GET", "/stat", "path=/x&path=/y", "bad_request"),
        ("GET", "/stat", "path=/x&follow=maybe", "bad_request"),
        ("GET", "/stat", "path=%00", "bad_path"),
        ("GET", "/stat", "path=/" + "x" * 5000, "bad_path"),
        ("GET", "/stat", "path=~other/x", "bad_path"),
        ("GET", "/content", "path=/tmp", "is_a_directory"),
        ("GET", "/content", "path=/dev/zero", "not_a_file"),
        ("GET", "/content", "path=/tmp/pipe", "not_a_file"),
        ("PUT", "/content", "path=/tmp/x&mode=999", "bad_argument"),
        ("PUT", "/content", "path=/tmp/x&metadata=[1]", "bad_request"),
        ("PUT", "/content", "path=/tmp/x&offset=-1", "bad_argument"),
        ("PUT", "/content", "path=/dev/full&truncate=false&user=root", "no_space"),
        ("POST", "/change", "path=/etc/passwd&mode=0666", "permission_denied"),
        ("POST", "/change", "path=/tmp&modified_ns=99999999999999999999999", "bad_argument"),
        ("GET", "/watch", "path=/tmp", "bad_request"),
        ("DELETE", "", "path=/nowhere", "no_such_file"),
    ],
)
async def test_a_bad_request_says_what_is_wrong(box: Box, method: str, route: str, query: str, expected: str) -> None:
    """And hangs nobody: FIFOs and devices too."""
    await box.wait(await box.start("sh", "-c", "mkfifo /tmp/pipe 2>/dev/null; true"))
    body = b"x" if method == "PUT" else None
    answer = await box.api.request(method, f"{box.path}/files{route}?{query}", content=body)
    assert reason(answer) == expected, answer.text


async def test_an_upload_that_cannot_go_on_is_told_before_its_end(box: Box) -> None:
    """The client is still sending when the guest's disk, or a file in the way, says no."""
    await run(box, "touch /tmp/locked && chmod 0600 /tmp/locked")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(MIB)

    answer = await put(box, "/tmp/locked", endless())
    assert (answer.status_code, reason(answer)) == (403, "permission_denied")


async def test_who_stops_sending_leaves_what_had_come_and_no_child(box: Box, server: RunningServer) -> None:
    """The connection to the guest goes with the client."""
    head = (
        f"PUT {box.path}/files/content?path=/tmp/half HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {server.api_key}\r\nContent-Length: 1000\r\n\r\n"
    )
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head.encode() + b"half")

    async def arrived() -> bool:
        found = await box.api.get(f"{box.path}/files/stat?path=/tmp/half")
        return found.status_code == 200 and bool(found.json()["size"] == 4)

    await until(arrived, 30)
    writer.transport.abort()
    assert (await put(box, "/tmp/half", b"whole")).status_code == 200
    assert (await get(box, "/tmp/half")).content == b"whole"


async def test_a_watch_ends_with_its_sandbox_and_says_why(server: RunningServer) -> None:
    """A close code of the table; a paused sandbox's too."""
    async with sandbox(server) as own, aiohttp.ClientSession(headers=server.headers) as session:
        url = f"{server.url}{own.path}/files/watch?path=/tmp"
        async with session.ws_connect(url) as socket:
            assert (await own.api.post(own.path + "/pause")).status_code == 200
            assert (await socket.receive(timeout=30)).type is aiohttp.WSMsgType.CLOSE
            assert socket.close_code == 4409
        assert (await own.api.post(own.path + "/resume")).status_code == 200
        async with session.ws_connect(url) as socket:
            await own.api.delete(own.path)
            assert (await socket.receive(timeout=30)).type is aiohttp.WSMsgType.CLOSE
            assert socket.close_code in (4502, 4503)
