"""Sandboxes of images that bring little, or something odd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sandpty.config import DataDir
from sandpty.isolation.agent_call import output_of
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import LOGIN_SHELL
from tests.component.supervisor_peer import Peer
from tests.oci_images import Image, entry, hard_link, layer, tiny_layer
from tests.registry_fixture import Registry
from tests.server_fixture import RunningServer
from tests.waiting import until


@asynccontextmanager
async def sandbox_of(
    server: RunningServer, registry: Registry, image: Image, name: str
) -> AsyncIterator[dict[str, Any]]:
    """A sandbox of an image that the server's supervisor imports."""
    reference = registry.push(image, name)
    conf = server.data_dir / "registries.conf"
    conf.write_text(f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n')
    async with Peer(DataDir(server.data_dir).supervisor_socket) as peer:
        imported = await peer.call("import_image", reference=reference)
        files = {"kind": "image", "id": imported["id"]}
        made = await peer.create(template=name, files=files, defaults=imported["defaults"])
        try:
            yield {**made, "image": imported}
        finally:
            await peer.call("kill", id=made["id"])
            conf.unlink()


async def says(sandbox: dict[str, Any], *argv: str, user: str = "user") -> str:
    """What a program says there."""
    code, text = await output_of(sandbox["socket"], list(argv), user=user, timeout_s=20)
    assert code == 0, text
    return text


async def test_an_image_with_busybox_alone_has_a_terminal(server: RunningServer, registry: Registry) -> None:
    """No bash, no sudo, no glibc, no /etc/passwd: the shell that every client asks for starts, as `user`."""
    async with sandbox_of(server, registry, Image([tiny_layer()]), "bare") as sandbox:
        said = await says(sandbox, *LOGIN_SHELL, "-c", "echo $(id -un) at $HOME")
        assert "user at /home/user" in said, said
        assert "user" in await says(sandbox, "bash", "-c", "whoami")
        assert "root" in await says(sandbox, "/bin/busybox", "whoami", user="root")


async def test_an_images_files_are_as_it_says(server: RunningServer, registry: Registry) -> None:
    """Hard links are one file, owners are those of the image, its user is known by its number."""
    more = layer(
        hard_link("bin/becomes-root", "bin/busybox"),
        entry("data/theirs", b"x", uid=1234, gid=4321),
        entry("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1234:4321::/srv:/bin/sh\n"),
    )
    async with sandbox_of(server, registry, Image([tiny_layer(), more], {"User": "1234"}), "rights") as sandbox:
        assert sandbox["image"]["defaults"]["user"] == "app"
        assert (await says(sandbox, "/bin/stat", "-c", "%u:%g", "/data/theirs")).strip() == "1234:4321"
        assert (await says(sandbox, "/bin/stat", "-c", "%h", "/bin/busybox")).strip() == "2"


async def test_an_import_can_be_watched_and_cancelled(server: RunningServer, registry: Registry) -> None:
    """Who watches hears how far it is; a cancelled one leaves nothing, and says so."""
    names = [f"{number}" for number in range(20_000)]
    reference = registry.push(Image([layer(*(entry(f"d/{name}", b"") for name in names))]), "many")
    conf = server.data_dir / "registries.conf"
    conf.write_text(f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n')
    try:
        async with Peer(DataDir(server.data_dir).supervisor_socket) as peer:
            await peer.call("watch")
            call = asyncio.create_task(peer.call("import_image", reference=reference, token="mine"))
            await until(lambda: any(event["event"] == "import" for event in peer.events), 30, "progress")
            await peer.call("cancel_import", token="mine")
            with pytest.raises(SandptyError, match="cancelled") as caught:
                await call
            assert caught.value.reason.name == "conflict"
            assert {event["progress"]["token"] for event in peer.events if event["event"] == "import"} == {"mine"}
            assert not list((server.data_dir / "images").glob(".importing-*"))
    finally:
        conf.unlink()
