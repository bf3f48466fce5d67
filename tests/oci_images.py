"""Images for tests: of entries of one's own choosing (also hostile ones), or of packages of the `base` tree."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.server_fixture import templates_dir

OCI = "application/vnd.oci.image"
MANIFEST, INDEX = f"{OCI}.manifest.v1+json", f"{OCI}.index.v1+json"
TAR, GZIP, ZSTD = (f"{OCI}.layer.v1.tar{suffix}" for suffix in ("", "+gzip", "+zstd"))
PLATFORM = {"architecture": "amd64", "os": "linux"}
# What a shell, its usual programs and sudo need of Debian: some 40 MB.
SLIM = """
    base-files base-passwd bash coreutils dash debianutils libc6 libtinfo6 libselinux1 libpcre2-8-0 libacl1 libattr1
    libgmp10 sed grep findutils mawk login passwd tar gzip zlib1g libcrypt1 libaudit1 libcap-ng0 libpam0g libpam-modules
    libpam-runtime sudo hostname libsystemd0 liblz4-1 liblzma5 libzstd1 libgcrypt20 libgpg-error0 libssl3 procps
    libproc2-0 ncurses-bin ncurses-base"""


def digest_of(data: bytes) -> str:
    """As OCI writes it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def entry(name: str, content: bytes | None = None, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A file with `content`, else a directory; `fields` are those of TarInfo (type, mode, uid, linkname ...)."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.REGTYPE if content is not None else tarfile.DIRTYPE
    info.mode = 0o644 if content is not None else 0o755
    info.size = len(content or b"")
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content or b""


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """Its target is not looked at."""
    return entry(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """`target` is a name in the layer, or below."""
    return entry(name, type=tarfile.LNKTYPE, linkname=target, mode=0o644)


def layer(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """An uncompressed layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def layer_of_trees(pick: Callable[[tarfile.TarInfo], tarfile.TarInfo | None], root: Path, *names: str) -> bytes:
    """A layer of files as they lie below `root`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            tar.add(root / name, arcname=name, recursive=False, filter=pick)
    return buffer.getvalue()


@functools.lru_cache(maxsize=8)
def packed(data: bytes, media: str) -> bytes:
    """A layer as it lies in a registry."""
    if media == GZIP:
        return gzip.compress(data, 1, mtime=0)
    if media == ZSTD:
        import zstandard

        return zstandard.ZstdCompressor(level=1).compress(data)
    return data


@dataclass
class Image:
    """layers: uncompressed. media: how they are packed. config: its `config` object (Env, User, ...)."""

    layers: Sequence[bytes]
    config: dict[str, Any] = field(default_factory=dict)
    media: str = GZIP
    platform: dict[str, str] = field(default_factory=lambda: dict(PLATFORM))

    def packed(self) -> list[bytes]:
        return [packed(data, self.media) for data in self.layers]

    def manifest(self, blobs: dict[str, bytes]) -> bytes:
        """And what it refers to, into `blobs` by digest."""
        config = {
            **self.platform,
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [digest_of(data) for data in self.layers]},
        }
        described = []
        for data, kind in [
            (json.dumps(config).encode(), f"{OCI}.config.v1+json"),
            *((packed, self.media) for packed in self.packed()),
        ]:
            blobs[digest_of(data)] = data
            described.append({"mediaType": kind, "digest": digest_of(data), "size": len(data)})
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": described[0],
                "layers": described[1:],
            }
        ).encode()

    def write(self, directory: Path, name: str = "latest") -> Path:
        """As an OCI layout."""
        blobs: dict[str, bytes] = {}
        manifest = self.manifest(blobs)
        return write_layout(directory, blobs, manifest, MANIFEST, name)


