"""docs/reference/protocol.md, the section on files: each route, parameter and message does what the page says."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio

from sandpty.server.dialects.native import file_models as models
from sandpty.server.dialects.native.files import FILES
from sandpty.wire.errors import REASONS
from sandpty.wire.file_types import EntryType, WatchEventType
from tests.docs.test_protocol_reference import PAGE, ROUTES, statuses
from tests.e2e.native import Box, sandbox
from tests.server_fixture import RunningServer

ALL = FILES.replace("{sandbox}", "{id}")
SECTION = PAGE.split("\n## Files\n")[1]
QUERIES: dict[tuple[str, str], type[models.FileQuery]] = {
    ("GET", "/stat"): models.StatQuery,
    ("GET", "/list"): models.ListQuery,
    ("GET", "/content"): models.ReadQuery,
    ("PUT", "/content"): models.WriteQuery,
    ("PUT", "/directory"): models.MakeDirectoryQuery,
    ("PUT", "/symlink"): models.MakeSymlinkQuery,
    ("POST", "/move"): models.MoveQuery,
    ("POST", "/copy"): models.CopyQuery,
    ("POST", "/change"): models.ChangeQuery,
    ("DELETE", ""): models.RemoveQuery,
}


@pytest_asyncio.fixture(scope="module")
async def box(server: RunningServer) -> AsyncIterator[Box]:
    """One sandbox for this file."""
    async with sandbox(server) as made:
        yield made


def test_every_route_of_files_is_in_the_table_of_this_test() -> None:
    """And the watch, which is no row."""
    assert {(method, path) for method, path in ROUTES if path.startswith(ALL)} == {
        (method, ALL + path) for method, path in [*QUERIES, ("GET", "/watch")]
    }


def _fields(model: type[msgspec.Struct]) -> dict[str, Any]:
    return {each.name: each.default for each in msgspec.structs.fields(model) if each.name not in ("path", "user")}


@pytest.mark.parametrize(("route", "model"), QUERIES.items(), ids=str)
def test_every_parameter_is_on_the_page_with_its_default(route: tuple[str, str], model: type[models.FileQuery]) -> None:
    """The names in the route's row are the fields of its query."""
    cell = ROUTES[route[0], ALL + route[1]][1]
    assert set(re.findall(r"`(\w+)`", cell)) == set(_fields(model))
    for name, default in _fields(model).items():
        if isinstance(default, bool | int) or (isinstance(default, str) and default):
            assert re.search(rf"`{name}` \([^)]*{re.escape(json.dumps(default))}", cell), (name, default)


def test_parameters_and_messages_of_a_watch_are_on_the_page() -> None:
    """And every type of an event and of an entry."""
    row = SECTION.split("query: ")[1].split("Messages")[0]
    assert set(re.findall(r"`(\w+)` ?\n?\(false\)", row)) == set(_fields(models.WatchQuery))
    assert {name.name.lower() for name in WatchEventType} <= set(re.findall(r"`(\w+)`", SECTION))
    assert {name.name.lower() for name in EntryType} <= set(re.findall(r"`(\w+)`", SECTION))
    for status, name in re.findall(r"(4\d\d|507) `(\w+)`", SECTION):
        assert REASONS[name].http == int(status), name


