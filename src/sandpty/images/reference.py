"""What an image is called, and where it comes from. Pure.

Names of registries' images: github.com/distribution/reference, the grammar in its documentation. A name without a
registry is Docker Hub's, as everywhere.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from typing import Literal

from sandpty.wire.errors import SandptyError

DOCKER_HUB = "docker.io"
_NAME_CHARACTERS_MAX = 255
_DOMAIN = re.compile(r"(?:[A-Za-z0-9]+(?:(?:\.|-+)[A-Za-z0-9]+)*|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
_PATH_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x"}

SourceKind = Literal["docker", "docker-archive", "oci"]


@dataclass(frozen=True, slots=True)
class Source:
    """domain, path, tag, digest: of a registry's image. file, selector: of an archive or layout of the host, and which
    image in it."""

    kind: SourceKind
    domain: str = ""
    path: str = ""
    tag: str = ""
    digest: str = ""
    file: str = ""
    selector: str = ""

    @property
    def name(self) -> str:
        """Without tag and digest."""
        return f"{self.domain}/{self.path}"

    def __str__(self) -> str:
        if self.kind != "docker":
            return f"{self.kind}:{self.file}" + (f":{self.selector}" if self.selector else "")
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Platform:
    """Empty variant: any."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


def parse(text: str) -> Source:
    """A registry's image (also with `docker://`), `docker-archive:FILE[:NAME:TAG]` or `oci:DIR[:NAME]`.

    Raises bad_argument.
    """
    for kind in ("docker-archive", "oci"):
        if text.startswith(f"{kind}:"):
            file, _, selector = text.removeprefix(f"{kind}:").partition(":")
            if not file:
                raise SandptyError("bad_argument", f"{kind}: lacks a path")
            return Source(kind, file=file, selector=selector)
    return _of_registry(text.removeprefix("docker://"))


def _of_registry(text: str) -> Source:
    wrong = SandptyError("bad_argument", f"not the name of an image: {text[:100]!r}")
    name, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise wrong
    first, slash, rest = name.partition("/")
    domain = DOCKER_HUB
    if slash and (any(mark in first for mark in ".:") or first == "localhost"):
        domain, name = first, rest
    if domain == f"index.{DOCKER_HUB}":
        domain = DOCKER_HUB
    path, colon, tag = name.partition(":")
    if domain == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    good = _DOMAIN.fullmatch(domain) and all(_PATH_PART.fullmatch(part) for part in path.split("/"))
    if not good or (colon and not _TAG.fullmatch(tag)) or len(domain) + len(path) >= _NAME_CHARACTERS_MAX:
        raise wrong
    return Source("docker", domain, path, tag or "latest", digest)


def parse_platform(text: str) -> Platform:
    """`linux/arm64/v8`, `arm64`; empty: this machine's. Raises bad_argument."""
    if not text:
        machine = platform.machine()
        return Platform("linux", _ARCHITECTURES.get(machine, machine))
    parts = text.split("/")
    if len(parts) == 1:
        parts = ["linux", *parts]
    if len(parts) > 3 or not all(re.fullmatch("[a-z0-9_.-]{1,32}", part) for part in parts):
        raise SandptyError("bad_argument", f"not a platform: {text[:100]!r}")
    return Platform(*parts)
