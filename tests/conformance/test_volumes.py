"""Volumes through the vendors' unmodified SDKs (E2B, Novita, Hyperbrowser), and the wire of E2B's content API."""

from __future__ import annotations

import asyncio
import io
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import novita_sandbox.core as novita
import pytest
from e2b import AsyncSandbox, AsyncVolume, Sandbox, Volume, VolumeFileType
from e2b.exceptions import AuthenticationException, NotFoundException, VolumeException, VolumePathNotFoundException
from hyperbrowser import AsyncHyperbrowser, Hyperbrowser
from hyperbrowser.exceptions import HyperbrowserError
from hyperbrowser.models import CreateSandboxParams, SandboxVolumeMount

from sandpty import config
from sandpty.server.runtime_tokens import SignedTokens
from sandpty.server.volumes import VolumeClaims
from tests.conformance.conftest import VENDOR_JS
from tests.server_fixture import RunningServer

CHECKS = Path(__file__).parent / "js" / "volumes.mjs"
NAMES = re.findall(r'^  async "([^"]+)"', CHECKS.read_text(encoding="utf-8"), re.M)
GONE = "0" * 20


def new_name() -> str:
    """Nobody else's."""
    return f"vol-{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def volume(sdk_env: dict[str, str]) -> Iterator[Volume]:
    """One volume for the tests that keep to paths of their own."""
    made = Volume.create(new_name())
    yield made
    assert Volume.destroy(made.volume_id)


@pytest.fixture(scope="module")
def mounted(volume: Volume) -> Iterator[Sandbox]:
    """A sandbox that has it at /mnt/vol."""
    sandbox = Sandbox.create(timeout=300, volume_mounts={"/mnt/vol": volume})
    yield sandbox
    sandbox.kill()


# --- E2B's Python SDK ---


def test_a_volume_is_made_found_and_destroyed(sdk_env: dict[str, str]) -> None:
    """create, connect, get_info, list, destroy; False for one that is gone; a name is given once."""
    name = new_name()
    made = Volume.create(name)
    assert (made.name, Volume.connect(made.volume_id).name) == (name, name)
    info = Volume.get_info(made.volume_id)
    assert (info.volume_id, info.name, bool(info.token)) == (made.volume_id, name, True)
    assert made.volume_id in [each.volume_id for each in Volume.list()]
    with pytest.raises(VolumeException, match="409"):
        Volume.create(name)
    with pytest.raises(VolumeException, match="400"):
        Volume.create("no/name")
    assert Volume.destroy(made.volume_id)
    assert not Volume.destroy(made.volume_id)
    with pytest.raises(NotFoundException):
        Volume.get_info(made.volume_id)
    with pytest.raises(NotFoundException):
        Volume.connect(GONE)


def test_files_pass_between_sandboxes_and_the_content_api(volume: Volume, mounted: Sandbox) -> None:
    """What a sandbox writes is read without one, and the other way round; by name, in a second sandbox, too."""
    mounted.files.write("/mnt/vol/from-sandbox", "hello")
    assert volume.read_file("/from-sandbox") == "hello"
    volume.write_file("/to-sandbox", "back")
    assert mounted.commands.run("cat /mnt/vol/to-sandbox; stat -c %U:%a /mnt/vol/to-sandbox").stdout == "backuser:644\n"
    with pytest.raises(VolumeException, match="409"):
        Volume.destroy(volume.volume_id)
    second = Sandbox.create(timeout=60, volume_mounts={"/data/": volume.name})
    assert second.files.read("/data/from-sandbox") == "hello"
    assert second.get_info().volume_mounts == [{"name": volume.name, "path": "/data"}]
    second.kill()
    assert volume.read_file("/from-sandbox") == "hello"


