"""Builds of templates under bad conditions: other teams, hostile archives and steps, cancelled, a server that dies."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import signal
import tarfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.e2e.test_teams import add_key
from tests.server_fixture import RunningServer, running_server, sandpty
from tests.waiting import until

WAIT_S = 60.0
STEPS = dict[str, Any]


@pytest.fixture(scope="module")
def builder() -> Iterator[RunningServer]:
    """A server of its own: it gets killed, and its list of keys changes."""
    with running_server("--pool", "1") as running:
        yield running


@pytest_asyncio.fixture
async def team(builder: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """The first team."""
    async with httpx.AsyncClient(base_url=builder.url, headers=builder.headers, timeout=30) as client:
        yield client


def run(line: str, user: str = "") -> STEPS:
    """A step that runs a command line."""
    return {"type": "RUN", "args": [line, user] if user else [line]}


async def begin(team: httpx.AsyncClient, name: str, *steps: STEPS, **more: Any) -> str:
    """Start a build; `/templates/{id}/builds/{build}`."""
    asked = await team.post("/v3/templates", json={"name": name})
    assert asked.status_code == 202, asked.text
    path = f"/templates/{asked.json()['templateID']}/builds/{asked.json()['buildID']}"
    body = {"fromTemplate": "base", "steps": list(steps), **more}
    started = await team.post(f"/v2{path}", json=body)
    assert started.status_code == 202, started.text
    return path


async def ended(team: httpx.AsyncClient, path: str) -> dict[str, Any]:
    """The last status of a build."""

    async def over() -> dict[str, Any] | None:
        status = (await team.get(f"{path}/status")).json()
        return status if status["status"] in ("ready", "error") else None

    return await until(over, WAIT_S)


async def upload(team: httpx.AsyncClient, path: str, archive: bytes) -> str:
    """Files for a build of the template in `path`; their hash."""
    files = hashlib.sha256(archive).hexdigest()
    link = await team.get(f"{path.rpartition('/builds/')[0]}/files/{files}")
    assert link.status_code == 201, link.text
    async with httpx.AsyncClient(timeout=30) as anybody:
        put = await anybody.put(link.json()["url"], content=archive)
    assert put.status_code == 200, put.text
    return files


async def output(team: httpx.AsyncClient, template: str, line: str) -> str:
    """What a command prints in a new sandbox of a template."""
    made = await team.post("/v1/sandboxes", json={"template": template, "timeout_s": 120})
    assert made.status_code == 201, made.text
    sandbox = f"/v1/sandboxes/{made.json()['id']}"
    argv = ["/bin/bash", "-c", f"{{ {line}; }} > /tmp/out 2>&1"]
    process = (await team.post(f"{sandbox}/processes", json={"argv": argv})).json()["process"]
    await team.get(f"{sandbox}/processes/{process}/wait")
    text = await team.get(f"{sandbox}/files/content", params={"path": "/tmp/out"})
    await team.delete(sandbox)
    return text.text


def archive_of(*members: tuple[str, bytes | None, dict[str, Any]]) -> bytes:
    """A tar with whatever names and kinds."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name, content, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(content or b"")
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content or b""))
    return gzip.compress(held.getvalue())


async def test_other_teams_see_public_templates_and_change_none(
    builder: RunningServer, team: httpx.AsyncClient
) -> None:
    """A private one is as if it were not there; a public one is for making sandboxes, by the team's name."""
    path = await begin(team, "shared", run("echo ours > /srv/ours", "root"))
    await ended(team, path)
    template = path.split("/")[2]
    key = add_key(builder, "strangers", "one")
    async with httpx.AsyncClient(base_url=builder.url, headers={"X-API-Key": key}, timeout=30) as stranger:

        async def answers() -> list[int]:
            requests = (
                stranger.get(f"/templates/{template}"),
                stranger.get("/templates/aliases/default%2Fshared"),
                stranger.get(f"{path}/status"),
                stranger.get(f"{path}/logs"),
                stranger.get(f"/templates/{template}/files/{'0' * 64}"),
                stranger.post(f"/v2{path}", json={"fromTemplate": "base"}),
                stranger.delete(f"/v2{path}"),
                stranger.patch(f"/v2/templates/{template}", json={"public": True}),
                stranger.post("/templates/tags", json={"target": template, "tags": ["theirs"]}),
                stranger.request("DELETE", "/templates/tags", json={"name": template, "tags": ["default"]}),
                stranger.delete(f"/templates/{template}"),
            )
            return [(await request).status_code for request in requests]

        assert set(await answers()) == {404}
        made = await stranger.post("/v1/sandboxes", json={"template": template})
        assert made.status_code == 404
        assert template not in (await stranger.get("/templates")).text
        published = await team.patch(f"/v2/templates/{template}", json={"public": True})
        assert published.json() == {"names": ["default/shared"]}
        assert await answers() == [200, 200, *[403] * 9]
        assert await output(stranger, "default/shared", "cat /srv/ours") == "ours\n"
        listed = next(each for each in (await stranger.get("/v2/templates")).json() if each["templateID"] == template)
        assert (listed["spawnCount"], listed["public"]) == (0, True)
        # The same name is another template there.
        assert (await begin(stranger, "shared", run("true"))).split("/")[2] != template
    for ours in ("base", "code-interpreter-v1"):
        assert (await team.post("/v3/templates", json={"name": ours})).status_code in (403, 409)
        assert (await team.delete(f"/templates/{ours}")).status_code == 403


