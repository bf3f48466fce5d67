"""docs/reference/protocol.md is true: its routes, fields, frames, close codes and reasons exist and do what it says.

The tables are read from the page, so that neither page nor code can change alone.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web

from sandpty.server.dialects import native
from sandpty.server.dialects.native import models
from sandpty.wire import frames
from sandpty.wire.errors import REASONS
from sandpty.wire.frames import Exit, ExitReason, FrameType, From, ProcessFlags, Stream, Target
from sandpty.wire.verbs import Limits
from tests.e2e.native import Box, opened, sandbox
from tests.server_fixture import RunningServer
from tests.waiting import until

PAGE = (Path(__file__).parents[2] / "docs/reference/protocol.md").read_text()
SHOWN = 101  # a WebSocket that shows a process
FIELDS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}


def rows(section: str) -> Iterator[list[str]]:
    """The cells of every table row under a heading."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def documented_routes() -> dict[tuple[str, str], list[str]]:
    """(method, path) of every route on the page, with its row."""
    found = {}
    for section, prefix in (
        ("Sandboxes", ""),
        *((each, "/v1/sandboxes/{id}") for each in ("Processes", "Files", "Attach")),
    ):
        for row in rows(section):
            if match := re.fullmatch(r"`(GET|POST|PUT|DELETE) (\S+)`", row[0]):
                found[match[1], match[2].replace("…", prefix)] = row
    assert "`GET …/files/watch`, a WebSocket" in PAGE
    found["GET", "/v1/sandboxes/{id}/files/watch"] = []
    match = re.search(r"`(GET) (/v1/sandboxes/\{id\}/ports/\{port\})`", PAGE)
    assert match is not None
    found["GET", match[2]] = []
    return found


def documented_frames(direction: str) -> dict[str, tuple[int, str]]:
    """Name -> (type, payload) of the frames that `direction` sends."""
    table = PAGE.split(f"| {direction} sends | type | payload |")[1].split("\n\n")[0]
    found = {}
    for line in table.splitlines():
        if match := re.fullmatch(r"\| `(\w+)`.*? \| 0x([0-9A-F]{2}) \| (.*) \|", line):
            found[match[1]] = (int(match[2], 16), match[3])
    return found


def layout(payload: str) -> struct.Struct:
    """The fixed fields of a payload as the page writes it, in order."""
    return struct.Struct("<" + "".join(FIELDS[kind] for kind in re.findall(r"\b(u8|u16|u32|u64)\b", payload)))


ROUTES = documented_routes()
SERVER_FRAMES, CLIENT_FRAMES = documented_frames("the server"), documented_frames("the client")


@pytest_asyncio.fixture(scope="module")
async def box(server: RunningServer) -> AsyncIterator[Box]:
    """One sandbox for this file."""
    async with sandbox(server) as made:
        yield made


# --- the page against the code ----------------------------------------------------------------------------------------


def test_the_page_lists_every_route_and_no_other() -> None:
    """A route that is not documented, or a documented one that is not there, is an error."""
    context: Any = SimpleNamespace(registry=None, auth=None, settings=None, stopping=[])
    code = {
        (route.method, route.path.replace("{sandbox}", "{id}"))
        for route in native.routes(context)
        if isinstance(route, web.RouteDef) and route.method != "*"
    }
    assert set(ROUTES) == code


