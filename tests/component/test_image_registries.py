"""Images come from registries, archives and layouts: credentials, platforms, mirrors, errors, interruptions."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from sandpty import config
from sandpty.config import DataDir
from sandpty.images import collecting
from sandpty.wire.errors import SandptyError
from tests.component.image_imports import Importer
from tests.component.registry_tokens import token_giver
from tests.oci_images import INDEX, MANIFEST, PLATFORM, Image, digest_of, entry, layer, slim_layer
from tests.registry_fixture import Registry, running_registry
from tests.waiting import until_sync

USERNAME, PASSWORD = "ali", "open sesame"
HTPASSWD = "ali:$2b$04$I2hz4WRjuXqUA4L7UHYLyeJ4aWa7h.GZ81bYOEXA0HZh/GGj3UpFm\n"
ARM = {"architecture": "arm64", "os": "linux", "variant": "v8"}


@pytest.fixture
def importer() -> Iterator[Importer]:
    """For a data directory that knows of no registry."""
    root = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    root.chmod(0o711)
    yield Importer(DataDir(root))
    shutil.rmtree(root)


def small(content: bytes = b"1") -> Image:
    """One file."""
    return Image([layer(entry("file", content))], {"Env": ["A=1"], "User": "root", "WorkingDir": "/srv", "Cmd": ["x"]})


def refused(importer: Importer, source: str, **asked: str | bool) -> SandptyError:
    """The error of an import, which must leave nothing."""
    before = importer.left()
    with pytest.raises(SandptyError) as caught:
        importer.run(source, **asked)
    assert importer.left() == before
    return caught.value


def file_of(importer: Importer, image: str) -> bytes:
    """Of an image of `small`."""
    return (importer.data.images / image / "rootfs/file").read_bytes()


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """An HTTP server on loopback: its address and port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_docker_hubs_images_come_from_the_operators_mirror(importer: Importer, registry: Registry) -> None:
    """`ubuntu:22.04` means what everybody means; layers are counted as they come; the second time nothing comes."""
    registry.stands_in_for_docker_hub(importer.data.root)
    image = importer.run("ubuntu:22.04")
    assert image.reference == "docker.io/library/ubuntu:22.04"
    assert image.platform == "linux/amd64"
    assert image.size_bytes > 20_000_000
    assert image.defaults.env["PATH"].startswith("/usr/local")
    percents = [progress.percent for progress in importer.progress]
    assert percents == sorted(percents)
    pulled = [progress for progress in importer.progress if progress.blobs][-1]
    assert len(pulled.blobs) == 2
    assert all(blob.done_bytes == blob.size_bytes > 0 for blob in pulled.blobs)
    asked = len(registry.requests)
    assert importer.run("docker.io/library/ubuntu@" + image.digest).id == image.id
    assert not [line for line in registry.requests[asked:] if "/blobs/" in line]
    assert importer.left() == [image.id]
    # What nothing refers to is removed when it is asked for; a template's record keeps it.
    record = {"builds": [{"files": {"kind": "image", "id": image.id}}]}
    importer.data.template_records.mkdir()
    (importer.data.template_records / "x.json").write_text(json.dumps(record))
    assert collecting.collect(importer.data, unused_s=0) == []
    (importer.data.template_records / "x.json").unlink()
    assert [each.id for each in collecting.collect(importer.data, unused_s=0)] == [image.id]
    assert importer.left() == []


def test_what_cannot_be_had_is_said(importer: Importer, registry: Registry) -> None:
    """No such tag, name or platform; nobody there; not an image's name."""
    name = registry.push(small(b"said"), "said")
    assert refused(importer, f"{registry.host}/said:nope").reason.name == "no_such_image"
    assert refused(importer, f"{registry.host}/nobody").reason.name == "no_such_image"
    assert refused(importer, "127.0.0.1:9/said").reason.name == "registry_failed"
    assert "linux/amd64" in refused(importer, name, platform="linux/s390x").message


def test_the_platform_is_chosen(importer: Importer, registry: Registry) -> None:
    """This machine's, or the one that is asked for."""
    arm = small(b"arm")
    arm.platform = ARM
    name = registry.push([small(b"amd"), arm], "several")
    assert file_of(importer, importer.run(name).id) == b"amd"
    chosen = importer.run(name, platform="arm64")
    assert file_of(importer, chosen.id) == b"arm"
    assert chosen.platform == "linux/arm64/v8"
    error = refused(importer, name, platform="linux/riscv64")
    assert (error.reason.name, "linux/arm64/v8" in error.message) == ("no_such_platform", True)


