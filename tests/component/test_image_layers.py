"""Layers of images, friendly and hostile: what comes of them in a tree, and that nothing comes of them outside."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandpty.wire.errors import SandptyError
from tests.component.image_imports import Unpacker
from tests.oci_images import TAR, ZSTD, digest_of, entry, hard_link, layer, symlink

MIB = 1024 * 1024
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0).decode("latin-1")  # cap_net_raw=ep
OUTSIDE = Path("/tmp/sandpty-test-outside")


@pytest.fixture
def unpacker(tmp_path: Path) -> Iterator[Unpacker]:
    """And afterwards: nothing was written where hostile layers of these tests want to write."""
    yield Unpacker(tmp_path)
    assert not os.path.lexists(OUTSIDE)
    assert {path.name for path in tmp_path.iterdir()} <= {f"{kind}{n}" for kind in ("tree", "blobs") for n in (1, 2, 3)}


def refused(unpacker: Unpacker, *layers: bytes, **how: int) -> SandptyError:
    """The error of an unpacking that must fail because of the image."""
    with pytest.raises(SandptyError) as caught:
        unpacker.unpack(*layers, **how)  # type: ignore[arg-type]
    assert caught.value.reason.name in ("bad_image", "too_large"), caught.value
    return caught.value


def names(tree: Path, below: str) -> set[str]:
    """What is in a directory of the tree."""
    return set(os.listdir(tree / below))


# --- what layers say ------------------------------------------------------------------------------------------------


def test_owners_modes_times_links_and_attributes_arrive(unpacker: Unpacker) -> None:
    """As the archive has them: setuid, capabilities, hard links, FIFOs, links to anywhere."""
    attributes = {"SCHILY.xattr.security.capability": CAPABILITY, "SCHILY.xattr.user.note": "ü"}
    unpacked = unpacker.unpack(
        layer(
            entry("opt", mode=0o750, uid=7, gid=8, mtime=1000),
            entry("opt/tool", b"x", mode=0o4755, uid=3, gid=4, mtime=1_500_000_000.5),
            entry("opt/ping", b"x", pax_headers=attributes),
            hard_link("opt/again", "opt/tool"),
            symlink("opt/away", "/nowhere/../at/all"),
            entry("opt/pipe", type=tarfile.FIFOTYPE, mode=0o600),
            entry("deep/er/file", b"parents come by themselves"),
        )
    )
    opt = unpacker.tree / "opt"
    directory, tool = opt.stat(), (opt / "tool").stat()
    assert (stat.S_IMODE(directory.st_mode), directory.st_uid, directory.st_gid) == (0o750, 7, 8)
    assert directory.st_mtime == 1000
    assert (stat.S_IMODE(tool.st_mode), tool.st_uid, tool.st_gid) == (0o4755, 3, 4)
    assert tool.st_mtime == 1_500_000_000.5
    assert (opt / "again").stat().st_ino == tool.st_ino
    assert os.readlink(opt / "away") == "/nowhere/../at/all"
    assert stat.S_ISFIFO((opt / "pipe").lstat().st_mode)
    assert os.getxattr(opt / "ping", "security.capability") == CAPABILITY.encode("latin-1")
    assert os.getxattr(opt / "ping", "user.note") == "ü".encode()
    assert stat.S_IMODE((unpacker.tree / "deep").stat().st_mode) == 0o755
    assert unpacked.entries == 7


@pytest.mark.parametrize("media", [TAR, ZSTD])
def test_layers_may_be_packed_otherwise(unpacker: Unpacker, media: str) -> None:
    """Not at all, or by zstd."""
    unpacker.unpack(layer(entry("hello", b"you")), media=media)
    assert (unpacker.tree / "hello").read_bytes() == b"you"


def test_a_layer_takes_away_what_is_below(unpacker: Unpacker) -> None:
    """Whiteouts, opaque directories (wherever their mark stands in the archive), a file for a directory, and back."""
    below = layer(
        entry("d"),
        entry("d/old", b"1"),
        entry("d/sub"),
        entry("d/sub/old", b"1"),
        entry("f", b"1"),
        entry("gone/x", b"1"),
    )
    above = layer(
        entry("d/sub/new", b"2"),
        entry("d/.wh..wh..opq", b""),
        entry("f"),
        entry("f/inside", b"2"),
        entry(".wh.gone", b""),
        entry("d/.wh..wh.plnk", b""),
        entry("both", b"of this layer"),
        entry(".wh.both", b""),
        entry("device", b""),
        entry("device", type=tarfile.CHRTYPE),
        entry(".wh.device", b""),
    )
    unpacker.unpack(below, above)
    assert (unpacker.tree / "both").exists()  # a layer takes away what is below it, nothing of its own
    assert names(unpacker.tree, "d") == {"sub"}
    assert names(unpacker.tree, "d/sub") == {"new"}
    assert names(unpacker.tree, "f") == {"inside"}
    assert not (unpacker.tree / "gone").exists()
    unpacker.unpack(below, above, layer(entry("d", b"a file now"), symlink("f", "d")))
    assert (unpacker.tree / "f").read_bytes() == b"a file now"


def test_a_link_of_the_image_leads_where_it_leads_inside(unpacker: Unpacker) -> None:
    """As with Docker: `lib/x` of a later layer goes through an image's own link `lib -> usr/lib`."""
    unpacker.unpack(layer(entry("usr/lib"), symlink("lib", "/usr/lib")), layer(entry("lib/x", b"1")))
    assert (unpacker.tree / "usr/lib/x").read_bytes() == b"1"
    assert (unpacker.tree / "lib").is_symlink()