@pytest.mark.parametrize(
    ("route", "model"),
    [
        (("POST", "/v1/sandboxes"), models.CreateBody),
        (("POST", "/v1/sandboxes/{id}/pause"), models.PauseBody),
        (("POST", "/v1/sandboxes/{id}/resume"), models.ResumeBody),
        (("POST", "/v1/sandboxes/{id}/snapshots"), models.SnapshotBody),
        (("POST", "/v1/sandboxes/{id}/fork"), models.ForkBody),
        (("POST", "/v1/volumes"), models.VolumeBody),
        (("PUT", "/v1/sandboxes/{id}/deadline"), models.TimeoutBody),
        (("PUT", "/v1/sandboxes/{id}/network"), models.NetworkBody),
        (("POST", "/v1/sandboxes/{id}/processes"), models.StartBody),
        (("POST", "/v1/sandboxes/{id}/processes/{process}/signal"), models.SignalBody),
        (("POST", "/v1/sandboxes/{id}/processes/{process}/resize"), models.WindowSize),
    ],
)
def test_every_field_of_a_body_is_on_the_page_with_its_default(
    route: tuple[str, str], model: type[msgspec.Struct]
) -> None:
    """The names in the route's row are the fields of its body; simple defaults stand beside them."""
    cell = ROUTES[route][1]
    while (without := re.sub(r"\{[^{}]*\}", "", cell)) != cell:  # what a field consists of is looked at below
        cell = without
    assert set(re.findall(r"`(\w+)`", cell)) == set(model.__struct_fields__)
    for field in msgspec.structs.fields(model):
        if isinstance(field.default, int | float | str) and field.default != "":
            shown = json.dumps(field.default)
            assert re.search(rf"`{field.name}` \([^)]*{re.escape(shown)}", ROUTES[route][1]), (field.name, shown)


def test_nested_fields_and_choices_are_on_the_page() -> None:
    """Limits, window sizes, on_timeout's and target's values."""
    create, start = ROUTES["POST", "/v1/sandboxes"][1], ROUTES["POST", "/v1/sandboxes/{id}/processes"][1]
    assert re.search(r"`limits` \{([^}]*)\}", create)[1] == ", ".join(f"`{f}`" for f in Limits.__struct_fields__)  # type: ignore[index]
    assert "`pty` {`cols`, `rows`} or null" in start
    choices = {field.name: field.type for field in msgspec.structs.fields(models.CreateBody)}
    for choice in get_args(choices["on_timeout"]):
        assert f'"{choice}"' in create
    for target in Target:
        assert f'"{target.name.lower()}"' in ROUTES["POST", "/v1/sandboxes/{id}/processes/{process}/signal"][1]


def test_every_frame_has_the_documented_type_and_layout() -> None:
    """The page's frames are those of the wire module, number by number."""
    for name, (kind, _) in {**SERVER_FRAMES, **CLIENT_FRAMES}.items():
        assert FrameType[name] == kind
    assert set(SERVER_FRAMES) == {"ATTACHED", "OUTPUT", "GAP", "RESIZED", "EXIT", "INPUT_ACK", "PONG", "ERROR"}
    assert set(CLIENT_FRAMES) == {"INPUT", "RESIZE", "SIGNAL", "CLOSE_STDIN", "ACK", "PING"}
    samples: dict[str, tuple[tuple[int, ...], bytes, Any]] = {
        "ATTACHED": ((1, 2, 3, 4, 80, 24, 11, 5), b"", frames.Attached(1, 2, 3, 4, 80, 24, ProcessFlags(11), 5)),
        "OUTPUT": ((2, 7), b"abc", frames.Output(2, 7, b"abc")),
        "GAP": ((1, 9), b"", frames.Gap(1, 9)),
        "RESIZED": ((80, 24), b"", frames.Resized(80, 24)),
        "EXIT": ((1, 9, 3, 1, 99), b"", Exit(True, 9, ExitReason.KILLED, True, 99)),
        "INPUT_ACK": ((8,), b"", frames.InputAck(8)),
        "PONG": ((8,), b"", frames.Pong(8)),
        "ERROR": ((13, 2), b"no", frames.AgentError(13, "no")),
    }
    for name, (values, tail, expected) in samples.items():
        kind, payload = SERVER_FRAMES[name]
        assert frames.decode(kind, layout(payload).pack(*values) + tail) == expected
        assert frames.message(expected) == bytes([kind]) + layout(payload).pack(*values) + tail