def test_a_registry_with_passwords(importer: Importer, tmp_path: Path) -> None:
    """Credentials come with the request or from the operator's file; wrong ones, and none, are refused."""
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth: dict[str, object] = {"htpasswd": {"realm": "r", "path": str(tmp_path / "htpasswd")}}
    with running_registry(auth) as registry:
        name = registry.push(small(), "private/it", credentials=f"{USERNAME}:{PASSWORD}")
        assert refused(importer, name).reason.name == "registry_denied"
        assert refused(importer, name, username=USERNAME, password="wrong").reason.name == "registry_denied"
        image = importer.run(name, username=USERNAME, password=PASSWORD)
        assert refused(importer, name).reason.name == "registry_denied"  # though it is here
        encoded = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        importer.data.registry_auth.write_text(json.dumps({"auths": {registry.host: {"auth": encoded}}}))
        assert importer.run(name).id == image.id


def test_a_registry_with_tokens(importer: Importer, tmp_path: Path) -> None:
    """As the large ones have it: somebody else gives them."""
    with token_giver(tmp_path, f"{USERNAME}:{PASSWORD}") as (giver, auth), running_registry(auth) as registry:
        name = registry.push(small(), "team/it", credentials=f"{USERNAME}:{PASSWORD}")
        given = giver.given
        importer.run(name, username=USERNAME, password=PASSWORD)
        assert giver.given > given
        assert refused(importer, name, username=USERNAME, password="wrong").reason.name == "registry_denied"


def test_archives_and_layouts_of_this_host(importer: Importer, tmp_path: Path) -> None:
    """What `docker save` writes, and OCI layouts; a link in one leads nowhere."""
    layout = small(b"from a layout").write(tmp_path / "layout", "v1")
    image = importer.run(f"oci:{layout}:v1")
    assert file_of(importer, image.id) == b"from a layout"
    assert (image.defaults.env, image.defaults.workdir, image.command) == ({"A": "1"}, "/srv", ("x",))
    archive = tmp_path / "saved.tar"
    argv = ["skopeo", "copy", "--quiet", "--insecure-policy", f"oci:{layout}:v1", f"docker-archive:{archive}:it:v1"]
    subprocess.run(argv, check=True, timeout=60)
    archive.chmod(0o600)
    assert file_of(importer, importer.run(f"docker-archive:{archive}").id) == b"from a layout"
    assert file_of(importer, importer.run(f"docker-archive:{archive}:it:v1").id) == b"from a layout"
    assert refused(importer, f"docker-archive:{archive}:it:v2").reason.name == "no_such_image"
    assert refused(importer, f"docker-archive:{tmp_path}/missing").reason.name == "no_such_image"
    (tmp_path / "noise").write_bytes(b"noise" * 1000)
    assert refused(importer, f"docker-archive:{tmp_path}/noise").reason.name in ("bad_image", "no_such_image")
    stolen = next(path for path in (layout / "blobs/sha256").iterdir())
    content = stolen.read_bytes()
    stolen.rename(tmp_path / "elsewhere")
    assert content == (tmp_path / "elsewhere").read_bytes()
    stolen.symlink_to(tmp_path / "elsewhere")
    assert refused(importer, f"oci:{layout}:v1").reason.name == "no_such_image"


def test_strangers_reach_neither_this_host_nor_its_files(importer: Importer, registry: Registry) -> None:
    """Only registries out there, or those that the operator has named."""
    name = registry.push(small(), "inside")
    assert refused(importer, name, operator=False).reason.name == "registry_forbidden"
    assert refused(importer, "docker-archive:/etc/shadow", operator=False).reason.name == "forbidden"
    importer.data.registries.write_text(f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n')
    importer.run(name, operator=False)


def test_a_registry_that_sends_something_else(importer: Importer, registry: Registry) -> None:
    """A blob that is not what its digest says."""
    image = small(b"as it was")
    name = registry.push(image, "changed")
    blob = image.packed()[0]
    digest = hashlib.sha256(blob).hexdigest()
    place = registry.directory / f"store/docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
    place.write_bytes(small(b"as it is").packed()[0].ljust(len(blob), b"\0")[: len(blob)])
    assert refused(importer, name).reason.name == "bad_image"


LIARS_BLOBS: dict[str, bytes] = {}
LIARS_MANIFEST = small(b"of a liar").manifest(LIARS_BLOBS)


def index_of(data: bytes, kind: str) -> bytes:
    """With one entry."""
    listed = {"mediaType": kind, "digest": digest_of(data), "size": len(data), "platform": PLATFORM}
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [listed]}).encode()


