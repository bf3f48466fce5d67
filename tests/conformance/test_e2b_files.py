"""Files through E2B's unmodified Python SDK, the synchronous one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from e2b import FilesystemEventType, FileType, Sandbox
from e2b.exceptions import (
    AuthenticationException,
    FileNotFoundException,
    InvalidArgumentException,
    NotEnoughSpaceException,
    NotFoundException,
    SandboxException,
)
from e2b.sandbox.filesystem.filesystem import WriteEntry


@pytest.fixture(scope="module")
def shared(sdk_env: dict[str, str]) -> Iterator[Sandbox]:
    """One sandbox for the tests of this file, each in a directory of its own."""
    created = Sandbox.create(timeout=600)
    yield created
    created.kill()


@pytest.fixture
def place(shared: Sandbox, request: pytest.FixtureRequest) -> str:
    """A directory below home for one test."""
    name = "t-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    shared.files.make_dir(name)
    return name


@pytest.mark.parametrize("data", ["héllo\n", "", b"\x00\xff\xfe" * 1000, io.StringIO("text"), io.BytesIO(b"\x80bytes")])
@pytest.mark.parametrize("octets", [False, True])
def test_what_is_written_is_read(shared: Sandbox, place: str, data: str | bytes, octets: bool) -> None:
    """Text and bytes, as a form and as a stream."""
    want = data.getvalue() if isinstance(data, io.IOBase) else data  # type: ignore[attr-defined]
    if isinstance(data, io.IOBase):
        data.seek(0)
    info = shared.files.write(f"{place}/file.bin", data, use_octet_stream=octets)
    assert (info.name, info.path, info.type) == ("file.bin", f"/home/user/{place}/file.bin", FileType.FILE)
    got = shared.files.read(f"{place}/file.bin", format="bytes")
    assert bytes(got) == (want.encode() if isinstance(want, str) else want)


@pytest.mark.parametrize("name", ["with space", "ünïcode-日本", "per%20cent", "plus+and&amp;", "semi;colon", "#hash?"])
def test_names_are_kept(shared: Sandbox, place: str, name: str) -> None:
    """Through a form, through the query, in listings and in signed URLs."""
    shared.files.write(f"{place}/{name}", "one")
    shared.files.write_files(
        [WriteEntry(path=f"{place}/{name}.2", data="two"), WriteEntry(path=f"{place}/b", data="3")]
    )
    assert [entry.name for entry in shared.files.list(place)] == sorted(["b", name, f"{name}.2"])
    assert shared.files.read(f"{place}/{name}.2") == "two"
    with urllib.request.urlopen(shared.download_url(f"{place}/{name}", "user"), timeout=20) as answer:
        assert answer.read() == b"one"


def test_many_files_in_one_upload(shared: Sandbox, place: str) -> None:
    """Each at its own path, absolute ones and new directories too."""
    paths = [f"/tmp/{place}/{i}/f" for i in range(5)] + [f"{place}/sub/{i}" for i in range(5)]
    infos = shared.files.write_files([WriteEntry(path=path, data=path) for path in paths])
    assert [info.path for info in infos] == [path if path[0] == "/" else f"/home/user/{path}" for path in paths]
    assert [shared.files.read(path) for path in paths] == paths
    assert shared.files.get_info(f"/tmp/{place}/3").owner == "user"
    assert shared.files.write_files([]) == []


def test_writing_again_replaces_in_place(shared: Sandbox, place: str) -> None:
    """The same inode, shorter content, and the owner is whoever writes."""
    shared.files.write(f"{place}/f", "first and long")
    inode = shared.commands.run(f"stat -c %i {place}/f").stdout
    shared.files.write(f"{place}/f", "short")
    assert shared.commands.run(f"stat -c %i {place}/f; cat {place}/f").stdout == f"{inode}short"
    shared.files.write(f"/home/user/{place}/f", "by root", user="root")
    assert shared.files.get_info(f"{place}/f").owner == "root"


@pytest.mark.parametrize("gzip", [False, True])
def test_big_files_pass_whole(shared: Sandbox, place: str, gzip: bool) -> None:
    """48 MiB each way: as a form, compressed, streamed."""
    data = os.urandom(1024 * 1024) * 48
    shared.files.write(f"{place}/big", data, gzip=gzip)
    want = hashlib.sha256(data).hexdigest()
    assert shared.commands.run(f"sha256sum {place}/big").stdout.split()[0] == want
    seen = hashlib.sha256()
    for chunk in shared.files.read(f"{place}/big", format="stream", gzip=gzip):
        seen.update(chunk)
    assert seen.hexdigest() == want


def test_a_stream_may_be_left_early(shared: Sandbox, place: str) -> None:
    """Nothing stays behind: more of them than there are places."""
    shared.files.write(f"{place}/big", b"x" * (8 << 20))
    for _ in range(40):
        with shared.files.read(f"{place}/big", format="stream") as stream:
            assert next(iter(stream))
    assert shared.files.read("/proc/self/comm").strip()


def test_files_of_proc_are_whole(shared: Sandbox) -> None:
    """Their size says 0."""
    assert shared.files.read("/proc/sys/kernel/random/boot_id").count("-") == 4
    assert "MemTotal" in shared.files.read("/proc/meminfo")
    assert shared.files.read("/proc/version", gzip=True) == shared.commands.run("cat /proc/version").stdout


def test_missing_files_and_directories_are_told_apart(shared: Sandbox, place: str) -> None:
    """Each with the exception that says what to do."""
    with pytest.raises(FileNotFoundException, match=f"path '/home/user/{place}/none' does not exist"):
        shared.files.read(f"{place}/none")
    with pytest.raises(InvalidArgumentException, match="is a directory"):
        shared.files.read(place)
    with pytest.raises(InvalidArgumentException, match="path is a directory"):
        shared.files.write(place, "x")
    with pytest.raises(FileNotFoundException):
        shared.files.get_info(f"{place}/none")
    with pytest.raises(NotFoundException):
        shared.files.rename(f"{place}/none", f"{place}/other")
    with pytest.raises(FileNotFoundException):
        shared.files.list(f"{place}/none")
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        shared.files.list("/etc/passwd")
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        shared.files.make_dir("/etc/passwd")
    with pytest.raises(InvalidArgumentException, match="another user"):
        shared.files.read("~root/x")
    with pytest.raises(AuthenticationException, match="nobody-here"):
        shared.files.read("x", user="nobody-here")
    with pytest.raises(AuthenticationException, match="nobody-here"):
        shared.files.list("x", user="nobody-here")
    shared.files.remove(f"{place}/none")
    assert shared.files.exists(f"{place}/none") is False


def test_a_parent_that_is_a_file_is_an_error(shared: Sandbox, place: str) -> None:
    """And the file stays."""
    shared.files.write(f"{place}/f", "kept")
    with pytest.raises(SandboxException):
        shared.files.write(f"{place}/f/below", "x")
    assert shared.files.read(f"{place}/f") == "kept"


def test_paths_start_from_the_users_home(shared: Sandbox, place: str) -> None:
    """`~`, relative ones, `..`, and another user's."""
    shared.files.write(f"~/{place}/f", "x")
    assert shared.files.get_info(f"{place}/../{place}/f").path == f"/home/user/{place}/f"
    info = shared.files.write("~/of-root", "y", user="root")
    assert info.path == "/root/of-root"
    entry = shared.files.get_info("/root/of-root")
    assert (entry.owner, entry.group) == ("root", "root")