def test_numbers_with_names_have_the_names_of_the_page() -> None:
    """Streams, targets and flags as the tables give them."""
    assert {int(n): name for n, name in re.findall(r"(\d) (pty|stdout|stderr)", SERVER_FRAMES["OUTPUT"][1])} == {
        stream.value: stream.name.lower() for stream in Stream
    }
    targets = re.search(r"target \(([^)]*)\)", CLIENT_FRAMES["SIGNAL"][1])
    assert targets is not None
    assert {int(n): name for n, name in re.findall(r"(\d) (\w+)", targets[1])} == {
        target.value: target.name.lower() for target in Target
    }
    flags = re.search(r"flags \(([^)]*)\)", SERVER_FRAMES["ATTACHED"][1])
    assert flags is not None
    assert {int(n): name.replace(" ", "_").upper() for n, name in re.findall(r"(\d) ([a-z ]+)", flags[1])} == {
        flag.value: flag.name for flag in ProcessFlags
    }


def test_every_way_to_begin_is_on_the_page() -> None:
    """The values of `from` are those of the protocol."""
    row = next(row for row in rows("Attach") if row[0] == "`from`")
    assert {name for name in re.findall(r"`(\w+)`", row[1]) if name != "value"} == {
        origin.name.lower() for origin in From
    }


def test_every_reason_and_close_code_on_the_page_is_in_the_table() -> None:
    """What the page calls an error is one, with the code it gives."""
    codes = PAGE.split("Close codes:")[1]
    pairs = re.findall(r"(4\d{3})((?:,? `\w+`)+)", codes)
    assert pairs
    for code, names in pairs:
        for name in re.findall(r"`(\w+)`", names):
            if name != "sandbox_ended" or code == "4502":
                assert REASONS[name].ws_close == int(code)
    for status, name in re.findall(r"(4\d\d) `(\w+)`", PAGE.split("Close codes:")[0]):
        assert REASONS[name].http == int(status), name
    reasons = re.search(r"`reason` is `exited`[^.;]*", PAGE.replace("\n", " "))
    assert reasons is not None
    assert set(re.findall(r"`(\w+)`", reasons[0])) - {"reason"} == {reason.name.lower() for reason in ExitReason}


# --- the page against a running server --------------------------------------------------------------------------------


def statuses(row: list[str]) -> set[int]:
    """The success statuses a row gives."""
    return {int(status) for status in re.findall(r"\b(20\d)\b", row[2])}


async def _started(own: Box) -> dict[tuple[str, str], int]:
    """The WebSockets that start what they show, each once."""
    async with own.started("true"):
        pass
    async with opened(own.server, {"process": {"argv": ["true"]}, "sandbox": {"timeout_s": 60}}) as (other, _):
        await own.api.delete(other.path)
    return {("GET", "/v1/sandboxes/{id}/start"): SHOWN, ("GET", "/v1/start"): SHOWN}


async def _volumes(own: Box) -> dict[tuple[str, str], int]:
    """The routes of volumes, and what they answered."""
    made = await own.api.post("/v1/volumes", json={"name": "page", "disk_mb": 16})
    listed = await own.api.get("/v1/volumes")
    volume = made.json()["id"]
    assert volume in {each["id"] for each in listed.json()["volumes"]}
    called = {("POST", "/v1/volumes"): made.status_code, ("GET", "/v1/volumes"): listed.status_code}
    for method in ("GET", "DELETE"):
        answer = await own.api.request(method, f"/v1/volumes/{volume}")
        called[method, "/v1/volumes/{volume}"] = answer.status_code
    return called