def write_index(directory: Path, images: Sequence[Image], name: str = "latest") -> Path:
    """An OCI layout with one image of several platforms."""
    blobs: dict[str, bytes] = {}
    listed = []
    for image in images:
        manifest = image.manifest(blobs)
        blobs[digest_of(manifest)] = manifest
        about = {
            "mediaType": MANIFEST,
            "digest": digest_of(manifest),
            "size": len(manifest),
            "platform": image.platform,
        }
        listed.append(about)
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}).encode()
    return write_layout(directory, blobs, index, INDEX, name)


def write_layout(directory: Path, blobs: dict[str, bytes], top: bytes, kind: str, name: str) -> Path:
    """An OCI layout whose image `name` is `top`, a manifest or an index of the media type `kind`."""
    place = directory / "blobs" / "sha256"
    place.mkdir(parents=True)
    for digest, data in {**blobs, digest_of(top): top}.items():
        (place / digest.removeprefix("sha256:")).write_bytes(data)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    listed = {
        "mediaType": kind,
        "digest": digest_of(top),
        "size": len(top),
        "annotations": {"org.opencontainers.image.ref.name": name},
    }
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    return directory


# --- trees -----------------------------------------------------------------------------------------------------------


def base_root() -> Path:
    """The `base` template's tree, as scripts/setup has built it."""
    from sandpty.templates.base import TREE

    return TREE.root(Path(templates_dir()))


def slim_layer() -> bytes:
    """A Debian with a shell and sudo, and nothing of ours: no account `user`, no /home."""
    root = base_root()

    def own(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uname = info.gname = ""
        return info

    packaged = layer_of_trees(own, root, *_packaged(root))
    with tarfile.open(fileobj=io.BytesIO(packaged)) as tar:
        entries = [(info, _content(tar, info)) for info in tar]
    accounts = {
        "etc/passwd": b"root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        "etc/group": b"root:x:0:\ntty:x:5:\nsudo:x:27:\nnogroup:x:65534:\n",
        "etc/shadow": b"root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n",
    }
    links = [symlink(name, f"usr/{name}") for name in ("bin", "lib", "lib64", "sbin")]
    return layer(*links, *entries, *(entry(name, text) for name, text in accounts.items()))


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info) if info.isreg() else None
    return file.read() if file is not None else b""


def _packaged(root: Path) -> Iterator[str]:
    """The paths of these packages, as dpkg lists them; below /usr where / has links to it."""
    info = root / "var/lib/dpkg/info"
    lists = [next(iter([*info.glob(f"{name}.list"), *info.glob(f"{name}:*.list")])) for name in SLIM.split()]
    names = {line for path in lists for line in path.read_text().splitlines()}
    links = ("/bin", "/lib", "/lib64", "/sbin")
    moved = {f"/usr{name}" if name.startswith(tuple(f"{link}/" for link in links)) else name for name in names}
    # Made when these packages are installed.
    moved |= {f"/etc/{path.relative_to(root / 'etc')}" for path in (root / "etc/pam.d").glob("common-*")}
    moved.add("/etc/nsswitch.conf")
    for name in sorted(moved - {"/.", *links}):
        if not name.startswith(("/usr/share/doc", "/usr/share/man")) and os.path.lexists(root / name.lstrip("/")):
            yield name.lstrip("/")


def static_program() -> bytes:
    """busybox, which does what its name or its first argument says, and needs nothing."""
    program = Path("/usr/bin/busybox")
    return (program if program.exists() else Path("/bin/busybox")).read_bytes()


def musl_loader() -> bytes:
    """Alpine's C library, which is its loader too."""
    return Path("/lib/ld-musl-x86_64.so.1").read_bytes()


def tiny_layer() -> bytes:
    """busybox and nothing else: no glibc, bash, sudo or /etc/passwd."""
    applets = "sh ls cat id env echo sleep stat test true whoami mkdir rm wc head uname find touch pwd"
    links = [symlink(f"bin/{name}", "busybox") for name in applets.split()]
    return layer(entry("bin"), entry("bin/busybox", static_program(), mode=0o755), *links)
