"""Imports of images for tests: the program itself, and its unpacking part alone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from sandpty import config
from sandpty.config import DataDir
from sandpty.images import importing, telling
from sandpty.images.confined import Task, TaskLayer, Unpacked
from sandpty.images.manifests import LayerBlob, Manifest
from sandpty.images.telling import Done, Failed, Going, Order
from sandpty.wire.errors import SandptyError
from sandpty.wire.images import Image, ImportProgress
from tests.oci_images import GZIP, digest_of, packed

TIMEOUT_S = 60.0


@dataclass
class Unpacker:
    """Unpacks layers that a test has made; `tree` is what comes of it."""

    directory: Path
    count: int = 0

    @property
    def tree(self) -> Path:
        return self.directory / f"tree{self.count}"

    def unpack(
        self,
        *layers: bytes,
        media: str = GZIP,
        user: str = "",
        workdir: str = "",
        bytes_max: int = config.IMAGE_TREE_BYTES,
        entries_max: int = config.IMAGE_ENTRIES_MAX,
        blobs: Sequence[bytes] | None = None,
        digests: Sequence[str] | None = None,
    ) -> Unpacked:
        """Raises SandptyError. `blobs`: instead of the packed layers; `digests`: instead of the blobs' own."""
        self.count += 1
        self.tree.mkdir()
        place = self.directory / f"blobs{self.count}"
        place.mkdir()
        blobs = [packed(data, media) for data in layers] if blobs is None else blobs
        digests = [digest_of(blob) for blob in blobs] if digests is None else digests
        for blob, digest in zip(blobs, digests, strict=True):
            (place / digest.removeprefix("sha256:")).write_bytes(blob)
        described = [TaskLayer(name, digest_of(data)) for name, data in zip(digests, layers, strict=True)]
        task = Task(str(place), str(self.tree), described, user, workdir, bytes_max, entries_max)
        sizes = tuple(LayerBlob(digest, len(blob)) for digest, blob in zip(digests, blobs, strict=True))
        return importing.unpack(task, Manifest("", "", 0, sizes), lambda text, percent: None)


@dataclass
class Importer:
    """Imports into a data directory of its own, as its operator."""

    data: DataDir
    progress: list[ImportProgress] = field(default_factory=list)

    @contextlib.contextmanager
    def started(
        self, source: str, *, operator: bool = True, username: str = "", password: str = "", platform: str = ""
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The program, told what to do; ended afterwards."""
        order = Order(
            images=str(self.data.images),
            source=source,
            platform=platform,
            username=username,
            password=password,
            operator=operator,
            registries=str(self.data.registries),
            registry_auth=str(self.data.registry_auth),
        )
        process = subprocess.Popen(telling.argv(sys.executable), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            process.stdin.flush()
            yield process
        finally:
            process.stdin.close()
            process.stdout.close()
            process.wait(TIMEOUT_S)

    def run(self, source: str, **asked: str | bool) -> Image:
        """Raises SandptyError as the supervisor would."""
        self.progress = []
        with self.started(source, **asked) as process:  # type: ignore[arg-type]
            assert process.stdout is not None
            for line in process.stdout:
                match msgspec.json.decode(line, type=telling.Said):
                    case Going(progress):
                        self.progress.append(progress)
                    case Failed(reason, message):
                        raise SandptyError(reason, message)
                    case Done(image):
                        return image
        raise AssertionError("it ended without a word")

    def left(self) -> list[str]:
        """Names of all that is in the images' directory."""
        return sorted(path.name for path in self.data.images.iterdir()) if self.data.images.exists() else []