async def test_an_archive_is_unpacked_in_a_sandbox_and_nowhere_else(
    builder: RunningServer, team: httpx.AsyncClient
) -> None:
    """Names that lead elsewhere lead nowhere on the host, whatever the guest's tar makes of them."""
    mark = "/tmp/sandpty-must-not-be-here"
    path = await begin(team, "archives", run("true"))
    await ended(team, path)
    link = {"type": tarfile.SYMTYPE, "linkname": "/etc"}
    archives = [
        archive_of((f"../../../../../..{mark}", b"x", {}), ("f", b"kept", {})),
        archive_of((mark, b"x", {}), ("f", b"kept", {})),
        archive_of(("d", None, link), ("d/sandpty-evil", b"x", {}), ("f", b"kept", {})),
        archive_of(("f", b"kept", {}), ("dev", None, {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0})),
        archive_of(("f", b"kept", {"mode": 0o6755, "uid": 0}), ("g", None, {"type": tarfile.LNKTYPE, "linkname": "f"})),
        b"\x1f\x8bnot really compressed",
        b"",
    ]
    for archive in archives:
        files = await upload(team, path, archive)
        step = {"type": "COPY", "args": ["f", "/srv/f", "root", ""], "filesHash": files}
        status = await ended(team, await begin(team, "archives", step, run("stat -c '%U %a' /srv/f")))
        assert status["status"] == "error" or "root" in str(status["logEntries"])
        assert not await asyncio.to_thread(os.path.lexists, mark)
        assert not await asyncio.to_thread(os.path.lexists, "/etc/sandpty-evil")
    outside = {"type": "COPY", "args": ["../../etc/passwd", "/srv/f", "", ""], "filesHash": "0" * 64}
    for step, what in ((outside, "below the build's directory"), ({**outside, "args": ["f", "/f"]}, "not uploaded")):
        assert what in (await ended(team, await begin(team, "archives", step)))["reason"]["message"]
    template = path.split("/")[2]
    assert (await team.get(f"/templates/{template}/files/..%2F..%2Fetc%2Fpasswd")).status_code == 400
    assert (await team.put("/templates/uploads/forged.token.x", content=b"x")).status_code == 401


async def test_hostile_steps_harm_nobody(builder: RunningServer, team: httpx.AsyncClient) -> None:
    """A flood of output, a fork bomb, a full disk, and a look for the host: the build says how it ended."""
    flood = await begin(team, "flood", run("yes 0123456789 | head -c 5000000; head -c 3000000 /dev/zero"))
    bomb = await begin(team, "bomb", run("bomb() { bomb | bomb & }; bomb; sleep 2; exit 4"))
    found = await ended(team, flood)
    assert found["status"] == "ready"
    lines, offset = [], 0
    while page := (await team.get(f"{flood}/status", params={"logsOffset": offset})).json()["logEntries"]:
        lines += page
        offset += len(page)
        if offset > 1000:
            break
    logs = await team.get(f"{flood}/logs", params={"direction": "backward", "limit": 5})
    assert any("are left out" in line["message"] for line in logs.json()["logs"]), logs.text
    # Whether the shell gets as far as its exit among all the others is its own affair.
    assert (await ended(team, bomb))["status"] in ("ready", "error")
    look = run("ls /var/lib/sandpty /run/sandpty* 2>&1; cat /proc/1/environ; id -u", "root")
    seen = await ended(team, await begin(team, "look", look))
    assert str(builder.data_dir) not in str(seen)
    assert (await team.get("/healthz")).status_code == 200
    for body in (
        {"steps": []},
        {"fromImage": "a", "fromTemplate": "b"},
        {"fromTemplate": "base", "steps": [{"type": "NO"}]},
    ):
        asked = (await team.post("/v3/templates", json={"name": "bodies"})).json()
        wrong = await team.post(f"/v2/templates/{asked['templateID']}/builds/{asked['buildID']}", json=body)
        assert wrong.status_code == 400, wrong.text