# --- ways out -------------------------------------------------------------------------------------------------------


def test_no_name_leads_out(unpacker: Unpacker) -> None:
    """`..` is refused; absolute names, links and links behind links are all inside."""
    outside = str(OUTSIDE)
    for name in ("../x", "a/../../x", "a/..", ".."):
        refused(Unpacker(unpacker.directory), layer(entry(name, b"x")))
        for left in ("tree1", "blobs1"):
            os.rename(unpacker.directory / left, f"{unpacker.directory}-{left}-{name.replace('/', '_')}")
    unpacker.unpack(
        layer(
            entry(f"/{outside}-not/absolute", b"1"),
            symlink("to-root", "/"),
            symlink("up", "../../../../../../../../.."),
            entry(f"up{outside}", b"2"),
            entry("to-root/behind", b"3"),
        )
    )
    assert (unpacker.tree / outside.lstrip("/")).read_bytes() == b"2"
    assert (unpacker.tree / "behind").read_bytes() == b"3"


def test_no_link_is_written_through(unpacker: Unpacker) -> None:
    """A file where a link stands replaces the link; its target, also one inside, stays as it was."""
    unpacker.unpack(
        layer(
            entry("precious", b"1"),
            symlink("a", "precious"),
            entry("a", b"2"),
            symlink("b", str(OUTSIDE)),
            entry("b", b"3"),
            symlink("d", "/"),
            entry("d"),
            entry("d/x", b"4"),
        )
    )
    assert (unpacker.tree / "precious").read_bytes() == b"1"
    assert not (unpacker.tree / "b").is_symlink()
    assert (unpacker.tree / "d/x").is_file()


@pytest.mark.parametrize("target", ["/etc/hostname", "../../../../etc/hostname", "up/etc/hostname", ".", "missing"])
def test_hard_links_reach_nothing_outside(unpacker: Unpacker, target: str) -> None:
    """What they name is looked for in the tree."""
    refused(unpacker, layer(symlink("up", "../../../.."), hard_link("stolen", target)))
    assert not (unpacker.tree / "stolen").exists()


def test_devices_and_attributes_of_overlays_are_left_out(unpacker: Unpacker) -> None:
    """No node that the host could open, no whiteout in disguise, no redirect; and it is said."""
    redirect = {"SCHILY.xattr.trusted.overlay.redirect": "/", "SCHILY.xattr.system.posix_acl_access": "x"}
    unpacked = unpacker.unpack(
        layer(
            entry("disk", type=tarfile.BLKTYPE, devmajor=254, devminor=0),
            entry("whiteout", type=tarfile.CHRTYPE, devmajor=0, devminor=0),
            entry("d", pax_headers={**redirect, "SCHILY.xattr.user.overlay.opaque": "y"}),
        )
    )
    assert not {"disk", "whiteout"} & names(unpacker.tree, ".")
    assert os.listxattr(unpacker.tree / "d") == []
    assert any(notice.startswith("2 device nodes") for notice in unpacked.notices)