def test_an_entry_says_all_there_is(shared: Sandbox, place: str) -> None:
    """Size, mode, owner, times; of directories and symlinks too."""
    before = datetime.now(UTC) - timedelta(minutes=1)
    shared.files.write(f"{place}/f", "1234")
    shared.files.make_dir(f"{place}/d")
    here = f"/home/user/{place}"
    shared.commands.run(f"ln -s f {here}/link; ln -s d {here}/dlink; ln -s nowhere {here}/broken; chmod 4750 {here}/f")
    entry = shared.files.get_info(f"{place}/f")
    assert (entry.name, entry.path, entry.type, entry.size) == ("f", f"{here}/f", FileType.FILE, 4)
    assert (entry.mode, entry.permissions, entry.owner, entry.group) == (0o750, "urwxr-x---", "user", "user")
    assert before < entry.modified_time < datetime.now(UTC) + timedelta(minutes=1)
    assert entry.symlink_target is None
    directory = shared.files.get_info(f"{place}/d")
    assert (directory.type, directory.mode, directory.permissions) == (FileType.DIR, 0o755, "drwxr-xr-x")
    found = {entry.name: entry for entry in shared.files.list(place)}
    assert sorted(found) == ["broken", "d", "dlink", "f", "link"]
    assert (found["link"].type, found["link"].symlink_target) == (FileType.FILE, f"{here}/f")
    assert (found["dlink"].type, found["dlink"].symlink_target) == (FileType.DIR, f"{here}/d")
    assert (found["broken"].type, found["broken"].mode) == (FileType.SYMLINK, 0)
    assert found["link"].permissions == "Lrwxrwxrwx"
    assert shared.files.get_info("/tmp").permissions == "dtrwxrwxrwx"
    assert shared.files.get_info("/").name == "/"