def test_every_method_of_a_volumes_content(volume: Volume) -> None:
    """make_dir, list, exists, get_info, update_metadata, read_file in each format, write_file of each kind, remove."""
    made = volume.make_dir("/tree/a/b", force=True, mode=0o750, uid=0, gid=33)
    assert (made.type, made.mode, made.uid, made.gid) == (VolumeFileType.DIRECTORY, 0o750, 0, 33)
    content = os.urandom(300_000)
    for number, data in enumerate(("text", content, io.BytesIO(content), io.StringIO("täxt"))):
        volume.write_file(f"/tree/f{number}", data)
    assert [volume.read_file(f"/tree/f{number}", format="bytes") for number in range(4)] == (
        [b"text", content, content, "täxt".encode()]
    )
    assert volume.read_file("/tree/f3") == "täxt"
    assert b"".join(volume.read_file("/tree/f1", format="stream")) == content
    written = volume.write_file("/tree/own", b"x", uid=0, gid=7, mode=0o600)
    assert (written.uid, written.gid, written.mode, written.size) == (0, 7, 0o600, 1)
    changed = volume.update_metadata("/tree/own", mode=0o4755, uid=12, gid=13)
    assert (changed.mode, changed.uid, changed.gid) == (0o4755, 12, 13)
    assert volume.update_metadata("/tree/own", mode=0o640).uid == 12
    assert [each.name for each in volume.list("/tree")] == ["a", "f0", "f1", "f2", "f3", "own"]
    assert "/tree/a/b" in [each.path for each in volume.list("/tree", depth=2)]
    assert volume.get_info("/tree/f0").mtime.tzinfo is not None
    assert volume.exists("/tree/f0")
    volume.remove("/tree")
    assert not volume.exists("/tree")


def test_what_is_wrong_is_said(volume: Volume) -> None:
    """404 for paths that are not there, 409 for what is there already, 400 for what cannot be."""
    volume.write_file("/plain", "x")
    for missing in (
        lambda: volume.read_file("/none"),
        lambda: volume.list("/none"),
        lambda: volume.remove("/none"),
        lambda: volume.make_dir("/none/below"),
        lambda: volume.write_file("/none/below", "x"),
        lambda: volume.update_metadata("/none", mode=0o600),
        lambda: list(volume.read_file("/none", format="stream")),
    ):
        with pytest.raises(VolumePathNotFoundException):
            missing()
    volume.make_dir("/there")
    for status, refused in (
        ("409", lambda: volume.make_dir("/there")),
        ("409", lambda: volume.write_file("/plain", "y", force=False)),
        ("400", lambda: volume.list("/plain")),
        ("400", lambda: volume.read_file("/there")),
        ("400", lambda: volume.write_file("/there", "x")),
        ("400", lambda: volume.remove("/")),
        ("400", lambda: volume.write_file("/plain", "x", uid=70_000)),
        ("400", lambda: volume.update_metadata("/plain", mode=-1)),
    ):
        with pytest.raises(VolumeException, match=status):
            refused()
    assert volume.make_dir("/there", force=True).path == "/there"
    assert volume.read_file("/plain") == "x"


def test_links_in_a_volume_lead_nowhere_else(volume: Volume, mounted: Sandbox) -> None:
    """A guest's links, absolute or with `..`, stay within the volume for the content API; FIFOs hold nobody up."""
    mounted.commands.run(
        "mkdir -p /mnt/vol/l/etc; cd /mnt/vol/l; ln -s /etc/passwd abs; ln -s ../../../../etc/passwd up;"
        " ln -s /proc/1/root/etc/passwd proc; mkfifo fifo; ln -s /l/etc own; head -c 200 /dev/urandom | base64 > etc/f"
    )
    for path in ("/l/abs", "/l/up", "/l/proc", "/../../etc/passwd", "/l/own/../../../etc/passwd"):
        with pytest.raises(VolumePathNotFoundException):
            volume.read_file(path)
    assert volume.read_file("/l/own/f") == mounted.files.read("/mnt/vol/l/etc/f")
    stat = volume.get_info("/l/abs")
    assert (stat.type, stat.target) == (VolumeFileType.SYMLINK, "/etc/passwd")
    assert volume.get_info("/l/fifo").type == VolumeFileType.UNKNOWN
    with pytest.raises(VolumeException, match="400"):
        volume.read_file("/l/fifo")
    volume.remove("/l/abs")
    assert mounted.commands.run("test -s /etc/passwd && echo still").stdout == "still\n"


