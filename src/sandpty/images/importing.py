"""`python -I -m sandpty.images.importing`: one import, from the reference to a tree in place. See telling.py.

Root, but what touches foreign bytes is not: skopeo.py runs without rights, confined.py without anything around it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from sandpty import config
from sandpty.images import confined, fence, pulling, reference, store
from sandpty.images.confined import Step, Task, TaskLayer, Unpacked
from sandpty.images.manifests import Configuration, Manifest
from sandpty.images.pulling import Pull
from sandpty.images.reference import Source
from sandpty.images.telling import Done, Failed, Going, Order, Said
from sandpty.wire.errors import SandptyError
from sandpty.wire.images import Blob, Image, ImportProgress
from sandpty.wire.templates import Defaults

_PULLED_PERCENT, _UNPACKED_PERCENT = 60.0, 98.0
_CAPABILITIES = ("chown", "dac_override", "fowner", "fsetid", "setfcap", "sys_chroot")
_LINE_BYTES = 64 * 1024


def _say(word: Said) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
    sys.stdout.buffer.flush()


def _show(text: str, percent: float, blobs: Sequence[Blob] = ()) -> None:
    _say(Going(ImportProgress(text=text, percent=round(percent, 1), blobs=tuple(blobs))))


def import_image(order: Order) -> tuple[Image, int]:
    """The image and a descriptor that holds it. Raises SandptyError, OSError; then nothing is left."""
    images = Path(order.images)
    source, platform = reference.parse(order.source), reference.parse_platform(order.platform)
    given = pulling.given(order, source)
    store.remove_left(images)
    with contextlib.ExitStack() as held:
        uid = held.enter_context(fence.account())
        if not order.operator:
            held.enter_context(fence.fenced(uid, given.places))
        asking = held.enter_context(store.work(images, f"new-{secrets.token_hex(8)}", lambda: None))
        pull = Pull(asking, uid, source, platform, given)
        if source.kind == "docker":
            _show("asking the registry", 0)
            found = pull.ask()
            manifest, name = found.manifest, source.name
        else:
            _show(f"reading {source.file}", 0)
            manifest, configuration = pull.fetch_local()
            name = source.kind
        image = store.image_id(name, manifest.digest)
        with store.work(images, image, lambda: _show("waiting for another import of this image", 0)) as work:
            if (known := store.find(images, image)) is None:
                if source.kind == "docker":
                    configuration = pull.fetch(found, _pulling)
                known = _make(images, image, work, pull.blobs, (source, manifest, configuration))
            kept = store.hold(images, image)
    return msgspec.structs.replace(known, reference=str(source)), kept


def _pulling(blobs: list[Blob]) -> None:
    total = sum(blob.size_bytes for blob in blobs) or 1
    done = sum(blob.done_bytes for blob in blobs)
    _show("pulling", _PULLED_PERCENT * done / total, blobs)


def _make(
    images: Path,
    image: str,
    work: Path,
    blobs: Path,
    about: tuple[Source, Manifest, Configuration],
) -> Image:
    """Unpack it, and move it into place."""
    source, manifest, configuration = about
    new = work / "new"
    tree = new / "rootfs"
    tree.mkdir(parents=True)
    new.chmod(0o700)  # nobody on this host may run what is setuid in there
    tree.chmod(0o755)
    layers = [
        TaskLayer(layer.digest, diff_id) for layer, diff_id in zip(manifest.layers, configuration.diff_ids, strict=True)
    ]
    task = Task(
        str(blobs),
        str(tree),
        layers,
        configuration.user,
        configuration.workdir,
        config.IMAGE_TREE_BYTES,
        config.IMAGE_ENTRIES_MAX,
    )
    unpacked = unpack(task, manifest, _show)
    described = Image(
        id=image,
        reference=str(source),
        digest=manifest.digest,
        platform=str(configuration.platform),
        created_at=time.time(),
        size_bytes=_disk_bytes(tree),
        entries=unpacked.entries,
        defaults=Defaults(env=configuration.env, workdir=unpacked.workdir, user=unpacked.user),
        command=configuration.command,
        notices=tuple(unpacked.notices),
    )
    store.describe(new, described)
    os.rename(new, store.place(images, image))
    return described


def _disk_bytes(tree: Path) -> int:
    done = subprocess.run(["du", "-s", "--block-size=1", str(tree)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


# --- unpacking -------------------------------------------------------------------------------------------------------


def unpack(task: Task, manifest: Manifest, show: Callable[[str, float], None]) -> Unpacked:
    """In a process that has nothing but the tree. Raises SandptyError."""
    rights = ["setpriv", "--no-new-privs", "--inh-caps=-all"]
    rights.append(f"--bounding-set=-all,{','.join(f'+{name}' for name in _CAPABILITIES)}")
    alone = ["unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child=KILL"]
    program = [sys.executable, "-I", "-m", confined.__name__]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", *alone, "--propagation=private", *rights, *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(msgspec.json.encode(task))
        return _follow(process.stdout.fileno(), manifest, show)
    finally:
        process.stdout.close()
        if process.poll() is None:
            process.kill()
        process.wait()


def _follow(fd: int, manifest: Manifest, show: Callable[[str, float], None]) -> Unpacked:
    total = manifest.size_bytes or 1
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            if not selector.select(config.IMAGE_STALL_S):
                raise SandptyError("bad_image", "unpacking does not get on")
            data = os.read(fd, _LINE_BYTES)
            if not data:
                raise SandptyError("bad_image", "unpacking ended without a word")
            *lines, buffer = (buffer + data).split(b"\n")
            if len(buffer) > _LINE_BYTES:
                raise SandptyError("bad_image", "unpacking says nonsense")
            for line in lines:
                match msgspec.json.decode(line, type=confined.Said):
                    case Step(layer, done_bytes, entries):
                        done = sum(each.size_bytes for each in manifest.layers[:layer]) + done_bytes
                        share = (_UNPACKED_PERCENT - _PULLED_PERCENT) * min(1.0, done / total)
                        text = f"unpacking layer {layer + 1} of {len(manifest.layers)}, {entries} entries"
                        show(text, _PULLED_PERCENT + share)
                    case confined.Failed(reason, message):
                        raise SandptyError(reason, message)
                    case Unpacked() as unpacked:
                        return unpacked


# --- the program -----------------------------------------------------------------------------------------------------


def _watch_stdin(ended: threading.Event) -> None:
    """Whoever asked is gone when stdin ends: before we are done that means to give up."""
    while os.read(0, 4096):
        pass
    ended.set()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it cleans up
    os.umask(0o077)
    ended = threading.Event()
    try:
        order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
        threading.Thread(target=_watch_stdin, args=(ended,), daemon=True).start()
        word = _outcome(order)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is done: what is left is to be heard
        _say(word)
        if isinstance(word, Done):
            ended.wait()
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


def _outcome(order: Order) -> Done | Failed:
    try:
        return Done(import_image(order)[0])
    except SandptyError as error:
        return Failed(error.reason.name, error.message)
    except OSError as error:
        reason = "no_space" if error.errno in (28, 122) else "internal"
        return Failed(reason, f"the import failed: {error.strerror or error}")


if __name__ == "__main__":
    sys.exit(main())
