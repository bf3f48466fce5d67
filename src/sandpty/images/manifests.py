"""Manifests, indexes and configurations of images: read with suspicion. Pure.

Formats: OCI image-spec 1.1, and Docker's image manifest version 2, schema 2, which differ in media types only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from sandpty import config
from sandpty.images.reference import Platform
from sandpty.wire.errors import SandptyError

_OCI, _DOCKER = "application/vnd.oci.image", "application/vnd.docker"
_INDEXES = (f"{_OCI}.index.v1+json", f"{_DOCKER}.distribution.manifest.list.v2+json")
_MANIFESTS = (f"{_OCI}.manifest.v1+json", f"{_DOCKER}.distribution.manifest.v2+json")
_LAYERS = {
    *(f"{_OCI}.layer.v1.tar{packing}" for packing in ("", "+gzip", "+zstd")),
    *(f"{_DOCKER}.image.rootfs.diff.tar{packing}" for packing in ("", ".gzip", ".zstd")),
}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# What stands for "any variant" where an image names one (containerd's defaults).
_USUAL_VARIANTS = {"arm64": "v8", "arm": "v7"}


class _PlatformOf(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""


class _Descriptor(msgspec.Struct, rename="camel"):
    digest: str
    size: int
    media_type: str = ""
    urls: list[str] | None = None
    platform: _PlatformOf | None = None


class _Manifest(msgspec.Struct, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None


class _RootFs(msgspec.Struct):
    diff_ids: list[str] = []


class _Run(msgspec.Struct):
    """`config` of a configuration: names as Docker has them."""

    User: str | None = None
    WorkingDir: str | None = None
    Env: list[str] | None = None
    Entrypoint: list[str] | None = None
    Cmd: list[str] | None = None


class _Configuration(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""
    rootfs: _RootFs = msgspec.field(default_factory=_RootFs)
    config: _Run | None = None


@dataclass(frozen=True, slots=True)
class LayerBlob:
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """digest: of the manifest itself."""

    digest: str
    config: str
    config_bytes: int
    layers: tuple[LayerBlob, ...]

    @property
    def size_bytes(self) -> int:
        return self.config_bytes + sum(layer.size_bytes for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Configuration:
    """diff_ids: digests of the layers unpacked, from the bottom up."""

    platform: Platform
    diff_ids: tuple[str, ...]
    env: dict[str, str]
    user: str
    workdir: str
    command: tuple[str, ...]


def digest_of(data: bytes) -> str:
    """As registries write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _read(data: bytes, kind: type[Any], what: str) -> Any:
    if len(data) > config.IMAGE_MANIFEST_BYTES:
        raise SandptyError("bad_image", f"the image's {what} is over {config.IMAGE_MANIFEST_BYTES} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise SandptyError("bad_image", f"the image's {what} is not one: {error}") from error


def choose(data: bytes, wanted: Platform) -> str | None:
    """Of an index: the digest of the manifest for `wanted`; None when `data` is a manifest itself.

    Raises no_such_platform, bad_image.
    """
    index: _Manifest = _read(data, _Manifest, "index")
    if index.manifests is None or (index.media_type and index.media_type not in _INDEXES):
        return None
    fitting = [each for each in index.manifests if each.platform is not None and _fits(each.platform, wanted)]
    if not fitting:
        names = sorted({_named(each.platform) for each in index.manifests if each.platform is not None} - {"unknown"})
        there = ", ".join(names[:20])[:300] or "none that is named"
        raise SandptyError("no_such_platform", f"the image has no {wanted}; it has {there}")
    # Of several variants the one that is meant without a name, else the first.
    usual = _USUAL_VARIANTS.get(wanted.architecture, "")
    best = min(fitting, key=lambda each: each.platform is not None and each.platform.variant not in ("", usual))
    return _digest(best.digest)


def _fits(offered: _PlatformOf, wanted: Platform) -> bool:
    same = (offered.os, offered.architecture) == (wanted.os, wanted.architecture)
    return same and wanted.variant in ("", offered.variant or _USUAL_VARIANTS.get(offered.architecture, ""))


def _named(offered: _PlatformOf | None) -> str:
    if offered is None or offered.os in ("", "unknown"):
        return "unknown"  # attestations are listed so
    return str(Platform(offered.os, offered.architecture, offered.variant))


def manifest(data: bytes) -> Manifest:
    """Raises bad_image, too_large."""
    found: _Manifest = _read(data, _Manifest, "manifest")
    if found.schema_version != 2 or found.config is None or found.layers is None:
        raise SandptyError("bad_image", "the image's manifest is of a kind that is not supported (older than 2016?)")
    if found.media_type and found.media_type not in _MANIFESTS:
        raise SandptyError("bad_image", f"not an image but {found.media_type[:100]!r}")
    if len(found.layers) > config.IMAGE_LAYERS_MAX:
        raise SandptyError("too_large", f"the image has more than {config.IMAGE_LAYERS_MAX} layers")
    layers = tuple(_layer(each) for each in found.layers)
    result = Manifest(digest_of(data), _digest(found.config.digest), found.config.size, layers)
    if found.config.size < 0 or found.config.size > config.IMAGE_MANIFEST_BYTES:
        raise SandptyError("bad_image", "the image's configuration is too large")
    if result.size_bytes > config.IMAGE_BLOBS_BYTES:
        raise SandptyError("too_large", f"the image's layers are over {config.IMAGE_BLOBS_BYTES} bytes")
    return result


def _layer(described: _Descriptor) -> LayerBlob:
    if described.media_type not in _LAYERS or described.urls:
        # Layers that are said to be elsewhere: nobody makes them any more, and we would fetch what a stranger names.
        raise SandptyError("bad_image", f"a layer is of a kind that is not supported: {described.media_type[:100]!r}")
    if described.size < 0:
        raise SandptyError("bad_image", "a layer's size is negative")
    return LayerBlob(_digest(described.digest), described.size)


def _digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise SandptyError("bad_image", f"not a SHA-256 digest: {text[:80]!r}")
    return text


def configuration(data: bytes, of: Manifest, wanted: Platform) -> Configuration:
    """Checked against the manifest and the platform. Raises bad_image, no_such_platform."""
    if digest_of(data) != of.config:
        raise SandptyError("bad_image", "digest mismatch: the configuration is not what the manifest names")
    found: _Configuration = _read(data, _Configuration, "configuration")
    if len(found.rootfs.diff_ids) != len(of.layers):
        raise SandptyError("bad_image", "the configuration names other layers than the manifest")
    if (found.os, found.architecture) != (wanted.os, wanted.architecture):
        there = str(Platform(found.os[:32], found.architecture[:32]))
        raise SandptyError("no_such_platform", f"the image is for {there}, not for {wanted}")
    run = found.config or _Run()
    return Configuration(
        platform=Platform(found.os, found.architecture, found.variant),
        diff_ids=tuple(_digest(each) for each in found.rootfs.diff_ids),
        env=_environment(run.Env or ()),
        user=run.User or "",
        workdir=run.WorkingDir or "",
        command=(*(run.Entrypoint or ()), *(run.Cmd or ())),
    )


def _environment(lines: Sequence[str]) -> dict[str, str]:
    pairs = (line.partition("=") for line in lines)
    return {name: value for name, equals, value in pairs if name and equals and "\0" not in name + value}