async def test_the_asynchronous_sdk_does_the_same(sdk_env: dict[str, str]) -> None:
    """Each method once; ten at a time."""
    volume = await AsyncVolume.create(new_name())
    await asyncio.gather(*(volume.write_file(f"/d/{number}", str(number), force=True) for number in range(10)))
    assert [each.name for each in await volume.list("/d")] == [str(number) for number in range(10)]
    assert await volume.read_file("/d/7") == "7"
    assert b"".join([piece async for piece in await volume.read_file("/d/8", format="stream")]) == b"8"
    assert (await volume.make_dir("/e")).name == "e"
    assert (await volume.update_metadata("/e", mode=0o700)).mode == 0o700
    assert (await volume.get_info("/e")).type == VolumeFileType.DIRECTORY
    sandbox = await AsyncSandbox.create(timeout=60, volume_mounts={"/mnt/x": volume})
    assert await sandbox.files.read("/mnt/x/d/3") == "3"
    await sandbox.kill()
    await volume.remove("/d")
    assert not await volume.exists("/d/7")
    assert (await AsyncVolume.connect(volume.volume_id)).name == volume.name
    assert (await AsyncVolume.get_info(volume.volume_id)).name == volume.name
    assert volume.volume_id in [each.volume_id for each in await AsyncVolume.list()]
    assert await AsyncVolume.destroy(volume.volume_id)


def test_mounts_that_cannot_be_are_refused(volume: Volume) -> None:
    """Unknown volumes and places that a sandbox needs, with words."""
    for mounts, status in (
        ({"/mnt/x": GONE}, "404"),
        ({"/proc": volume}, "400"),
        ({"/mnt/../etc": volume}, "400"),
        ({"relative": volume}, "400"),
        ({"/a": volume, "/a/b": volume}, "400"),
    ):
        with pytest.raises(Exception, match=f"{status}|not found|does not exist"):
            Sandbox.create(timeout=30, volume_mounts=mounts)


def test_snapshots_forks_and_pauses_keep_the_mounts(volume: Volume) -> None:
    """And a sandbox from the snapshot shares the volume."""
    sandbox = Sandbox.create(timeout=120, volume_mounts={"/mnt/kept": volume})
    sandbox.commands.run("echo kept > /mnt/kept/kept")
    snapshot = sandbox.create_snapshot()
    child = Sandbox.create(snapshot.snapshot_id, timeout=60)
    (fork,) = sandbox.fork(count=1)
    for each in (child, fork):
        assert each.files.read("/mnt/kept/kept") == "kept\n"
        each.kill()
    sandbox.pause()
    sandbox.connect()
    assert sandbox.files.read("/mnt/kept/kept") == "kept\n"
    sandbox.kill()


# --- the wire of the content API ---


@pytest.fixture(scope="module")
def tokens(server: RunningServer) -> SignedTokens:
    """Signs as the server does."""
    return SignedTokens((server.data_dir / "runtime_secret").read_bytes())