async def test_a_cancelled_build_leaves_nothing(builder: RunningServer, team: httpx.AsyncClient) -> None:
    """No sandbox, no process: by itself, or with its template."""
    for number, whole in enumerate((False, True)):
        path = await begin(team, f"cancelled-{number}", run("echo begun; sleep 1000"))
        await until(lambda path=path: _has_begun(team, path), WAIT_S)
        assert await _hidden(builder) == 1
        where = f"/templates/{path.split('/')[2]}" if whole else f"/v2{path}"
        assert (await team.delete(where)).status_code == 204
        assert await _hidden(builder) == 0
        if whole:
            assert (await team.get(f"{path}/status")).status_code == 404
        else:
            status = (await team.get(f"{path}/status")).json()
            assert (status["status"], status["reason"]["message"]) == ("error", "the build was cancelled")
            assert (await team.delete(f"/v2{path}")).status_code == 409
    asked = (await team.post("/v3/templates", json={"name": "never-started"})).json()
    path = f"/templates/{asked['templateID']}/builds/{asked['buildID']}"
    assert (await team.delete(f"/v2{path}")).status_code == 204
    assert (await team.get(f"{path}/status")).json()["status"] == "error"


async def _has_begun(team: httpx.AsyncClient, path: str) -> bool:
    return "begun" in [line["message"].split()[-1] for line in (await team.get(f"{path}/status")).json()["logEntries"]]


async def _hidden(builder: RunningServer) -> int:
    """Sandboxes of builds: no list shows them, so they are counted where they are kept."""
    metas = [path.read_text() for path in (builder.data_dir / "sandboxes").glob("*/meta.json")]
    return sum('"owner":"build:' in meta for meta in metas)


async def test_files_and_layers_are_their_teams_alone(builder: RunningServer, team: httpx.AsyncClient) -> None:
    """Two dozen uploads at once, as SDKs send them; what lies about its hash, or was made of it, reaches no others."""
    path = await begin(team, "own-files")
    template = path.split("/")[2]
    archives = [archive_of((f"f{number}", b"x" * 100_000, {})) for number in range(24)]
    sent = await asyncio.gather(*(upload(team, path, archive) for archive in archives))
    assert len(set(sent)) == 24
    honest, lie = archive_of(("f", b"honest", {})), archive_of(("f", b"a lie", {}))
    files = hashlib.sha256(honest).hexdigest()
    link = (await team.get(f"/templates/{template}/files/{files}")).json()
    async with httpx.AsyncClient(timeout=30) as anybody:
        assert (await anybody.put(link["url"], content=lie)).status_code == 200
    step = {"type": "COPY", "args": ["f", "/srv/f", "", ""], "filesHash": files}
    assert (await ended(team, await begin(team, "own-files", step)))["status"] == "ready"
    key = add_key(builder, "neighbours", "one")
    async with httpx.AsyncClient(base_url=builder.url, headers={"X-API-Key": key}, timeout=30) as other:
        theirs = await begin(other, "own-files", step)
        assert "not uploaded" in (await ended(other, theirs))["reason"]["message"]
        assert not (await other.get(f"/templates/{theirs.split('/')[2]}/files/{files}")).json()["present"]
        assert await upload(other, theirs, honest) == files
        again = await ended(other, await begin(other, "own-files", step))
        assert not any("CACHED" in line["message"] for line in again["logEntries"])
        assert await output(other, "own-files", "cat /srv/f") == "honest"


async def test_builds_of_one_name_at_once_are_builds_of_one_template(team: httpx.AsyncClient) -> None:
    """Also the first ones; each is told how it ended, and the name means one that is ready."""
    paths = await asyncio.gather(*(begin(team, "at-once") for _ in range(10)))
    assert {(await ended(team, path))["status"] for path in paths} == {"ready"}
    assert len({path.split("/")[2] for path in paths}) == 1
    found = (await team.get("/templates/at-once")).json()
    assert {build["buildID"] for build in found["builds"]} == {path.split("/")[4] for path in paths}
    assert found["buildStatus"] == "ready"


async def test_builds_of_the_same_steps_at_once_take_nothing_from_each_other(team: httpx.AsyncClient) -> None:
    """One that makes a layer anew while another, which has made the same one, is not over yet: both templates work."""
    step = run("echo same > /srv/same", "root")
    slow = await begin(team, "same-slow", step, startCmd="sleep 1000", readyCmd="sleep 1")

    async def has_its_layer() -> bool:
        return "ready command" in (await team.get(f"{slow}/status")).text

    await until(has_its_layer, WAIT_S)
    quick = await begin(team, "same-quick", step, force=True)
    for path in (quick, slow):
        assert (await ended(team, path))["status"] == "ready"
    assert [await output(team, name, "cat /srv/same") for name in ("same-slow", "same-quick")] == ["same\n"] * 2