async def test_every_documented_route_answers_as_documented(server: RunningServer) -> None:
    """Each route is called once in its purpose, and answers with the status of its row."""
    async with sandbox(server) as own:
        process = await own.terminal("sh", "-c", "printf x; read line; exit 7")
        called = await _started(own) | await _volumes(own)

        async def call(method: str, path: str, body: Any = None) -> Any:
            url = path.replace("{id}", own.id).replace("{process}", str(process))
            content = None if body is None else json.dumps(body).encode()
            answer = await own.api.request(method, url, content=content)
            called[method, path] = answer.status_code
            return answer.json() if answer.content else None

        one, of_process = "/v1/sandboxes/{id}", "/v1/sandboxes/{id}/processes/{process}"
        await call("GET", "/v1/host")
        made = await call("POST", "/v1/sandboxes", {"timeout_s": 60})
        assert made["id"] in {item["id"] for item in (await call("GET", "/v1/sandboxes"))["sandboxes"]}
        assert (await own.api.delete(f"/v1/sandboxes/{made['id']}")).status_code == 204
        await call("PUT", one + "/deadline", {"timeout_s": 100})
        await call("PUT", one + "/network", {"network": {"deny_out": ["192.0.2.1"]}})
        await call("POST", one + "/pause")
        await call("POST", one + "/resume")
        kept = await call("POST", one + "/snapshots", {"name": "page"})
        assert set(kept) == set(json.loads(re.search(r'`(\{"id": "4f0.*?\})`', PAGE)[1].replace("…", "...")))  # type: ignore[index]
        assert kept["id"] in {each["id"] for each in (await call("GET", "/v1/snapshots"))["snapshots"]}
        for fork in (await call("POST", one + "/fork", {"timeout_s": 60}))["forks"]:
            await own.api.delete(f"/v1/sandboxes/{fork['id']}")
        called["DELETE", "/v1/snapshots/{snapshot}"] = (await own.api.delete("/v1/snapshots/page")).status_code
        assert (await call("GET", "/v1/team"))["name"] == "default"
        for path, list_ in (("/metrics", "samples"), ("/log", "lines")):
            for name in (await call("GET", one + path))[list_][0]:
                assert f'"{name}"' in ROUTES["GET", one + path][2]
        called["GET", "/v1/metrics"] = (await own.api.get("/v1/metrics")).status_code
        await call("POST", one + "/processes", {"argv": ["true"]})
        await call("GET", one + "/processes")
        await call("POST", of_process + "/resize", {"cols": 90, "rows": 30})
        await call("POST", of_process + "/input")
        looked = await call("GET", of_process)
        assert (looked["cols"], looked["rows"]) == (90, 30)
        async with own.attach(process) as terminal:
            called["GET", of_process + "/attach"] = SHOWN
            await terminal.type(b"\r")
            await terminal.until_exit()
        exit_ = await call("GET", of_process + "/wait")
        process = await own.start("sleep", "1000")
        await call("POST", of_process + "/close-stdin")
        await call("POST", of_process + "/signal", {"signal": "KILL"})
        described = await call("GET", one)
        await call("DELETE", one)

        # Those of files: test_protocol_files.py; ports: component/test_native_ports.py; SSH: e2e/test_ssh.py.
        assert set(called) == {route for route in ROUTES if not re.search("/(files|ports|ssh)", route[1])}
        for route, status in called.items():
            assert status in statuses(ROUTES[route]) or (status == SHOWN and "`ATTACHED`" in ROUTES[route][2]), (
                route,
                status,
            )
        example = json.loads(re.search(r'```json\n(\{"id".*?)```', PAGE, re.DOTALL)[1].replace("…", "..."))  # type: ignore[index]
        assert set(described) == set(example)
        assert set(described["limits"]) == set(example["limits"])
        example = json.loads(re.search(r"`(\{\"code\": 7.*?\})`", PAGE)[1])  # type: ignore[index]
        assert set(exit_) == set(example)
        assert (exit_["code"], exit_["signal"], exit_["reason"]) == (7, None, "exited")


async def test_errors_look_as_on_the_page(box: Box) -> None:
    """{"error": {"reason", "message", "hint"}} with the reason's status."""
    example = json.loads(re.search(r'```json\n(\{"error".*?)```', PAGE, re.DOTALL)[1].replace("…", "..."))  # type: ignore[index]
    answer = await box.api.get("/v1/sandboxes/i" + "0" * 20)
    assert answer.status_code == REASONS[example["error"]["reason"]].http
    assert set(answer.json()["error"]) == set(example["error"])
    assert answer.json()["error"]["reason"] == example["error"]["reason"]


