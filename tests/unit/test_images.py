"""Names of images, platforms, manifests, the operator's word on registries, and what skopeo's words mean."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from sandpty import config
from sandpty.images import manifests, reference, registries, skopeo, store
from sandpty.images.reference import Platform
from sandpty.wire.errors import SandptyError

AMD, ARM = Platform("linux", "amd64"), Platform("linux", "arm64")
DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("ubuntu", "docker.io/library/ubuntu:latest"),
        ("ubuntu:22.04", "docker.io/library/ubuntu:22.04"),
        ("team/tool:v1", "docker.io/team/tool:v1"),
        ("index.docker.io/library/ubuntu", "docker.io/library/ubuntu:latest"),
        ("docker://ghcr.io/a/b/c:1", "ghcr.io/a/b/c:1"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x:y", "localhost:5000/x:y"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        (f"ubuntu@{DIGEST}", f"docker.io/library/ubuntu@{DIGEST}"),
        (f"ubuntu:22.04@{DIGEST}", f"docker.io/library/ubuntu@{DIGEST}"),
        ("docker-archive:/a/b.tar", "docker-archive:/a/b.tar"),
        ("docker-archive:/a/b.tar:name:tag", "docker-archive:/a/b.tar:name:tag"),
        ("oci:/a/layout:v1", "oci:/a/layout:v1"),
    ],
)
def test_an_image_is_called_as_everywhere(text: str, meant: str) -> None:
    """Without a registry it is Docker Hub's."""
    assert str(reference.parse(text)) == meant


@pytest.mark.parametrize(
    "text",
    ["", "Ubuntu", "a b", "x:", "x@sha256:1", "-x/y", "a..b/c", "x/../y", "h:1/x\n", 'h"]/x', "oci:", "x" * 300, "//x"],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    """Also what would be a second argument, a path, or a line of a configuration."""
    with pytest.raises(SandptyError):
        reference.parse(text)


def index(*platforms: dict[str, str]) -> bytes:
    """One manifest each, whose digest tells its place."""
    listed = [
        {"digest": f"sha256:{number:064x}", "size": 1, "platform": platform}
        for number, platform in enumerate(platforms)
    ]
    return json.dumps({"schemaVersion": 2, "manifests": listed}).encode()


def test_the_usual_variant_is_chosen() -> None:
    """arm64 means v8; attestations (of an unknown platform) are not images."""
    told = index(
        {"os": "unknown", "architecture": "unknown"},
        {"os": "linux", "architecture": "arm64", "variant": "v9"},
        {"os": "linux", "architecture": "arm64", "variant": "v8"},
        {"os": "windows", "architecture": "amd64"},
    )
    assert manifests.choose(told, ARM) == f"sha256:{2:064x}"
    assert manifests.choose(told, Platform("linux", "arm64", "v9")) == f"sha256:{1:064x}"
    with pytest.raises(SandptyError, match="linux/arm64/v8, linux/arm64/v9, windows/amd64") as caught:
        manifests.choose(told, AMD)
    assert caught.value.reason.name == "no_such_platform"


def manifest(**changes: object) -> bytes:
    """Of an image with one layer, changed."""
    blob = {"digest": DIGEST, "size": 10, "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}
    told = {"schemaVersion": 2, "config": {"digest": DIGEST, "size": 5}, "layers": [{**blob, **changes}]}
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "sha512:" + "a" * 128},
        {"digest": "../../etc/passwd"},
        {"size": -1},
        {"size": config.IMAGE_BLOBS_BYTES + 1},
        {"mediaType": "application/vnd.oci.image.layer.v1.tar+encrypted"},
        {"urls": ["http://169.254.169.254/latest"]},
    ],
)
def test_hostile_manifests_are_refused(changes: dict[str, object]) -> None:
    """Digests that are paths, sizes that are none, layers that are to be fetched from elsewhere."""
    assert manifests.manifest(manifest()).size_bytes == 15
    with pytest.raises(SandptyError):
        manifests.manifest(manifest(**changes))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"schemaVersion": 1}', b"{" * 10_000, b" " * (config.IMAGE_MANIFEST_BYTES + 1)]
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    """Of an old kind, too long, or nothing at all."""
    with pytest.raises(SandptyError):
        manifests.manifest(data)