async def test_every_route_answers_as_documented(box: Box) -> None:
    """Each once in its purpose, with the status of its row; entries have the fields of the page."""
    example = json.loads(re.search(r'```json\n(\{"path".*?)```', SECTION, re.DOTALL)[1])  # type: ignore[index]

    async def call(method: str, route: str, query: str, body: bytes | None = None) -> Any:
        answer = await box.api.request(method, f"{box.path}/files{route}?{query}", content=body)
        assert answer.status_code in statuses(ROUTES[method, ALL + route]), answer.text
        if not answer.content or (method, route) in (("GET", "/content"), ("GET", "/list")):
            return answer
        assert set(answer.json()) == set(example)
        return answer.json()

    made = await call("PUT", "/content", "path=a.txt", b"12345")
    assert {name: made[name] for name in example if not name.startswith("modified")} == {
        name: example[name] for name in example if not name.startswith("modified")
    }
    assert (await call("GET", "/stat", "path=~/a.txt"))["modified_ns"] == made["modified_ns"]
    assert (await call("GET", "/content", "path=/home/user/a.txt")).content == b"12345"
    assert (await call("PUT", "/directory", "path=d/e&parents=true"))["type"] == "directory"
    assert (await call("PUT", "/symlink", "path=d/l&text=../a.txt"))["target"] == "/home/user/a.txt"
    assert (await call("POST", "/copy", "path=d&to=f&recursive=true"))["name"] == "f"
    assert (await call("POST", "/move", "path=a.txt&to=d/b.txt"))["path"] == "/home/user/d/b.txt"
    assert (await call("POST", "/change", "path=d/b.txt&mode=0600&modified_ns=1000"))["modified_ns"] == 1000
    lines = (await call("GET", "/list", "path=.&depth=2")).text.splitlines()
    names = [json.loads(line)["path"].removeprefix("/home/user/") for line in lines]
    assert [name for name in names if name[0] in "df"] == ["d", "d/b.txt", "d/e", "d/l", "f", "f/e", "f/l"]
    await call("DELETE", "", "path=d&recursive=true")
    refused = await box.api.delete(f"{box.path}/files?path=f")
    assert (refused.status_code, refused.json()["error"]["reason"]) == (409, "not_empty")


async def test_names_are_bytes_in_queries_and_text_in_json(box: Box) -> None:
    """Both ways, byte by byte, with nothing but the page; what does not need it looks as it is."""
    for raw, query, text in (
        (b"\xff\xfe", "%FF%FE", "%FF%FE"),
        (b"100%", "100%25", "100%25"),
        ("é ü".encode(), "%C3%A9+%C3%BC", "é ü"),
        (b"two\nlines", "two%0Alines", "two\nlines"),
        (b'"quoted"\\', "%22quoted%22%5C", '"quoted"\\'),
    ):
        answer = await box.api.put(f"{box.path}/files/content?path=/tmp/{query}", content=raw)
        assert answer.status_code == 201, answer.text
        assert answer.json()["path"] == "/tmp/" + text
        process = await box.start("sh", "-c", f"exec cat \"$(printf '{_octal(raw)}')\"", cwd="/tmp")
        async with box.attach(process) as terminal:
            assert (await terminal.until_exit()).value == 0
            assert terminal.data == raw
        assert (await box.api.get(f"{box.path}/files/content?path=/tmp/{query}")).content == raw


def _octal(raw: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in raw)


async def test_a_watch_says_what_the_page_says(box: Box, server: RunningServer) -> None:
    """Events as they come; `sync`; anything else is refused; `gone` is the last."""
    url = f"{server.url}{box.path}/files/watch?path=/tmp/watched&entries=true"
    await box.api.put(f"{box.path}/files/directory?path=/tmp/watched")
    async with aiohttp.ClientSession(headers=server.headers) as session, session.ws_connect(url) as socket:
        await box.api.put(f"{box.path}/files/content?path=/tmp/watched/%FF", content=b"x")
        await socket.send_str("sync")
        seen: list[dict[str, Any]] = []
        while "synced" not in (message := await socket.receive_json(timeout=20)):
            seen += message["events"]
        assert message == {"synced": 1}
        assert set(seen[0]) == {"type", "name", "entry"}
        assert {(each["type"], each["name"]) for each in seen} == {("create", "%FF"), ("write", "%FF")}
        assert seen[0]["entry"]["path"] == "/tmp/watched/%FF"
        await box.api.delete(f"{box.path}/files?path=/tmp/watched&recursive=true")
        while not any(each["type"] == "gone" for each in message.get("events", [])):
            message = await socket.receive_json(timeout=20)
        assert (await socket.receive(timeout=20)).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1000
    wrong = url.replace("/watched", "")
    async with aiohttp.ClientSession(headers=server.headers) as session, session.ws_connect(wrong) as socket:
        await socket.send_str("hello")
        assert (await socket.receive(timeout=20)).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == REASONS["bad_frame"].ws_close