class Liar(BaseHTTPRequestHandler):
    """A registry of one image, which wants a password. Subclasses say what of it is a lie."""

    top = LIARS_MANIFEST
    kind = MANIFEST
    elsewhere = ""  # where blobs are said to be
    endless = False  # blobs

    def do_GET(self) -> None:
        kind, _, name = self.path.rpartition("/")
        if self.headers["Authorization"] is None:
            self.answer(401, b"", **{"WWW-Authenticate": 'Basic realm="r"'})
        elif self.path == "/v2/":
            self.answer(200, b"{}")
        elif kind.endswith("/manifests"):
            known = {digest_of(data): data for data in (self.top, index_of(LIARS_MANIFEST, MANIFEST), LIARS_MANIFEST)}
            self.answer(200, known.get(name, self.top), **{"Content-Type": self.kind})
        elif self.elsewhere:
            self.answer(307, b"", Location=f"http://{self.elsewhere}/{name}")
        elif self.endless:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                while True:
                    self.wfile.write(bytes(1 << 20))
        else:
            self.answer(200, LIARS_BLOBS[name])

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Elsewhere(Liar):
    """Where blobs are, without a password; it listens to what it is told."""

    heard: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.heard.append(self.headers["Authorization"])
        self.answer(200, LIARS_BLOBS[self.path.removeprefix("/")])


def test_a_registry_that_lies_gets_nowhere(importer: Importer) -> None:
    """One that sends blobs without end, or indexes in indexes, is left; blobs elsewhere are fetched without secrets."""
    account = {"username": USERNAME, "password": PASSWORD}
    nested = index_of(index_of(LIARS_MANIFEST, MANIFEST), INDEX)
    for lies, reason in (({"endless": True}, "too_large"), ({"top": nested, "kind": INDEX}, "bad_image")):
        with served(type("Lying", (Liar,), lies)) as host:
            assert refused(importer, f"{host}/x", **account).reason.name == reason
    with served(Elsewhere) as other:
        elsewhere = other.replace("127.0.0.1", "localhost")
        with served(type("Sending", (Liar,), {"elsewhere": elsewhere})) as host:
            assert file_of(importer, importer.run(f"{host}/x", **account).id) == b"of a liar"
    assert set(Elsewhere.heard) == {None}


def test_two_at_once_do_the_work_once(importer: Importer, registry: Registry) -> None:
    """The second waits, and finds it."""
    name = registry.push(Image([slim_layer(), layer(entry("once", b"1"))]), "once")
    asked = len(registry.requests)
    with importer.started(name) as first, importer.started(name) as second:
        for process in (first, second):
            assert process.stdout is not None
            assert b'"done"' in process.stdout.read1() or any(b'"done"' in line for line in process.stdout)
    gets = [line for line in registry.requests[asked:] if line.startswith("GET") and "/blobs/" in line]
    assert len(gets) == len(set(gets))
    assert len(importer.left()) == 1


@pytest.mark.parametrize("how", ["asker", "killed"])
def test_an_interrupted_import_leaves_nothing(importer: Importer, registry: Registry, how: str) -> None:
    """Neither when who asked goes away, nor (once the next one begins) when it is killed; no process stays."""
    name = registry.push(Image([slim_layer(), layer(entry(how, b"1"))]), f"cut-{how}")
    with importer.started(name) as process:
        assert process.stdout is not None
        until_sync(lambda: b"unpacking" in process.stdout.readline(), 30)
        if how == "killed":
            process.send_signal(signal.SIGKILL)
    until_sync(lambda: not _at_work(importer), 30, "its processes end")
    if how == "killed":
        assert importer.left() != []
        collecting.collect(importer.data)
    assert importer.left() == []


def _at_work(importer: Importer) -> list[int]:
    """Processes that have to do with this data directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes() + os.readlink(path / "root").encode()
        except OSError:
            continue
        if str(importer.data.root).encode() in words:
            found.append(int(path.name))
    return found


def test_a_full_disk_is_said(importer: Importer, registry: Registry) -> None:
    """Before there is nothing left for those who run."""
    name = registry.push(Image([slim_layer()]), "large")
    importer.data.images.mkdir()
    size = config.DISK_FREE_MIN_BYTES + 8 * 1024 * 1024
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(importer.data.images)], check=True)
    try:
        assert refused(importer, name).reason.name == "no_space"
    finally:
        subprocess.run(["umount", str(importer.data.images)], check=True)


def test_a_registry_cannot_send_a_strangers_pull_to_this_host(importer: Importer) -> None:
    """Neither by saying that tokens are to be had there, nor by its name's address; an operator's pull may go there."""
    asked: list[str] = []

    class Inside(BaseHTTPRequestHandler):
        """Something of the host's that knows no passwords."""

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with served(Inside) as inside:

        class Outside(Inside):
            """A registry that the operator has named; it wants a token from inside."""

            def do_GET(self) -> None:
                self.send_response(401)
                self.send_header("WWW-Authenticate", f'Bearer realm="http://{inside}/latest/meta-data",service="x"')
                self.end_headers()

        with served(Outside) as outside:
            importer.data.registries.write_text(f'[[registry]]\nlocation = "{outside}"\ninsecure = true\n')
            assert refused(importer, f"{outside}/x", operator=False).reason.name == "registry_failed"
            assert asked == []
            refused(importer, f"{outside}/x", operator=True)
            assert asked != []
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert "sandpty_pull_" not in tables
