"""Files that template builds copy: a context with all kinds of names, a Debian package, a Python wheel, a registry of
JavaScript packages."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path


def write_context(directory: Path) -> Path:
    """`app/` with a subdirectory, a link and a script; two `.txt` files; one that .dockerignore leaves out."""
    (directory / "app" / "data").mkdir(parents=True)
    (directory / "app" / "main.py").write_text("print('main')\n")
    (directory / "app" / "data" / "räume.csv").write_text("a,b\n")
    (directory / "app" / "link").symlink_to("main.py")
    (directory / "app" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (directory / "one.txt").write_text("one\n")
    (directory / "two.txt").write_text("two\n")
    (directory / "secret.txt").write_text("not for you\n")
    (directory / ".dockerignore").write_text("secret.txt\n")
    return directory


def write_deb(directory: Path, name: str = "sandpty-hello") -> Path:
    """An apt repository (for `deb [trusted=yes] file:...  ./`) with a package whose program greets."""
    tree = directory / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    fields = f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n"
    (tree / "DEBIAN" / "control").write_text(f"{fields}Description: a greeting\n")
    program = tree / "usr" / "bin" / name
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho hello from a package\n")
    program.chmod(0o755)
    for path in (tree, tree / "DEBIAN", tree / "usr", tree / "usr" / "bin"):
        path.chmod(0o755)
    repository = directory / "repository"
    repository.mkdir()
    package = repository / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(tree), str(package)], check=True, timeout=60)
    content = package.read_bytes()
    where = f"Filename: ./{package.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
    (repository / "Packages").write_text(f"{fields}{where}Description: a greeting\n")
    return repository


def write_wheel(directory: Path, name: str = "sandpty_hello") -> str:
    """A wheel with one module; its file name."""
    file_name = f"{name}-1.0-py3-none-any.whl"
    files = {
        f"{name}.py": "GREETING = 'hello from a wheel'\n",
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    files[f"{name}-1.0.dist-info/RECORD"] = record + f"{name}-1.0.dist-info/RECORD,,\n"
    with zipfile.ZipFile(os.path.join(directory, file_name), "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return file_name


REGISTRY_PORT = 4873
# For /etc/profile.d: commands of a build run in login shells, each of which finds the registry listening.
_SERVE = f"""\
(cd /srv/registry && exec python3 -m http.server {REGISTRY_PORT} --bind 127.0.0.1 </dev/null >/dev/null 2>&1) &
until curl -so /dev/null 127.0.0.1:{REGISTRY_PORT}; do sleep 0.02; done
"""


def write_registry(directory: Path, *names: str) -> Path:
    """What npm and bun ask a registry for, as files for /srv/registry, and `serve.sh` that serves them there: packages
    whose program greets."""
    registry = directory / "registry"
    (registry / "packed").mkdir(parents=True)
    (registry / "serve.sh").write_text(_SERVE)
    for name in names:
        about = {"name": name, "version": "1.0.0", "bin": {name: "cli.sh"}}
        files = {"package.json": json.dumps(about), "cli.sh": f"#!/bin/sh\necho hello from {name}\n"}
        packed = registry / "packed" / f"{name}.tgz"
        with tarfile.open(packed, "w:gz") as tar:
            for path, text in files.items():
                info = tarfile.TarInfo(f"package/{path}")
                info.size, info.mode = len(text), 0o755
                tar.addfile(info, io.BytesIO(text.encode()))
        digest = base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
        where = f"http://127.0.0.1:{REGISTRY_PORT}/packed/{packed.name}"
        version = {**about, "dist": {"tarball": where, "integrity": f"sha512-{digest}"}}
        document = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
        (registry / name).write_text(json.dumps(document))
    return registry
