"""Sandboxes of images that bring little, or something odd."""

from __future__ import annotations

import asyncio
import base64
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sandpty.config import DataDir
from sandpty.isolation.agent_call import output_of
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import LOGIN_SHELL
from sandpty.wire.frames import FrameError
from tests.component.supervisor_peer import Peer
from tests.oci_images import Image, entry, hard_link, layer, musl_loader, static_program, tiny_layer
from tests.registry_fixture import Registry
from tests.server_fixture import RunningServer
from tests.waiting import until

# `int main(void) { puts("hello from musl"); return 0; }` by `zig cc -target x86_64-linux-musl -dynamic -Os -s`.
MUSL_PROGRAM = zlib.decompress(
    base64.b85decode(
        "c-pmAO-~a+7@pm>P(dR25kDiVfe49gTZB?bFvN)2#2(PZh$h->yW4i-"
        "cDLCb5WGO*i4gAm1if?cNaD$aLw|w?P&gR9=*7f3)4qeV<JMxLlk7hGKJz~F&c{15yE2=-"
        "BTEuuMMgIfwN_6x0L=jZrsL3sa2XUQ?>^LvC>`be2ueI|L(>f7;1>ZM3CIFVJe~)dp~PVn1qxq<RwGS=A?e~_WsI+f@f{+#GvsxRp|hX^5D##k"
        "ML!<Y$!&BB=oDdI?(bnE`WNw-d5`Ei(2<J78wuOWCv0P+vf$ezOPO>oJ*N7unmS4&S3~&D7JLtRPKNOPEqJzG6fX#MF?ga-"
        "A8FA?mRcxhITl8_A_0`kkr5YiKGr>)tLT=4stedhlq3U3%3yPTI)sTD;&_?kHQ+mie#~(^pRZ-pwq2#@xfO*@Inq*}w6%}g#<))sM|-"
        "*ZWuJPjPiPwt<J!hFO@D2@XR!~V?0W1uf!Wl%gKLD{+1YuZt?dz?*PrY4{Q*Lywx7JMkLQU~eb6B96a6#fi`r${=)wCsDT9xxP5X9GBc^niX3c"
        "UL1@rNHz3%c!b0%cH8)+YDx-eZ5@EG7Zz_aX}0DoEVXLFc@`8zGdVL7hAIngb&9|PQl`Yy1q1AhI{9M2}yv$ffhgZrXo83_0L0O!azz=EwiC1u"
        "g{e9Lu|(WIJEN0p&6##MhRktkWXypUH5ZYA-"
        ";Dp6O8BYD@wKKAsgGGP`c#?171x=_p*M&3y0i<!xko*A1M&rFW$dP*<qX~GPntmQm2y(uM|z5PGKAk}iP=~a<xEIa;k1*s)xK`rZk8Nr+K*h8v"
        "k+B!Aht7>EN<r+HHk&4YFVl^n@p;xQ|X~)Hl7kHYs=jN)qVOUNH(XLlahwy%xG>-"
        "K=`bR~AM@GNhKY@EE^w5O7?&kC?9~B^$xO|kjeZlgykLC*5TTIXLaTAD3!WkA9;$MWeWg&mJ<luf{^-%$@z+RJu{jw_u_e-"
        "ns4?|nBu>X4_;qk@s-vIqB;XIfL(f5Str=d@yU{^t3jRdaY@Sg-yX8F6F{|^BDoS+x}InZ4}Ujuzj=)dqg@#}s7ZA3g*qQU=ym@t2=okzmm$L="
        "j979LN`pQnPJowrHQ54F*kfMfc3(9eVZRo9>MXAwAYo|wMYX8l%L-1|eYAZu;%_a_4W^lt"
    )
)


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


async def test_an_image_of_musl_runs_what_is_linked_against_it(server: RunningServer, registry: Registry) -> None:
    """As Alpine's are: another loader, another C library, no glibc anywhere; it names a directory that it lacks."""
    entries = [
        entry("usr/bin/hello", MUSL_PROGRAM, mode=0o755),
        entry("lib/ld-musl-x86_64.so.1", musl_loader(), mode=0o755),
    ]
    config = {"User": "4711:4711", "WorkingDir": "/srv/none", "Env": ["PATH=/usr/bin:/bin"]}
    async with sandbox_of(server, registry, Image([tiny_layer(), layer(*entries)], config), "musl") as sandbox:
        assert await says(sandbox, "/usr/bin/hello") == "hello from musl\n"
        assert "hello from musl" in await says(sandbox, "bash", "-l", "-c", "hello")
        defaults = sandbox["image"]["defaults"]
        assert (defaults["workdir"], defaults["user"]) == ("/srv/none", "")  # a number without an account is nobody
        assert await says(sandbox, "/bin/stat", "-c", "%F %a", "/srv/none", "/tmp") == "directory 755\ndirectory 1777\n"


async def test_an_image_of_one_program_runs_it(server: RunningServer, registry: Registry) -> None:
    """No shell, no account, no directory: it runs; what asks for a shell is told that there is none."""
    async with sandbox_of(
        server, registry, Image([layer(entry("busybox", static_program(), mode=0o755))]), "one"
    ) as sandbox:
        assert await says(sandbox, "/busybox", "echo", "ran") == "ran\n"
        assert "user" in await says(sandbox, "/busybox", "id")
        with pytest.raises(FrameError, match="No such file"):
            await says(sandbox, *LOGIN_SHELL, "-c", "true")


async def test_an_image_for_another_machine_is_refused_by_name(server: RunningServer, registry: Registry) -> None:
    """Alone, or as the only one of a list: what it is for is said, and what this machine is."""
    arm = Image([layer(entry("f", b"x"))], platform={"architecture": "arm64", "os": "linux"})
    for name, images in (("arm-alone", arm), ("arm-listed", [arm])):
        reference = registry.push(images, name)
        conf = server.data_dir / "registries.conf"
        conf.write_text(f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n')
        async with Peer(DataDir(server.data_dir).supervisor_socket) as peer:
            with pytest.raises(SandptyError, match=r"linux/a(md|rm)64.*linux/a(md|rm)64") as caught:
                await peer.call("import_image", reference=reference)
        assert caught.value.reason.name == "no_such_platform"
        conf.unlink()


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