def test_ids_that_no_sandbox_has_belong_to_nobody(unpacker: Unpacker) -> None:
    """They could be another sandbox's on this host."""
    unpacker.unpack(layer(entry("far", b"x", uid=200_000, gid=2**40), entry("negative", b"x", uid=-1)))
    assert (unpacker.tree / "far").stat().st_uid == (unpacker.tree / "far").stat().st_gid == 65_534
    assert (unpacker.tree / "negative").stat().st_uid == 65_534


# --- too much -------------------------------------------------------------------------------------------------------


def test_what_unpacks_to_too_much_is_stopped(unpacker: Unpacker) -> None:
    """A bomb of zeros, one that is all holes, one that is all headers."""
    assert refused(unpacker, layer(entry("zeros", b"\0" * (64 * MIB))), bytes_max=MIB).reason.name == "too_large"
    size = sum(path.stat().st_blocks * 512 for path in unpacker.tree.rglob("*"))
    assert size <= 4 * MIB
    holes = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": str(2**50),
        "GNU.sparse.name": "h",
    }
    content = b"1\n0\n0\n".ljust(512, b"\0")
    refused(unpacker, layer(entry("h", content, pax_headers=holes)))
    refused(unpacker, layer(entry("h", b"", pax_headers={"comment": "x" * (8 * MIB)})), bytes_max=MIB)


def test_too_many_entries_are_stopped(unpacker: Unpacker) -> None:
    """Each is an inode of the host."""
    error = refused(unpacker, layer(*(entry(f"e{number}", b"") for number in range(50))), entries_max=20)
    assert error.reason.name == "too_large"
    assert len(names(unpacker.tree, ".")) == 20


def test_names_are_bounded(unpacker: Unpacker) -> None:
    """Longer or deeper than the kernel and what removes trees can walk, also by way of links."""
    refused(unpacker, layer(entry("/".join(["d" * 200] * 30), b"")))
    refused(unpacker, layer(entry("/".join(["d"] * 400), b"")))
    steps = "/".join(["d"] * 200)
    chain = [entry(f"{steps}/x", b""), symlink("s", steps), entry(f"s/{steps}/x", b"")]
    refused(Unpacker(unpacker.directory, 2), layer(*chain))


def unknown_entry(size: int) -> bytes:
    """The head of one of a kind that tarfile passes over; it says how long it is."""
    head = bytearray(512)
    head[:1], head[124:136], head[156:157] = b"n", b"\x80" + size.to_bytes(11, "big"), b"Z"
    head[148:156] = b"%06o\0 " % (sum(head) + 8 * 32)
    return bytes(head)


# --- broken ---------------------------------------------------------------------------------------------------------


def test_every_digest_is_checked(unpacker: Unpacker) -> None:
    """Of the blob, and of what is in it."""
    good = layer(entry("x", b"1"))
    other = layer(entry("x", b"2"))
    for blob, stated in (
        (gzip.compress(good), digest_of(b"")),
        (gzip.compress(other), digest_of(gzip.compress(other))),
    ):
        with pytest.raises(SandptyError, match="digest mismatch") as caught:
            unpacker.unpack(good, blobs=[blob], digests=[stated])
        assert caught.value.reason.name == "bad_image"


@pytest.mark.parametrize("how", ["cut", "noise", "trailing", "header", "negative", "empty-name", "xz", "endless"])
def test_broken_archives_are_refused(unpacker: Unpacker, how: str) -> None:
    """Whatever is wrong with them, in one line, and soon."""
    good = layer(entry("x", b"1" * 10_000), entry("y", b"2"))
    header = bytearray(good)
    header[10_240 + 512 : 10_240 + 520] = b"\xff" * 8
    negative = bytearray(512)
    negative[:1], negative[124:136], negative[156:157] = b"n", b"\xff" * 10 + b"\xd8\xf0", b"0"
    negative[148:156] = b"%06o\0 " % (sum(negative[:148]) + 8 * 32 + sum(negative[156:]))
    content = {
        "cut": good[:5000],
        "noise": b"\x7f" * 4096,
        "trailing": good + b"more",
        "header": bytes(header),
        "negative": bytes(negative) + bytes(1024),
        "empty-name": layer(entry("", b"x")),
        "xz": lzma.compress(good),
        "endless": unknown_entry(2**60) + bytes(1024),
    }[how]
    refused(unpacker, content)