def test_listings_are_in_order_and_as_deep_as_asked(shared: Sandbox, place: str) -> None:
    """A directory before what is in it; a symlink to a directory may be listed, but is not entered."""
    shared.commands.run(f"cd {place}; mkdir -p a/x/y b; touch a/f a/x/y/z b.txt; ln -s a link")

    def names(path: str, depth: int) -> list[str]:
        return [entry.path.removeprefix(f"/home/user/{place}/") for entry in shared.files.list(path, depth)]

    assert names(place, 1) == ["a", "b", "b.txt", "link"]
    assert names(place, 2) == ["a", "a/f", "a/x", "b", "b.txt", "link"]
    assert names(place, 9) == ["a", "a/f", "a/x", "a/x/y", "a/x/y/z", "b", "b.txt", "link"]
    assert names(f"{place}/link", 1) == ["link/f", "link/x"]
    assert names(f"{place}/b", 1) == []
    with pytest.raises(InvalidArgumentException, match="depth should be at least 1"):
        shared.files.list(place, depth=0)


def test_ten_thousand_files_are_listed(shared: Sandbox, place: str) -> None:
    """All of them, in order."""
    shared.commands.run(f"cd {place}; seq -f %05g 10000 | xargs touch")
    assert [entry.name for entry in shared.files.list(place)] == [f"{i:05}" for i in range(1, 10001)]


def test_directories_are_made_once(shared: Sandbox, place: str) -> None:
    """With parents, owned by the user, and False when there is one."""
    assert shared.files.make_dir(f"{place}/a/b/c") is True
    assert shared.files.make_dir(f"{place}/a/b/c") is False
    assert {shared.files.get_info(f"{place}/{path}").owner for path in ("a", "a/b", "a/b/c")} == {"user"}
    assert shared.files.make_dir(f"/srv/{place}/x") is True
    assert shared.files.get_info(f"/srv/{place}").owner == "user"
    assert shared.files.get_info("/srv").owner == "root"


def test_moving_takes_metadata_along_and_replaces(shared: Sandbox, place: str) -> None:
    """Into new directories too."""
    shared.files.write(f"{place}/old", "content", metadata={"stage": "one"})
    shared.files.write(f"{place}/there", "replaced")
    moved = shared.files.rename(f"{place}/old", f"{place}/there")
    assert (moved.path, moved.metadata) == (f"/home/user/{place}/there", {"stage": "one"})
    assert not shared.files.exists(f"{place}/old")
    shared.files.rename(f"{place}/there", f"{place}/new/deep/name")
    assert shared.files.read(f"{place}/new/deep/name") == "content"
    shared.files.remove(f"{place}/new")
    assert not shared.files.exists(f"{place}/new")


@pytest.mark.parametrize("octets", [False, True])
def test_metadata_is_kept_replaced_and_cleared(shared: Sandbox, place: str, octets: bool) -> None:
    """Every upload sets the whole set; what the sandbox sets itself is seen too."""
    path = f"{place}/f"
    info = shared.files.write(path, "x", metadata={"Author": "m", "purpose": "a b"}, use_octet_stream=octets)
    assert info.metadata == {"author": "m", "purpose": "a b"}
    assert shared.files.get_info(path).metadata == {"author": "m", "purpose": "a b"}
    assert shared.files.list(place)[0].metadata == {"author": "m", "purpose": "a b"}
    shared.files.write(path, "x", metadata={"other": "1"}, use_octet_stream=octets)
    assert shared.files.get_info(path).metadata == {"other": "1"}
    assert shared.files.write(path, "x", use_octet_stream=octets).metadata is None
    assert shared.files.get_info(path).metadata is None
    shared.commands.run(f"setfattr -n user.e2b.author -v inside '{path}' && setfattr -n user.other -v '' '{path}'")
    assert shared.files.get_info(path).metadata == {"author": "inside"}


def test_a_new_file_makes_exactly_three_events(shared: Sandbox, place: str) -> None:
    """Known as soon as the upload was answered; an overwritten one makes no CREATE."""
    watch = shared.files.watch_dir(place)
    for content in ("x", "y" * 5_000_000):
        shared.files.write(f"{place}/{len(content)}", content, use_octet_stream=len(content) == 1)
        events = watch.get_new_events()
        assert {event.name for event in events} == {str(len(content))}
        kinds = [event.type for event in events]
        assert kinds[:3] == [FilesystemEventType.CREATE, FilesystemEventType.CHMOD, FilesystemEventType.WRITE]
        assert set(kinds[3:]) <= {FilesystemEventType.WRITE}  # a big one is seen growing
        assert len(content) > 1 or len(kinds) == 3
    shared.files.write(f"{place}/1", "again")
    assert FilesystemEventType.CREATE not in {event.type for event in watch.get_new_events()}
    assert watch.get_new_events() == []
    watch.stop()
    with pytest.raises(SandboxException):
        watch.get_new_events()


