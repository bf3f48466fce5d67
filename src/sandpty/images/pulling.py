"""From a reference to an image's blobs in a directory: digests known, sizes bounded."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandpty import config, disk_room
from sandpty.images import manifests, registries
from sandpty.images.manifests import Configuration, Manifest
from sandpty.images.reference import Platform, Source
from sandpty.images.skopeo import Skopeo
from sandpty.images.telling import Order
from sandpty.wire.errors import SandptyError
from sandpty.wire.images import Blob

Show = Callable[[list[Blob]], None]
_BLOBS = "blobs"
_BESIDE_BYTES = config.IMAGE_MANIFEST_BYTES + 4096  # what skopeo writes beside the blobs
_PART = "dir-put-blob"  # what skopeo calls a blob that is not whole yet


@dataclass(frozen=True, slots=True)
class Found:
    """An image that can be had. source: skopeo's word for exactly this one."""

    manifest: Manifest
    source: str


@dataclass(frozen=True, slots=True)
class Given:
    """conf, auth: skopeo's files; places: registries that the operator has named."""

    conf: str
    auth: str
    places: frozenset[str]


class Pull:
    """One image. `work`: an empty directory of root's; `uid`: whose skopeo is."""

    def __init__(self, work: Path, uid: int, source: Source, platform: Platform, given: Given) -> None:
        self._uid = uid
        self._own = work / "pull"
        self._own.mkdir(mode=0o700)
        os.chown(self._own, uid, uid)
        self._skopeo = Skopeo(self._own, uid, given.conf, given.auth)
        self._source = source
        self._platform = platform
        self.blobs = self._own / _BLOBS

    def ask(self) -> Found:
        """The registry which manifest this is now, for the platform. Raises SandptyError."""
        source = self._source
        data = self._skopeo.raw_manifest(f"docker://{source}")
        _hold_to(source.digest, data)
        chosen = manifests.choose(data, self._platform)
        if chosen is not None:
            data = self._skopeo.raw_manifest(f"docker://{source.name}@{chosen}")
            _hold_to(chosen, data)
        found = manifests.manifest(data)
        return Found(found, f"docker://{source.name}@{found.digest}")

    def fetch(self, found: Found, show: Show) -> Configuration:
        """All blobs of it, which are not checked yet, and its configuration, which is. Raises SandptyError."""
        blobs = [Blob(layer.digest, layer.size_bytes, 0) for layer in found.manifest.layers]
        stated = found.manifest.size_bytes + _BESIDE_BYTES
        self._copy(
            found.source, lambda: show(list(_progress(self.blobs, blobs))), min(stated, config.IMAGE_BLOBS_BYTES)
        )
        _hold_to(found.manifest.digest, (self.blobs / "manifest.json").read_bytes())
        return self._configuration(found.manifest)

    def fetch_local(self) -> tuple[Manifest, Configuration]:
        """From an archive or a layout on this host. Raises SandptyError."""
        copied = self._own / "source"
        copied.mkdir(mode=0o700)
        (_copy_layout if self._source.kind == "oci" else _copy_archive)(Path(self._source.file), copied)
        self._give(copied)
        name = copied if self._source.kind == "oci" else copied / "archive"
        selector = f":{self._source.selector}" if self._source.selector else ""
        wanted = self._platform
        options = [f"--override-os={wanted.os}", f"--override-arch={wanted.architecture}"]
        options += [f"--override-variant={wanted.variant}"] if wanted.variant else []
        self._copy(f"{self._source.kind}:{name}{selector}", lambda: None, config.IMAGE_BLOBS_BYTES, options)
        shutil.rmtree(copied)
        manifest = manifests.manifest(_read(self.blobs / "manifest.json"))
        return manifest, self._configuration(manifest)

    def _copy(self, source: str, show: Callable[[], None], bytes_max: int, options: Sequence[str] = ()) -> None:
        last, moved_at = -config.IMAGE_STALL_BYTES, time.monotonic()

        def waited() -> None:
            nonlocal last, moved_at
            size = sum(_size(path) for path in _files(self.blobs))
            if size > bytes_max:
                raise SandptyError(
                    "too_large", f"the image's layers are over {bytes_max} bytes, or more than is stated"
                )
            if not disk_room.has_room(self._own):
                raise SandptyError("no_space", "the data directory's disk is full")
            if size - last >= config.IMAGE_STALL_BYTES:
                last, moved_at = size, time.monotonic()
            elif time.monotonic() - moved_at > config.IMAGE_STALL_S:
                said = f"{max(0, size - last)} bytes in {config.IMAGE_STALL_S:.0f} s"
                raise SandptyError("registry_failed", f"the registry is too slow, or silent: {said}")
            show()

        self._skopeo.copy(source, self.blobs, waited, options)
        # No other program of that account is to change what was pulled.
        os.chown(self._own, 0, 0)

    def _give(self, directory: Path) -> None:
        for place, _, names in os.walk(directory):
            for path in (place, *(os.path.join(place, name) for name in names)):
                os.chown(path, self._uid, self._uid, follow_symlinks=False)

    def _configuration(self, manifest: Manifest) -> Configuration:
        data = _read(self.blobs / manifest.config.removeprefix("sha256:"))
        return manifests.configuration(data, manifest, self._platform)


