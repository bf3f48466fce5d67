"""Hyperbrowser's control plane through its unmodified Python SDK, synchronous and asynchronous."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hyperbrowser import AsyncHyperbrowser, Hyperbrowser
from hyperbrowser.client.managers.sync_manager.sandbox import SandboxHandle
from hyperbrowser.exceptions import HyperbrowserError
from hyperbrowser.models import (
    CreateSandboxParams,
    SandboxExposeParams,
    SandboxListParams,
    SandboxMemorySnapshotParams,
    StartSandboxFromSnapshotParams,
)

from sandpty.wire.verbs import first_team
from tests.component.supervisor_peer import Peer
from tests.server_fixture import RunningServer
from tests.waiting import until_sync

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def sandbox(hyperbrowser: Hyperbrowser) -> Iterator[SandboxHandle]:
    """One for the tests that change nothing of it."""
    made = hyperbrowser.sandboxes.create(CreateSandboxParams(image_name="base"))
    yield made
    hyperbrowser.sandboxes.stop(made.id)


# A service on port 3001 that says what came with a request.
TELLS = """
import http.server
class Tells(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{self.headers['Authorization']} {self.headers['Cookie']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("", 3001), Tells).serve_forever()
"""


def refused(call: Callable[[], Any]) -> tuple[int | None, str | None, str | None]:
    """Status, code and service of the error that a call ends in."""
    with pytest.raises(HyperbrowserError) as caught:
        call()
    return caught.value.status_code, caught.value.code, caught.value.service


def reach(server: RunningServer, url: str, **headers: str) -> httpx.Response:
    """Ask for an exposed URL, without a name service for its host."""
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return httpx.get(server.url + path, headers={"Host": parts.netloc, **headers}, timeout=30)


def test_a_sandbox_is_created_found_and_stopped(hyperbrowser: Hyperbrowser) -> None:
    """Sizes, region and life are as asked for; its handle works at once; after `stop` nothing does."""
    params = CreateSandboxParams(
        image_name="base", cpu=1, memory_mib=512, disk_mib=2048, timeout_minutes=7, region="europe-west"
    )
    sandbox = hyperbrowser.sandboxes.create(params)
    assert (sandbox.status, sandbox.cpu, sandbox.memory_mib, sandbox.disk_mib) == ("active", 1, 512, 2048)
    assert (sandbox.region, sandbox.timeout_minutes, sandbox.exposed_ports) == ("europe-west", 7, [])
    assert sandbox.runtime.base_url.endswith(f"/sandbox/{sandbox.id}")
    assert sandbox.token_expires_at is not None
    assert sandbox.session_url.startswith("http://localhost:")
    assert sandbox.exec("echo ready").stdout == "ready\n"
    assert hyperbrowser.sandboxes.get(sandbox.id).id == sandbox.id
    assert hyperbrowser.sandboxes.connect(sandbox.id).status == "active"
    assert hyperbrowser.sandboxes.get_detail(sandbox.id).token
    assert sandbox.info().id == sandbox.refresh().connect().id
    assert sandbox.to_dict()["id"] == sandbox.to_json()["id"] == sandbox.id
    stale = hyperbrowser.sandboxes.attach(hyperbrowser.sandboxes.get_detail(sandbox.id))
    assert sandbox.stop().success
    assert sandbox.status == "closed"
    detail = hyperbrowser.sandboxes.get_detail(sandbox.id)
    assert (detail.status, detail.token, detail.token_expires_at) == ("closed", None, None)
    for call in (sandbox.connect, stale.connect, lambda: hyperbrowser.sandboxes.connect(sandbox.id)):
        assert refused(call) == (409, "sandbox_not_running", "runtime")
    assert refused(lambda: sandbox.exec("true")) == (409, "sandbox_not_running", "runtime")
    assert refused(sandbox.create_memory_snapshot)[0] == 409
    assert hyperbrowser.sandboxes.stop(sandbox.id).success


async def test_the_same_asynchronously(ahyperbrowser: AsyncHyperbrowser) -> None:
    """Create, find, expose, snapshot, stop."""
    sandboxes = ahyperbrowser.sandboxes
    sandbox = await sandboxes.create(CreateSandboxParams(image_name="base"))
    assert (await sandbox.exec("echo ready")).stdout == "ready\n"
    assert (await sandboxes.get(sandbox.id)).id == (await sandboxes.connect(sandbox.id)).id == sandbox.id
    assert (await sandboxes.get_detail(sandbox.id)).token
    assert (await sandboxes.get_runtime_session(sandbox.id)).token
    assert sandbox.id in [item.id for item in (await sandboxes.list()).sandboxes]
    assert (await sandbox.info()).id == (await sandbox.refresh()).id == (await sandbox.connect()).id
    exposed = await sandbox.expose(SandboxExposeParams(port=3000))
    assert exposed.url == sandbox.get_exposed_url(3000)
    assert not (await sandbox.unexpose(3000)).exposed
    made = await sandbox.create_memory_snapshot()
    assert made.snapshot_id in [item.id for item in (await sandboxes.list_snapshots()).snapshots]
    assert (await sandboxes.get_snapshot(made.snapshot_id)).status == "created"
    second = await sandboxes.start_from_snapshot(StartSandboxFromSnapshotParams(snapshot_name=made.snapshot_name))
    assert (await second.stop()).success
    assert (await sandboxes.delete_snapshot(made.snapshot_id)).deleted
    assert await sandboxes.find_ready_image("base") is None
    assert (await sandbox.create_runtime_session(force_refresh=True)).token
    assert (await sandbox.stop()).success
    with pytest.raises(HyperbrowserError, match="not running"):
        await sandbox.exec("true")


def test_what_does_not_exist_is_said(hyperbrowser: Hyperbrowser) -> None:
    """404 for sandboxes, images, snapshots, and for the id of another image or snapshot."""
    sandboxes = hyperbrowser.sandboxes
    assert refused(lambda: sandboxes.get(str(uuid.uuid4()))) == (404, "not_found", "control")
    assert refused(lambda: sandboxes.stop("nobody"))[0] == 404
    assert refused(lambda: sandboxes.create(CreateSandboxParams(image_name="nothing")))[0] == 404
    other = CreateSandboxParams(image_name="base", image_id=str(uuid.uuid4()))
    assert refused(lambda: sandboxes.create(other)) == (404, "not_found", "control")
    assert refused(lambda: sandboxes.create(CreateSandboxParams(snapshot_name="nothing")))[0] == 404
    assert refused(lambda: sandboxes.get_snapshot("nothing"))[0] == 404
    assert refused(lambda: sandboxes.delete_snapshot("nothing"))[0] == 404
    assert refused(lambda: sandboxes.delete_image("nothing"))[0] == 404


def test_a_list_has_pages_and_filters(hyperbrowser: Hyperbrowser) -> None:
    """Newest first, ten to a page unless asked otherwise; by status, by words, by time of creation."""
    before = hyperbrowser.sandboxes.create(CreateSandboxParams(image_name="base"))
    begun = before.info().start_time + 1
    before.stop()
    made = [hyperbrowser.sandboxes.create(CreateSandboxParams(image_name="base")).id for _ in range(3)]
    hyperbrowser.sandboxes.stop(made[0])

    def listed(**params: Any) -> list[str]:
        answer = hyperbrowser.sandboxes.list(SandboxListParams(start=begun, **params))
        assert answer.total_count >= len(answer.sandboxes)
        return [item.id for item in answer.sandboxes]

    assert listed(limit=100) == made[::-1]
    assert [listed(page=page, limit=1) for page in (1, 2, 3, 4)] == [[made[2]], [made[1]], [made[0]], []]
    assert listed(status="closed") == [made[0]]
    assert listed(status="active") == [made[2], made[1]]
    assert listed(search=made[1]) == [made[1]]
    assert hyperbrowser.sandboxes.list(SandboxListParams(start=1, end=2)).sandboxes == []
    first = hyperbrowser.sandboxes.list()
    assert (first.page, first.per_page) == (1, 10)
    for sandbox_id in made[1:]:
        hyperbrowser.sandboxes.stop(sandbox_id)


def test_images_are_this_servers_templates(hyperbrowser: Hyperbrowser) -> None:
    """`base` under its own name; the vendor's names for what programs expect; none can be deleted."""
    images = hyperbrowser.sandboxes.list_images()
    names = [image.image_name for image in images.images]
    assert {"base", "node", "python"} <= set(names)
    assert names == sorted(names)
    assert images.total_count == len(names)
    assert [image.image_name for image in hyperbrowser.sandboxes.list_images({"search": "bas"}).images] == ["base"]
    own = hyperbrowser.sandboxes.list_images({"sources": ["team"]}).images  # other tests may have built some
    assert not {"base", "node", "python"} & {image.image_name for image in own}
    assert hyperbrowser.sandboxes.find_ready_image("base") is None  # it looks for a team's own, and there are none
    base = hyperbrowser.sandboxes.list_images({"search": "base"}).images[0]
    sandbox = hyperbrowser.sandboxes.create(CreateSandboxParams(image_name="base", image_id=base.id))
    sandbox.stop()
    assert refused(lambda: hyperbrowser.sandboxes.delete_image("base"))[0] == 403


async def test_a_teams_templates_are_its_images(server: RunningServer, ahyperbrowser: AsyncHyperbrowser) -> None:
    """Listed as the team's, launched by name, tag and id, and deleted; another team sees none of it."""
    sandboxes = ahyperbrowser.sandboxes
    made = await sandboxes.create(CreateSandboxParams(image_name="base"))
    await made.files.write_text("/home/user/built.txt", "built")
    snapshot = await made.create_memory_snapshot()
    build = {"id": str(uuid.uuid4()), "state": "ready", "files": {"kind": "snapshot", "id": snapshot.snapshot_id}}
    async with Peer(server.data_dir / "run" / "supervisor.sock") as supervisor:
        template = await supervisor.call(
            "save_template",
            owner=first_team(server.api_key),
            names=["our-image"],
            builds=[build],
            tags=[{"name": name, "build": build["id"], "assigned_at": 1.0} for name in ("default", "v2")],
        )
    (image,) = (await sandboxes.list_images({"sources": ["team"], "search": "our-"})).images
    assert (image.image_name, image.source, image.namespace) == ("our-image", "team", "default")
    for params in ({"image_name": "our-image"}, {"image_name": "our-image:v2", "image_id": image.id}):
        launched = await sandboxes.create(CreateSandboxParams(**params))
        assert await launched.files.read_text("/home/user/built.txt") == "built"
        await launched.stop()
    with pytest.raises(HyperbrowserError, match="no build 'v3'"):
        await sandboxes.create(CreateSandboxParams(image_name="our-image:v3"))
    deleted = await sandboxes.delete_image(image.id)
    assert (deleted.deleted, deleted.image_name) == (True, "our-image")
    assert (await sandboxes.list_images({"sources": ["team"], "search": "our-image"})).images == []
    with pytest.raises(HyperbrowserError, match="not found"):
        await sandboxes.create(CreateSandboxParams(image_name="our-image"))
    await made.stop()
    assert template["id"]


def test_a_snapshot_keeps_files_and_launches_sandboxes(hyperbrowser: Hyperbrowser, sandbox: SandboxHandle) -> None:
    """By name and by id; the sandbox goes on; a deleted snapshot launches nothing more."""
    sandbox.files.write_text("/home/user/kept.txt", "kept")
    name = f"snap-{uuid.uuid4().hex[:8]}"
    made = sandbox.create_memory_snapshot(SandboxMemorySnapshotParams(snapshot_name=name))
    assert (made.snapshot_name, made.status, made.image_name) == (name, "created", "base")
    sandbox.files.write_text("/home/user/kept.txt", "changed")
    by_id = CreateSandboxParams(snapshot_name=name, snapshot_id=made.snapshot_id)
    for second in (
        hyperbrowser.sandboxes.create(by_id),
        hyperbrowser.sandboxes.start_from_snapshot(StartSandboxFromSnapshotParams(snapshot_name=name)),
    ):
        assert second.files.read_text("/home/user/kept.txt") == "kept"
        second.stop()
    assert hyperbrowser.sandboxes.get_snapshot(name).id == made.snapshot_id
    assert name in [item.snapshot_name for item in hyperbrowser.sandboxes.list_snapshots({"search": name}).snapshots]
    assert hyperbrowser.sandboxes.list_snapshots({"status": ["failed"]}).snapshots == []
    unknown = CreateSandboxParams(snapshot_name=name, snapshot_id=str(uuid.uuid4()))
    assert refused(lambda: hyperbrowser.sandboxes.create(unknown)) == (404, "not_found", "control")
    assert hyperbrowser.sandboxes.create_memory_snapshot(sandbox.id).snapshot_id != made.snapshot_id
    assert hyperbrowser.sandboxes.delete_snapshot(name).deleted
    assert refused(lambda: hyperbrowser.sandboxes.get_snapshot(name))[0] == 404


def test_ports_are_closed_until_they_are_exposed(server: RunningServer, hyperbrowser: Hyperbrowser) -> None:
    """403 before and after; with `auth` 401 without a token, which stays with us; a browser is let in by its grant."""
    sandbox = hyperbrowser.sandboxes.create(CreateSandboxParams(image_name="base", exposed_ports=[{"port": 3000}]))
    assert [port.port for port in sandbox.exposed_ports] == [3000]
    sandbox.processes.start("mkdir /tmp/w; cd /tmp/w; echo served > i.txt; python3 -m http.server 3000")
    open_url = sandbox.get_exposed_url(3000)
    until_sync(lambda: reach(server, f"{open_url}i.txt").text == "served\n", DEADLINE_S)
    url = sandbox.get_exposed_url(3001)
    assert reach(server, url).status_code == 403
    sandbox.files.write_text("/tmp/tells.py", TELLS)
    sandbox.processes.start("python3 /tmp/tells.py")
    exposed = hyperbrowser.sandboxes.expose(sandbox.id, SandboxExposeParams(port=3001, auth=True))
    assert (exposed.port, exposed.auth, exposed.url) == (3001, True, url)
    bearer = f"Bearer {sandbox.to_dict()['token']}"
    until_sync(lambda: reach(server, f"{url}i.txt", Authorization=bearer).text == "None None", DEADLINE_S)
    assert reach(server, f"{url}i.txt").status_code == 401
    assert reach(server, f"{url}i.txt", Authorization="Bearer nonsense").status_code == 401
    assert exposed.browser_url is not None
    welcome = reach(server, exposed.browser_url)
    assert (welcome.status_code, welcome.headers["location"]) == (302, "/")
    cookie = welcome.headers["set-cookie"].partition(";")[0]
    assert reach(server, f"{url}i.txt", Cookie=cookie).text == "None None"
    assert reach(server, f"{url}i.txt", Cookie=f"one=1; {cookie}; two=2").text == "None one=1; two=2"
    elsewhere = exposed.browser_url.replace("next=%2F", "next=%2F%2Fevil.example")
    assert reach(server, elsewhere).headers["location"] == "/"
    assert reach(server, f"{url}_hb/auth?grant=nonsense").status_code == 401
    assert not hyperbrowser.sandboxes.unexpose(sandbox.id, 3001).exposed
    assert reach(server, f"{url}i.txt", Authorization=bearer).status_code == 403
    assert refused(lambda: sandbox.expose(SandboxExposeParams(port=4001)))[0] == 400
    assert not sandbox.unexpose(3000).exposed
    assert hyperbrowser.sandboxes.get(sandbox.id).exposed_ports == []
    sandbox.stop()


def test_a_sandboxs_network_is_narrowed_and_widened(hyperbrowser: Hyperbrowser) -> None:
    """At its creation and while it runs; what an update does not name stays; nonsense is refused."""
    params = CreateSandboxParams(image_name="base", allow_internet_access=False, allow_out=["10.9.8.7"])
    sandbox = hyperbrowser.sandboxes.create(params)
    assert (sandbox.network.allow_internet_access, sandbox.network.allow_out) == (False, ["10.9.8.7"])
    changed = sandbox.update_network({"deny_out": ["10.1.0.0/16"]}).network
    assert (changed.allow_internet_access, changed.allow_out, changed.deny_out) == (
        False,
        ["10.9.8.7"],
        ["10.1.0.0/16"],
    )
    changed = hyperbrowser.sandboxes.update_network(sandbox.id, {"allow_internet_access": True}).network
    assert changed.allow_internet_access
    cleared = sandbox.clear_network().network
    assert (cleared.allow_internet_access, cleared.allow_out, cleared.deny_out) == (True, [], [])
    assert hyperbrowser.sandboxes.get(sandbox.id).network.deny_out == []
    assert refused(lambda: sandbox.update_network({"allow_out": ["no sense at all"]}))[0] == 400
    sandbox.stop()


def test_what_is_not_served_is_said_in_the_vendors_shape(hyperbrowser: Hyperbrowser, sandbox: SandboxHandle) -> None:
    """501 with the code `unsupported`, and nobody tries again."""
    sandboxes, unsupported = hyperbrowser.sandboxes, (501, "unsupported", "control")
    assert refused(sandboxes.list_image_builds) == unsupported
    assert refused(lambda: sandboxes.get_image_build("b")) == unsupported
    assert refused(lambda: sandboxes.cancel_image_build("b")) == unsupported
    assert refused(lambda: sandboxes.start_secret_process(sandbox.id, {"command": "true"})) == unsupported


def test_secrets_and_vaults_are_refused_in_the_vendors_shape(hyperbrowser: Hyperbrowser) -> None:
    """Each method of both: 501 with the code `unsupported`; neither stores anything by mistake."""
    secrets, vaults, origins = hyperbrowser.secrets, hyperbrowser.vaults, ["https://example.com"]
    for call in (
        secrets.list,
        secrets.get_public_key,
        lambda: secrets.create({"name": "s"}),
        lambda: secrets.create({"name": "s", "value": "v"}),
        lambda: secrets.get("s"),
        lambda: secrets.update("s", {"description": "d"}),
        lambda: secrets.set_allowed_origins("s", origins),
        lambda: secrets.add_version("s", "v"),
        lambda: secrets.delete("s"),
        lambda: secrets.delete_version("s", 1),
        vaults.list,
        lambda: vaults.create({"name": "v"}),
        lambda: vaults.get("v"),
        lambda: vaults.update("v", {"description": "d"}),
        lambda: vaults.delete("v"),
    ):
        assert refused(call) == (501, "unsupported", "control")


@pytest.mark.parametrize(
    "body",
    [
        {"imageName": 7},
        {"imageName": "base", "vcpus": "two"},
        {"imageName": "base", "memMiB": 0},
        {"imageName": "base", "region": "moon"},
        {"imageName": "base", "timeoutMinutes": 1.5},
        {"imageName": "base", "mounts": {"/mnt/x": {"id": "v", "type": "wx"}}},
        {"imageName": "base", "mounts": {"/mnt/x": "v"}},
        {"imageName": "base", "exposedPorts": [{"port": 70000}]},
        {"imageName": "base", "snapshotName": "both"},
        {"snapshotName": "s", "vcpus": 2},
        {},
        [],
    ],
)
def test_fields_have_their_types(server: RunningServer, body: object) -> None:
    """400 with a message, for whoever speaks without an SDK."""
    answer = httpx.post(f"{server.url}/api/sandbox", json=body, headers={"x-api-key": server.api_key}, timeout=30)
    assert answer.status_code == 400, answer.text
    assert answer.json()["message"]
    assert answer.headers["x-request-id"]


def test_a_base_url_that_ends_in_a_slash_or_in_api_is_meant_well(server: RunningServer) -> None:
    """The SDK joins addresses as they are."""
    for ending in ("/", "/api"):
        client = Hyperbrowser(api_key=server.api_key, base_url=server.url + ending)
        assert client.sandboxes.list().page == 1
        client.close()