def test_watches_see_what_commands_do(shared: Sandbox, place: str) -> None:
    """Renames, removals and modes, below new directories at once, with entries when asked."""
    flat = shared.files.watch_dir(place)
    deep = shared.files.watch_dir(place, recursive=True, include_entry=True)
    shared.commands.run(
        f"cd {place}; mkdir -p d/e && echo text > d/e/f; chmod 600 d/e/f; mv d/e/f d/e/g; rm d/e/g; touch h"
    )
    events = deep.get_new_events()
    seen = [(event.type.value, event.name) for event in events]
    for wanted in [("create", "d"), ("create", "d/e"), ("create", "d/e/f"), ("rename", "d/e/f"), ("create", "d/e/g")]:
        assert wanted in seen
    assert ("remove", "d/e/g") in seen
    entry = next(event.entry for event in events if event.name == "d" and event.entry)
    assert (entry.path, entry.type) == (f"/home/user/{place}/d", FileType.DIR)
    assert {event.name for event in flat.get_new_events()} == {"d", "h"}
    shared.files.remove(place)
    assert ("remove", "h") in [(event.type.value, event.name) for event in flat.get_new_events()]
    assert flat.get_new_events() == []


def test_ten_thousand_new_files_are_all_reported(shared: Sandbox, place: str) -> None:
    """The kernel keeps them until they are asked for."""
    watch = shared.files.watch_dir(place, recursive=True)
    for part in range(4):
        shared.commands.run(f"mkdir {place}/{part}; cd {place}/{part}; seq -f {part}%04g 2500 | xargs touch")
        created = {event.name for event in watch.get_new_events() if event.type == FilesystemEventType.CREATE}
        assert len(created) == 2501
    watch.stop()


def test_only_directories_are_watched(shared: Sandbox, place: str) -> None:
    """A missing one and a file are errors."""
    with pytest.raises(FileNotFoundException):
        shared.files.watch_dir(f"{place}/none")
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        shared.files.watch_dir("/etc/passwd")


def test_watches_are_bounded_and_come_back(shared: Sandbox, place: str) -> None:
    """A sandbox has only so many; a stopped one makes room. One sandbox's are nobody else's."""
    watches = []

    def make_many() -> None:
        for _ in range(100):
            watches.append(shared.files.watch_dir(place))

    with pytest.raises(SandboxException, match="watches"):
        make_many()
    assert len(watches) >= 16
    for watch in watches:
        watch.stop()
    shared.files.watch_dir(place).stop()


def test_signed_urls_need_nothing_else(shared: Sandbox, place: str) -> None:
    """Reading and writing one path, with and without a user, until they expire."""
    path = f"{place}/signed é.txt"
    upload = urllib.request.Request(
        shared.upload_url(path, "user", 60),
        data=b"through a url",
        headers={"Content-Type": "application/octet-stream"},
        method="POST",
    )
    with urllib.request.urlopen(upload, timeout=20) as answer:
        assert json.load(answer) == [
            {"path": f"/home/user/{path}", "name": "signed é.txt", "type": "file"},
        ]
    for url in (
        shared.download_url(path, "user"),
        shared.download_url(path),
        shared.download_url(path, use_signature_expiration=60),
        shared.download_url(f"/home/user/{path}", "root"),
    ):
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.read() == b"through a url"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda url: url.replace("path=", "path=x"), "invalid signature"),
        (lambda url: url.replace("signature=v1_", "signature=v1_A"), "invalid signature"),
        (lambda url: url + "&username=root", "invalid signature"),
    ],
)
def test_a_changed_url_is_worth_nothing(shared: Sandbox, place: str, change: object, says: str) -> None:
    """Neither for another path nor for another user."""
    shared.files.write(f"{place}/f", "x")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(change(shared.download_url(f"{place}/f")), timeout=20)  # type: ignore[operator]
    assert refused.value.code == 401
    assert json.loads(refused.value.read()) == {"code": 401, "message": says}


def test_an_expired_url_says_so(shared: Sandbox, place: str) -> None:
    """In the very words E2B has."""
    shared.files.write(f"{place}/f", "x")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(shared.download_url(f"{place}/f", "user", use_signature_expiration=-120), timeout=20)
    assert refused.value.code == 401
    assert json.loads(refused.value.read()) == {"code": 401, "message": "signature is already expired"}


def test_a_full_disk_is_said_to_be_full(shared: Sandbox, place: str) -> None:
    """507, and the sandbox's files still work."""
    for octets in (False, True):
        with pytest.raises(NotEnoughSpaceException):  # /dev is a megabyte of memory
            shared.files.write("/dev/too-big", b"x" * (20 << 20), use_octet_stream=octets)
        shared.files.remove("/dev/too-big")
    shared.files.write(f"{place}/f", "fits")
    assert shared.files.read(f"{place}/f") == "fits"
