"""A registry on loopback for tests (Debian's docker-registry), with stand-ins for the images people start from."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.oci_images import INDEX, MANIFEST, Image, entry, layer, slim_layer, tiny_layer, write_index
from tests.waiting import until_sync

START_TIMEOUT_S = 30.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STAND_INS = {
    "library/debian": ("latest", "12", "bookworm", "bookworm-slim"),
    "library/ubuntu": ("latest", "22.04", "24.04"),
    "library/python": ("latest", "3", "3.11", "3.12", "3.13"),
    "library/node": ("latest", "20", "22", "lts"),
}


@dataclass
class Registry:
    """host: `127.0.0.1:PORT`, what an image's name begins with."""

    directory: Path
    host: str
    process: subprocess.Popen[bytes]

    def push(self, image: Image | Sequence[Image], name: str, *tags: str, credentials: str = "") -> str:
        """Under `name` and each tag (`latest` without any); several images are one of several platforms. Its name."""
        tags = tags or ("latest",)
        with tempfile.TemporaryDirectory(dir=self.directory) as place:
            layout = Path(place) / "layout"
            if isinstance(image, Image):
                image.write(layout)
            else:
                write_index(layout, image)
            argv = ["skopeo", "copy", "--quiet", "--all", "--insecure-policy", "--dest-tls-verify=false"]
            argv += ["--dest-creds", credentials] if credentials else []
            argv += [f"oci:{layout}:latest", f"docker://{self.host}/{name}:{tags[0]}"]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr
        manifests = f"http://{self.host}/v2/{name}/manifests"
        kind = MANIFEST if isinstance(image, Image) else INDEX
        for tag in tags[1:]:
            manifest = httpx.get(f"{manifests}/{tags[0]}", headers={"Accept": kind})
            put = httpx.put(f"{manifests}/{tag}", content=manifest.content, headers={"Content-Type": kind})
            assert put.status_code == 201, put.text
        return f"{self.host}/{name}:{tags[0]}"

    def stands_in_for_docker_hub(self, data_dir: Path) -> None:
        """For the server with this data directory: `ubuntu:22.04` and the like come from here."""
        text = f'[[registry]]\nprefix = "docker.io"\nlocation = "{self.host}"\ninsecure = true\n'
        (data_dir / "registries.conf").write_text(text)

    @property
    def requests(self) -> list[str]:
        """`GET /v2/...` of everything that was asked so far."""
        found = re.findall(r'"((?:GET|HEAD) \S+) HTTP', (self.directory / "log").read_text(errors="replace"))
        return [str(line) for line in found]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def running_registry(auth: dict[str, object] | None = None) -> Iterator[Registry]:
    """An empty one on a free port. auth: the section of that name in its configuration."""
    directory = Path(tempfile.mkdtemp(prefix="sp-registry-", dir="/tmp"))
    config = {
        "version": 0.1,
        "log": {"level": "info", "formatter": "text"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "store")}},
        "http": {"addr": "127.0.0.1:0"},
        **({"auth": auth} if auth else {}),
    }
    (directory / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    argv = [shutil.which("docker-registry", path=PATH) or "docker-registry", "serve", str(directory / "config.yml")]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": PATH})

    def listening() -> str | None:
        text = (directory / "log").read_text(errors="replace")
        assert process.poll() is None, text
        found = re.search(r"listening on (127\.0\.0\.1:\d+)", text)
        return found.group(1) if found else None

    registry = Registry(directory, "", process)
    try:
        registry.host = until_sync(listening, START_TIMEOUT_S, "the registry listens")
        yield registry
    finally:
        registry.stop()


def fill(registry: Registry) -> None:
    """The stand-ins: one slim Debian under many names (node's has an account `node`), and `tiny`: busybox alone."""
    slim = slim_layer()
    path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    for name, tags in STAND_INS.items():
        short = name.removeprefix("library/")
        mark = [entry(f"etc/{short}-stand-in", b"yes\n")]
        env = [path]
        if short == "node":
            env.append("NODE_VERSION=20.0.0")
            mark.append(
                entry("etc/passwd", b"root:x:0:0:root:/root:/bin/bash\nnode:x:1000:1000::/home/node:/bin/bash\n")
            )
            mark.append(entry("etc/group", b"root:x:0:\ntty:x:5:\nsudo:x:27:\nnode:x:1000:\n"))
        if short == "python":
            env += ["PYTHON_VERSION=3.11.0", "LANG=C.UTF-8"]
        registry.push(Image([slim, layer(*mark)], {"Env": env, "Cmd": ["bash"]}), name, *tags)
    registry.push(Image([tiny_layer()], {"Env": ["PATH=/bin"], "Cmd": ["sh"]}), "tiny")


if __name__ == "__main__":
    import time

    with running_registry() as made:
        begun = time.monotonic()
        fill(made)
        print(made.host, f"filled in {time.monotonic() - begun:.1f} s", os.getpid())
        input()