def given(order: Order, source: Source) -> Given:
    """What one pull may use. Raises registry_forbidden for a registry that only the operator may reach, forbidden."""
    told = registries.read(Path(order.registries), Path(order.registry_auth))
    if source.kind != "docker":
        if not order.operator:
            raise SandptyError("forbidden", "files of the host are imported by its operator only")
        return Given(told.text, "{}", told.places)
    if not order.operator and source.domain not in told.named:
        registries.check_public(source.domain)
    auth = registries.auth_for(told, source.domain, order.username, order.password)
    direct = {source.domain} & told.named
    return Given(registries.conf_for(told, source.domain), auth, told.places | direct)


def _hold_to(digest: str, data: bytes) -> None:
    if digest and manifests.digest_of(data) != digest:
        raise SandptyError("bad_image", f"digest mismatch: the registry's manifest is not {digest[:19]}")


def _progress(directory: Path, blobs: list[Blob]) -> Iterator[Blob]:
    """Whole ones lie under their digests; the sizes of the others' parts, the oldest first, are told in order."""
    names = {path.name: path for path in _files(directory)}
    parts = sorted((path for name, path in names.items() if name.startswith(_PART)), key=_made_at)
    sizes = iter([_size(path) for path in parts])
    for blob in blobs:
        whole = blob.digest.removeprefix("sha256:") in names
        done = blob.size_bytes if whole else min(next(sizes, 0), blob.size_bytes)
        yield Blob(blob.digest, blob.size_bytes, done)


def _files(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def _made_at(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.lstat().st_ctime
    return 0.0


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.lstat().st_size
    return 0


def _read(path: Path) -> bytes:
    """A small file that skopeo's account has written."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return file.read(config.IMAGE_MANIFEST_BYTES + 1)


# --- files of the host -----------------------------------------------------------------------------------------------


def _copy_archive(file: Path, target: Path) -> None:
    _copy_file(file, target / "archive", config.IMAGE_BLOBS_BYTES)


def _copy_layout(directory: Path, target: Path) -> None:
    """Its plain files only: a link in a layout may lead anywhere, and root would follow it."""
    blobs = Path("blobs/sha256")
    (target / blobs).mkdir(parents=True)
    names = [Path("oci-layout"), Path("index.json")]
    try:
        names += [blobs / path.name for path in (directory / blobs).iterdir()]
    except OSError as error:
        raise SandptyError("no_such_image", f"{directory} is no OCI layout: {error.strerror}") from error
    left = config.IMAGE_BLOBS_BYTES
    for name in names:
        left -= _copy_file(directory / name, target / name, left)


def _copy_file(file: Path, target: Path, bytes_max: int) -> int:
    """Its size."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SandptyError("no_such_image", f"{file} cannot be read: {error.strerror}") from error
    with open(fd, "rb") as source, open(target, "xb") as copy:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise SandptyError("bad_image", f"{file} is not a plain file")
        if found.st_size > bytes_max:
            raise SandptyError("too_large", f"with {file} it is over {config.IMAGE_BLOBS_BYTES} bytes")
        if not disk_room.has_room(target.parent, found.st_size):
            raise SandptyError("no_space", f"{file} does not fit on the data directory's disk")
        shutil.copyfileobj(source, copy, 1024 * 1024)
        return found.st_size