ROUTES = [
    *(("GET", path) for path in ("path", "dir", "file")),
    *(("PATCH", "path"), ("DELETE", "path"), ("POST", "dir"), ("PUT", "file"), ("GET", "else"), ("POST", "path/x")),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_only_the_volumes_own_living_token_opens_it(
    server: RunningServer, volume: Volume, tokens: SignedTokens, method: str, path: str
) -> None:
    """No token, garbage, the API key, another volume's, another purpose's, an expired one, an unknown team's: 401."""
    claims = VolumeClaims(sub=volume.volume_id, own="nobody", exp=2**31, key="")
    other = Volume.get_info(volume.volume_id).token
    bad = [
        *("", "garbage", "a.b.c", server.api_key, tokens.sign(claims)),
        tokens.sign(VolumeClaims(sub=volume.volume_id, own="nobody", exp=1)),
        tokens.sign(VolumeClaims(sub=GONE, own="nobody", exp=2**31)),
    ]
    url = f"{server.url}/volumecontent/{volume.volume_id}/{path}?path=/"
    for token in bad:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = httpx.request(method, url, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, 401), token
    answer = httpx.request(method, url.replace(volume.volume_id, GONE), headers={"Authorization": f"Bearer {other}"})
    assert answer.status_code == 401


def test_garbage_is_refused_with_words(server: RunningServer, volume: Volume) -> None:
    """Nothing of it is a 500."""
    base = f"{server.url}/volumecontent/{volume.volume_id}"
    headers = {"Authorization": f"Bearer {volume.token}"}
    for method, rest, content in (
        ("GET", "/path", b""),
        ("GET", "/path?path=%00", b""),
        ("GET", f"/path?path=/{'x' * 5000}", b""),
        ("GET", "/dir?path=/&depth=deep", b""),
        ("PATCH", "/path?path=/plain", b"[]"),
        ("PATCH", "/path?path=/plain", b'{"mode": "x"}'),
        ("POST", "/dir?path=/x&mode=99999999", b""),
        ("PUT", "/file?path=/x&uid=-1", b"x"),
    ):
        answer = httpx.request(method, base + rest, content=content, headers=headers)
        assert answer.status_code == 400, (method, rest, answer.text)
        assert answer.json()["message"]
    with pytest.raises(AuthenticationException):
        volume.read_file("/plain", token="nonsense")


def test_what_serves_the_files_is_seen_by_nobody(server: RunningServer, volume: Volume, key: dict[str, str]) -> None:
    """No list has it, and a volume whose files were just read can be deleted."""
    own = Volume.create(new_name())
    own.write_file("/x", "x")
    listed = httpx.get(f"{server.url}/v1/sandboxes", headers=key).json()["sandboxes"]
    assert all(own.volume_id not in str(each) for each in listed)
    assert Volume.destroy(own.volume_id)
    with pytest.raises(NotFoundException):
        own.read_file("/x")


def test_volumes_and_their_tokens_outlive_the_server(server: RunningServer, volume: Volume, mounted: Sandbox) -> None:
    """A restart of the server: the same Volume object goes on."""
    volume.write_file("/lasting", "x" * 100_000)
    server.kill()
    server.start()
    assert volume.read_file("/lasting") == "x" * 100_000
    assert mounted.files.read("/mnt/vol/lasting") == "x" * 100_000


# --- Novita's Python SDK ---


def test_novitas_volumes_have_quotas(sdk_env: dict[str, str]) -> None:
    """create with one, get_info, list, update_quota, destroy; mounted ones are refused."""
    made = novita.Volume.create(new_name(), quota_size_gib=5)
    assert novita.Volume.get_info(made.volume_id).quota_size_gib == 5
    assert [each.quota_size_gib for each in novita.Volume.list() if each.volume_id == made.volume_id] == [5]
    assert novita.Volume.update_quota(made.volume_id, quota_size_gib=6).quota_size_gib == 6
    with pytest.raises(novita.VolumeException, match="400"):
        novita.Volume.update_quota(made.volume_id, quota_size_gib=1)
    sandbox = novita.Sandbox.create(timeout=60, volume_mounts={"/mnt/vol": made})
    sandbox.commands.run("echo text > /mnt/vol/f")
    assert sandbox.commands.run("df -BG --output=size /mnt/vol | tail -1").stdout.strip() == "6G"
    with pytest.raises(Exception, match="mounted by sandbox"):
        novita.Volume.destroy(made.volume_id)
    with pytest.raises(Exception, match="when a sandbox is created"):
        sandbox.mount_volume(made.name, "/mnt/other")
    with pytest.raises(Exception, match="when a sandbox is created"):
        sandbox.unmount_volume("/mnt/vol")
    sandbox.kill()
    assert novita.Volume.connect(made.volume_id).name == made.name
    assert novita.Volume.destroy(made.volume_id)
    assert not novita.Volume.destroy(made.volume_id)


# --- Hyperbrowser's SDKs ---


def refused(call: Any) -> tuple[int | None, str | None]:
    """Status and code of the error that the call ends with."""
    with pytest.raises(HyperbrowserError) as error:
        call()
    return error.value.status_code, error.value.code


def test_hyperbrowsers_volumes(hyperbrowser: Hyperbrowser) -> None:
    """create, get by id and name, list with pages and search, mounts rw and ro, delete by name; 409 while mounted."""
    name = new_name()
    volume = hyperbrowser.volumes.create({"name": name})
    assert hyperbrowser.volumes.get(name).id == hyperbrowser.volumes.get(volume.id).id == volume.id
    found = hyperbrowser.volumes.list({"search": name, "page": 1, "limit": 1})
    assert ([each.name for each in found.volumes], found.total_count, found.per_page) == ([name], 1, 1)
    assert refused(lambda: hyperbrowser.volumes.create({"name": name})) == (409, "conflict")
    params = CreateSandboxParams(
        image_name="base",
        mounts={
            "/mnt/rw": SandboxVolumeMount(id=volume.id, type="rw", shared=True),
            "/mnt/ro": SandboxVolumeMount(id=name, type="ro"),
        },
    )
    sandbox = hyperbrowser.sandboxes.create(params)
    sandbox.files.write_text("/mnt/rw/notes.txt", "persisted data")
    assert sandbox.files.read_text("/mnt/ro/notes.txt") == "persisted data"
    assert "Read-only" in sandbox.exec("touch /mnt/ro/x").stderr
    assert refused(lambda: hyperbrowser.volumes.delete(name)) == (409, "volume_in_use")
    sandbox.stop()
    assert (hyperbrowser.volumes.get(volume.id).size or 0) > 0
    deleted = hyperbrowser.volumes.delete(name)
    assert (deleted.deleted, deleted.id, deleted.name) == (True, volume.id, name)
    assert refused(lambda: hyperbrowser.volumes.get(name)) == (404, "no_such_volume")
    assert refused(lambda: hyperbrowser.volumes.delete(volume.id)) == (404, "no_such_volume")
    unknown = CreateSandboxParams(image_name="base", mounts={"/mnt/x": SandboxVolumeMount(id=GONE)})
    assert refused(lambda: hyperbrowser.sandboxes.create(unknown)) == (404, "no_such_volume")


async def test_hyperbrowsers_asynchronous_client(ahyperbrowser: AsyncHyperbrowser) -> None:
    """The same four methods."""
    volume = await ahyperbrowser.volumes.create({"name": new_name()})
    assert (await ahyperbrowser.volumes.get(volume.id)).name == volume.name
    assert volume.id in [each.id for each in (await ahyperbrowser.volumes.list()).volumes]
    assert (await ahyperbrowser.volumes.delete(volume.id)).deleted


# --- JavaScript ---


@pytest.fixture(scope="module")
def script() -> Iterator[Path]:
    """The checks below the SDKs, because Node looks for packages upwards from the script."""
    with tempfile.TemporaryDirectory(prefix="checks-", dir=VENDOR_JS) as directory:
        copy = Path(directory) / CHECKS.name
        copy.write_bytes(CHECKS.read_bytes())
        yield copy


@pytest.mark.parametrize("name", NAMES)
def test_javascript(script: Path, name: str) -> None:
    """The check does not throw."""
    done = subprocess.run(["node", str(script), name], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_limits_are_what_the_reference_says() -> None:
    """docs/reference/e2b.md names them."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "e2b.md").read_text()
    assert f"{config.VOLUME_DISK_MB // 1024} GiB" in page
    assert f"{config.VOLUME_TOKEN_S // 86400} days" in page