async def test_what_several_sandboxes_stand_on_becomes_one_copy(
    builder: RunningServer, team: httpx.AsyncClient
) -> None:
    """Nothing of it looks different: owners, capabilities, hard links, what was taken away; others stand on it."""
    path = await begin(
        team,
        "layered",
        run("mkdir d; echo old > d/gone; echo kept > one; ln one two; cp /bin/sleep .; sudo chown 1:2 sleep"),
        run("rm -r d; mkdir d; echo new > d/new; sudo chmod 6755 sleep"),
        run("rm two; ln one three; sudo rm -r /usr/share/doc"),
    )
    assert (await ended(team, path))["status"] == "ready"
    look = "cd /home/user; echo *; stat -c '%U:%G %u %a %h' sleep one; ls d; ls -d /usr/share/doc"
    before = await output(team, "layered", look)
    assert before.startswith("d one sleep three\ndaemon:bin 1 6755 1\nuser:user 1000 644 2\nnew\nls: "), before

    def laid() -> int:
        metas = (builder.data_dir / "snapshots").glob("*/snapshot.json")
        return sum('"laid_together":true' in meta.read_text() for meta in metas)

    assert laid() == 0
    assert await output(team, "layered", look) == before
    await until(laid, WAIT_S)
    assert await output(team, "layered", look) == before
    above = await begin(team, "above", run("rm three"), fromTemplate="layered")
    assert (await ended(team, above))["status"] == "ready"
    assert "d one sleep\n" in await output(team, "above", look)


async def test_sandboxes_of_a_built_template_are_kept_warm(builder: RunningServer, team: httpx.AsyncClient) -> None:
    """As many as the operator says, with the start command running and ready; of the new build once there is one."""

    def warm() -> set[str]:
        metas = ((path.parent.name, path.read_text()) for path in (builder.data_dir / "sandboxes").glob("*/meta.json"))
        return {name for name, meta in metas if '"phase":"warm"' in meta and f'"template":"{template}"' in meta}

    async def build(word: str) -> str:
        serve = {
            "startCmd": "sleep 0.2; cd /srv; exec python3 -m http.server 8000",
            "readyCmd": "curl -sf localhost:8000",
        }
        path = await begin(team, "hot", run(f"echo {word} > /srv/word", "root"), **serve)
        assert (await ended(team, path))["status"] == "ready"
        return path.split("/")[2]

    template = await build("first")
    argv = sandpty("template", "warm", "--data-dir", str(builder.data_dir), template, "1")
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert await process.communicate() == (b"hot: 1 kept warm\n", None)
    before = await until(warm, WAIT_S)
    made = (await team.post("/v1/sandboxes", json={"template": "hot", "timeout_s": 120})).json()
    assert {made["id"]} == before
    await until(lambda: warm() - before, WAIT_S)
    await team.delete(f"/v1/sandboxes/{made['id']}")
    assert await output(team, "hot", "curl -s localhost:8000/word") == "first\n"
    before = await until(warm, WAIT_S)
    await build("second")
    await until(lambda: warm() and not warm() & before, WAIT_S)
    assert await output(team, "hot", "curl -s localhost:8000/word") == "second\n"
    await team.delete("/templates/hot")
    await until(lambda: not warm(), WAIT_S)


async def test_templates_outlive_the_server_and_its_supervisor(builder: RunningServer, team: httpx.AsyncClient) -> None:
    """What is built stays, with its log; what was being built is told to have failed, and its steps are kept."""
    done = await begin(team, "stays", run("echo kept > /srv/kept", "root"), startCmd="sleep 1000", readyCmd="true")
    assert (await ended(team, done))["status"] == "ready"
    log = (await team.get(f"{done}/logs")).json()
    slow = (run("echo first step; date +%N > /srv/first", "root"), run("echo begun; sleep 1000"))
    path = await begin(team, "interrupted", *slow)
    await until(lambda: _has_begun(team, path), WAIT_S)
    os.kill(builder.supervisor_pid(), signal.SIGKILL)
    assert (await team.get(f"{path}/status")).json()["status"] == "building"  # also while there is nobody to ask
    builder.kill()
    builder.start()
    status = await ended(team, path)
    assert (status["status"], "restarted during the build" in status["reason"]["message"]) == ("error", True)
    assert "first step" in str(status["logEntries"])

    async def none_hidden() -> bool:
        return await _hidden(builder) == 0

    await until(none_hidden, WAIT_S)
    again = await ended(team, await begin(team, "interrupted", slow[0]))
    assert any(line["message"].startswith("CACHED [1/1]") for line in again["logEntries"])
    assert (await team.get(f"{done}/logs")).json() == log
    assert await output(team, "stays", "cat /srv/kept; pgrep -xc sleep") == "kept\n1\n"