def test_the_operators_word_on_registries(tmp_path: Path) -> None:
    """Mirrors are reached by what they stand for; loopback may be plain; a request's credentials are its registry's."""
    conf, auth = tmp_path / "registries.conf", tmp_path / "auth.json"
    assert registries.read(conf, auth).text == ""
    conf.write_text(
        '[[registry]]\nprefix = "docker.io"\nlocation = "hub.example"\n[[registry.mirror]]\nlocation = "m:5/x"\n'
    )
    auth.write_text(
        json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": "b3A6"}, "ghcr.io": {"auth": "Z2g6"}}})
    )
    told = registries.read(conf, auth)
    assert told.named == {"docker.io", "hub.example", "m:5"}
    assert registries.conf_for(told, "ghcr.io") == told.text
    assert 'location = "127.0.0.1:5000"\ninsecure = true' in registries.conf_for(told, "127.0.0.1:5000")
    given = json.loads(registries.auth_for(told, "docker.io", "me", "pw"))["auths"]
    assert given == {"docker.io": {"auth": base64.b64encode(b"me:pw").decode()}}
    assert json.loads(registries.auth_for(told, "ghcr.io", "", ""))["auths"] == {"ghcr.io": {"auth": "Z2g6"}}
    for broken in ("[[registry", "registry = 1"):
        conf.write_text(broken)
        with pytest.raises(SandptyError) as caught:
            registries.read(conf, auth)
        assert caught.value.reason.name == "bad_argument"


@pytest.mark.parametrize(
    "domain",
    [
        "localhost:5000",
        "LOCALHOST",
        "127.0.0.1:80",
        "10.1.2.3",
        "[::1]:80",
        "169.254.169.254",
        "intranet:80",
        "[::ffff:127.0.0.1]:80",
    ],
)
def test_a_registry_inside_is_no_public_one(domain: str) -> None:
    """Strangers are told so before anything is asked."""
    with pytest.raises(SandptyError) as caught:
        registries.check_public(domain)
    assert caught.value.reason.name == "registry_forbidden"
    registries.check_public("ghcr.io")
    registries.check_public("1.1.1.1:5000")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("reading manifest x in h/y: manifest unknown: manifest unknown", "no_such_image"),
        ("unauthorized: authentication required", "registry_denied"),
        ("requested access to the resource is denied", "registry_denied"),
        ("dial tcp: lookup quay.io: no such host", "registry_failed"),
        ("write /x: no space left on device", "no_space"),
        ("toomanyrequests: You have reached your pull rate limit", "limit"),
        ("Digest did not match, expected sha256:1, got sha256:2", "bad_image"),
        ("(Mirrors also failed: [m/x: manifest unknown]): h/x: dial tcp: no such host", "no_such_image"),
    ],
)
def test_skopeos_words_have_a_meaning(words: str, reason: str) -> None:
    """One that says what to do about it; and no more of them than fit a line."""
    said = (
        f'time="2026" level=info msg="no space left"\ntime="2026" level=fatal msg="initializing source h/y: {words}"\n'
    )
    error = skopeo.meaning(said)
    assert (error.reason.name, error.message) == (reason, words)
    assert len(skopeo.meaning("x" * 10_000).message) < 1000
    assert skopeo.meaning("").reason.name == "registry_failed"


def test_ids_of_images_are_no_paths(tmp_path: Path) -> None:
    """And a held image stays."""
    for text in ("..", "", "a/b", "a" * 31, "A" * 32):
        assert store.find(tmp_path, "a" * 32) is None
        with pytest.raises(SandptyError):
            store.place(tmp_path, text)
    with pytest.raises(SandptyError):
        store.hold(tmp_path, "a" * 32)
    (tmp_path / ("a" * 32)).mkdir()
    os.close(store.hold(tmp_path, "a" * 32))
    assert store.image_id("docker.io/x", DIGEST) != store.image_id("docker.io/y", DIGEST)