class Raw:
    """A WebSocket whose messages are kept as bytes."""

    def __init__(self, terminal: Any) -> None:
        self.socket = terminal.socket
        self.seen: dict[int, list[bytes]] = {}

    async def until(self, kind: int, count: int = 1) -> bytes:
        """The payload of the `count`th message of a type."""
        while len(self.seen.get(kind, [])) < count:
            message: bytes = await self.socket.receive_bytes(timeout=10)
            self.seen.setdefault(message[0], []).append(message[1:])
        return self.seen[kind][-1]

    async def say(self, name: str, *values: int, tail: bytes = b"") -> None:
        """A frame built from the page alone."""
        kind, payload = CLIENT_FRAMES[name]
        await self.socket.send_bytes(bytes([kind]) + layout(payload).pack(*values) + tail)

    def written(self) -> bytes:
        """All output so far."""
        return b"".join(message[9:] for message in self.seen.get(SERVER_FRAMES["OUTPUT"][0], []))

    def fields(self, name: str) -> list[tuple[int, ...]]:
        """The messages of a type, as the page says they are to be read."""
        kind, payload = SERVER_FRAMES[name]
        fixed = layout(payload)
        return [fixed.unpack_from(message) for message in self.seen.get(kind, [])]


async def test_every_frame_is_said_and_understood_byte_by_byte(box: Box) -> None:
    """Both directions with nothing but the page: each client frame has its effect, each server frame its layout."""
    types = {name: kind for name, (kind, _) in SERVER_FRAMES.items()}
    process = await box.terminal("sh", "-c", "stty -echo; printf ready; read a; stty size; read b; sleep 1000; echo $?")
    async with box.attach(process, "from=offset&window=65536") as terminal, box.attach(process) as other:
        view, watcher = Raw(terminal), Raw(other)
        assert terminal.info == frames.decode(types["ATTACHED"], layout(SERVER_FRAMES["ATTACHED"][1]).pack(
            process, terminal.info.pid, 0, terminal.info.end, 80, 24, 15, 0))  # fmt: skip
        await view.until(types["OUTPUT"])
        await view.say("RESIZE", 100, 30)
        await watcher.until(types["RESIZED"])
        assert watcher.fields("RESIZED") == [(100, 30)]
        await view.say("INPUT", 0, tail=b"\r")
        await view.until(types["INPUT_ACK"])
        assert view.fields("INPUT_ACK") == [(1,)]
        await view.say("INPUT", 2**64 - 1, tail=b"\r")
        await view.say("PING", 77)
        await view.until(types["PONG"])
        assert view.fields("PONG") == [(77,)]
        await view.say("INPUT", 1000, tail=b"hole")
        message = await view.until(types["ERROR"])
        code, length = view.fields("ERROR")[0]
        assert (code, length) == (14, len(message) - 6)
        while not view.written().endswith(b"30 100\r\n"):
            await view.until(types["OUTPUT"], len(view.seen[types["OUTPUT"]]) + 1)
        await view.say("SIGNAL", 2, 9)
        await view.until(types["EXIT"])
        assert view.written() == b"ready30 100\r\n"
        at = 0
        for (stream, offset), message in zip(view.fields("OUTPUT"), view.seen[types["OUTPUT"]], strict=True):
            assert (stream, offset) == (0, at)
            at += len(message) - 9
        assert view.fields("EXIT") == [(1, 9, 3, 0, at)]
        await view.say("ACK", at)
    for name, payloads in ((name, view.seen.get(kind, [])) for name, kind in types.items()):
        fixed = layout(SERVER_FRAMES[name][1])
        if name not in ("OUTPUT", "ERROR"):
            assert all(len(payload) == fixed.size for payload in payloads), name


async def test_gap_and_close_stdin_byte_by_byte(box: Box) -> None:
    """The two frames the terminal above has no use for."""
    process = await box.start("sh", "-c", "head -c 50000 /dev/zero; cat; printf end", log_bytes=4096)

    async def filled() -> bool:
        return bool((await box.process(process))["log_end"] >= 50000)

    await until(filled)
    async with box.attach(process) as terminal:
        view = Raw(terminal)
        await view.say("CLOSE_STDIN")
        await view.until(SERVER_FRAMES["EXIT"][0])
        ((start, end),) = view.fields("GAP")
        assert start == 0
        assert end == view.fields("OUTPUT")[0][1]
        assert view.seen[SERVER_FRAMES["OUTPUT"][0]][-1].endswith(b"end")