def test_a_packed_layer_that_ends_early_is_refused(unpacker: Unpacker) -> None:
    """Though its digest be right."""
    good = layer(entry("x", os.urandom(50_000)))
    blob = gzip.compress(good)[:-5000]
    with pytest.raises(SandptyError, match="broken") as caught:
        unpacker.unpack(good, blobs=[blob])
    assert caught.value.reason.name == "bad_image"


# --- what a sandbox needs -------------------------------------------------------------------------------------------


def test_an_empty_image_gets_accounts_and_places(unpacker: Unpacker) -> None:
    """root, `user` who may sudo, a home, and directories to mount on."""
    unpacked = unpacker.unpack(layer(), workdir="srv/app")
    passwd = (unpacker.tree / "etc/passwd").read_text().splitlines()
    assert passwd == ["root:x:0:0:root:/root:/bin/sh", "user:x:1000:1000:user:/home/user:/bin/sh"]
    assert (unpacker.tree / "home/user").stat().st_uid == 1000
    assert "NOPASSWD" in (unpacker.tree / "etc/sudoers.d/90-sandpty-user").read_text()
    assert {"proc", "sys", "dev", "run", "tmp"} <= names(unpacker.tree, ".")
    assert stat.S_IMODE((unpacker.tree / "tmp").stat().st_mode) == 0o1777
    assert unpacked.workdir == "/srv/app"
    assert (unpacker.tree / "srv/app").is_dir()


def test_accounts_of_the_image_stay_as_they_are(unpacker: Unpacker) -> None:
    """`user` gets the next free id, and is one of those who administer; the image's own user is known by name."""
    etc = layer(
        entry("etc/passwd", b"root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh"),
        entry("etc/group", b"sudo:x:27:node\nstaff:x:1001:\n"),
        entry("etc/shadow", b"root:*:::::::\n", mode=0o640, gid=42),
        entry("etc/skel/.profile", b"hello"),
        symlink("etc/skel/.secret", "/etc/shadow"),
    )
    unpacked = unpacker.unpack(etc, user="1000:1000")
    etc_dir = unpacker.tree / "etc"
    assert (etc_dir / "passwd").read_text().splitlines()[1:] == [
        "node:x:1000:1000::/home/node:/bin/sh",
        "user:x:1002:1002:user:/home/user:/bin/sh",
    ]
    assert "sudo:x:27:node,user" in (etc_dir / "group").read_text()
    assert "\nuser:*:" in (etc_dir / "shadow").read_text()
    assert ((etc_dir / "shadow").stat().st_gid, stat.S_IMODE((etc_dir / "shadow").stat().st_mode)) == (42, 0o640)
    assert (unpacker.tree / "home/user/.profile").read_text() == "hello"
    assert names(unpacker.tree, "home/user") == {".profile"}
    assert unpacked.user == "node"
    odd = unpacker.unpack(etc, user="12345", workdir="/d" * 2000)
    assert (odd.user, odd.workdir) == ("", "")


def test_hostile_places_of_accounts_are_made_plain(unpacker: Unpacker) -> None:
    """Links, pipes and devices where files are expected: nothing outside is touched, nothing waits."""
    unpacker.unpack(
        layer(
            symlink("proc", "/tmp"),
            symlink("etc", str(OUTSIDE)),
            entry("home", b"a file"),
        )
    )
    assert all((unpacker.tree / name).is_dir() for name in ("proc", "etc", "home/user"))
    unpacker.unpack(
        layer(
            entry("etc/passwd", type=tarfile.FIFOTYPE),
            symlink("etc/group", str(OUTSIDE)),
            symlink("etc/shadow", "/etc/passwd"),
            symlink("etc/sudoers.d", "/root"),
            entry("etc/skel/.fifo", type=tarfile.FIFOTYPE),
        )
    )
    assert (unpacker.tree / "etc/passwd").is_file()
    refused(unpacker, layer(symlink("home/user", "/root")))


def test_a_big_archive_is_unpacked_whole(unpacker: Unpacker) -> None:
    """Names longer than a header holds, bytes that are no text, thousands of files."""
    names_made = [f"many/{'n' * 180}{number}" for number in range(3000)]
    odd = b"odd-\xff\xfe".decode("utf-8", "surrogateescape")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name in (*names_made, odd):
            tar.addfile(tarfile.TarInfo(name))
    unpacker.unpack(buffer.getvalue())
    assert len(names(unpacker.tree, "many")) == 3000
    assert os.path.exists(os.fsencode(unpacker.tree) + b"/odd-\xff\xfe")
