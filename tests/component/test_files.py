"""Files of a guest through a real agent: what is written is read, what is asked is answered, by whom it was asked."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from sandpty.terminal.file_socket import FileSocket
from sandpty.terminal.files import Account, EntryType, Files, Writing
from sandpty.wire.errors import SandptyError
from tests.component.files_root import GROUP, OTHER, USER, FilesRoot, files_root
from tests.waiting import until_sync

STRANGE = "/tmp/\udcff\udcfe not utf-8 \n \u00e9"


@pytest.fixture(scope="module")
def guest() -> Iterator[FilesRoot]:
    """One guest for the tests of this file; each uses paths of its own."""
    with files_root() as running:
        yield running


@pytest_asyncio.fixture
async def files(guest: FilesRoot) -> AsyncIterator[Files]:
    """A connection that acts as `user`."""
    async with await guest.open("user") as connection:
        yield connection
        assert connection.reusable, "a finished request leaves the connection good"


@pytest_asyncio.fixture
async def root(guest: FilesRoot) -> AsyncIterator[Files]:
    """A connection that acts as root."""
    async with await guest.open("root") as connection:
        yield connection
        assert connection.reusable


async def content(files: Files, path: str, offset: int = 0, length: int | None = None) -> bytes:
    """All that is there."""
    async with files.open(path, offset=offset, length=length) as reading:
        return await reading.all(1 << 30)


async def refused(request: object) -> str:
    """The reason a request is refused with."""
    with pytest.raises(SandptyError) as caught:
        await request  # type: ignore[misc]
    return caught.value.reason.name


async def listed(files: Files, path: str, depth: int = 1) -> list[str]:
    """Paths of a listing."""
    return [entry.path async for portion in files.list(path, depth=depth) for entry in portion]


# --- content ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, 32_768, 262_143, 262_144, 262_145, 3_000_001])
async def test_what_was_written_is_read_back(files: Files, size: int) -> None:
    """Every byte, at sizes around those of frames."""
    path, data = f"/tmp/size-{size}", os.urandom(size)
    entry = await files.write(path, data)
    assert (entry.size, entry.type, entry.mode, entry.uid) == (size, EntryType.FILE, 0o644, USER)
    assert await content(files, path) == data


async def test_a_range_is_read_without_the_rest(files: Files) -> None:
    """Offset and length; beyond the end there is nothing."""
    await files.write("/tmp/range", b"0123456789")
    assert await content(files, "/tmp/range", 3, 4) == b"3456"
    assert await content(files, "/tmp/range", 8, 100) == b"89"
    assert await content(files, "/tmp/range", 10) == b""
    assert await content(files, "/tmp/range", 1 << 62, 5) == b""
    async with files.open("/tmp/range", length=0) as reading:
        assert reading.entry.size == 10
        await reading.read(5, 2)
        assert await reading.all(10) == b"56"
        await reading.read(0)
        assert await reading.all(10) == b"0123456789"


async def test_files_of_proc_are_read_to_their_end(files: Files) -> None:
    """They say their size is 0."""
    text = (await content(files, "/proc/self/status")).decode()
    assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}" in text
    assert f"Groups:\t{GROUP} {USER}" in text
    assert "Umask:\t0022" in text


async def test_a_file_is_written_in_place(files: Files, guest: FilesRoot) -> None:
    """Same inode, truncated; what a reader holds open is the file."""
    await files.write("/tmp/place", b"a longer text")
    before = guest.path("/tmp/place").stat().st_ino
    await files.write("/tmp/place", b"short")
    assert guest.path("/tmp/place").stat().st_ino == before
    assert await content(files, "/tmp/place") == b"short"


async def test_appending_and_writing_at_an_offset_keep_the_rest(files: Files) -> None:
    """And an exclusive create refuses what is there."""
    await files.write("/tmp/append", b"one")
    await files.write("/tmp/append", b" two", append=True)
    await files.write("/tmp/append", b"TWO", truncate=False, offset=4)
    assert await content(files, "/tmp/append") == b"one TWO"
    assert await refused(files.write("/tmp/append", b"x", exclusive=True)) == "file_exists"
    assert await content(files, "/tmp/append") == b"one TWO"


async def test_missing_parents_are_made_and_belong_to_the_owner(root: Files, guest: FilesRoot) -> None:
    """New levels 0755 and owned as the file; those that are there stay as they are."""
    guest.path("/tmp/there").mkdir(mode=0o700)
    entry = await root.write("/tmp/there/a/b/file", b"x", parents=True, uid=USER, gid=USER)
    assert (entry.uid, entry.owner, entry.group) == (USER, "user", "user")
    made = [guest.path(path).stat() for path in ("/tmp/there/a", "/tmp/there/a/b")]
    assert [(about.st_uid, stat.S_IMODE(about.st_mode)) for about in made] == [(USER, 0o755)] * 2
    assert guest.path("/tmp/there").stat().st_uid == 0
    assert stat.S_IMODE(guest.path("/tmp/there").stat().st_mode) == 0o700


async def test_modes_obey_the_umask_unless_they_are_exact(files: Files) -> None:
    """As `touch` would; `set_mode` as `chmod` would."""
    assert (await files.write("/tmp/mode-a", b"", mode=0o777)).mode == 0o755
    assert (await files.write("/tmp/mode-b", b"", mode=0o666, set_mode=True)).mode == 0o666
    assert (await files.write("/tmp/mode-b", b"", mode=0o600)).mode == 0o666  # it was there
    assert (await files.write("/tmp/mode-b", b"", mode=0o600, set_mode=True)).mode == 0o600


async def test_metadata_is_replaced_as_a_set(files: Files) -> None:
    """Each upload's is the whole; None leaves it."""
    assert (await files.write("/tmp/meta", b"", metadata={"a": "1", "b": "2"})).metadata == {"a": "1", "b": "2"}
    assert (await files.write("/tmp/meta", b"x")).metadata == {"a": "1", "b": "2"}
    assert (await files.write("/tmp/meta", b"x", metadata={"c": "3"})).metadata == {"c": "3"}
    assert (await files.set_metadata("/tmp/meta", {"d": "4"})).metadata == {"d": "4"}
    assert (await files.write("/tmp/meta", b"", metadata={})).metadata == {}
    assert (await files.stat("/tmp/meta")).metadata == {}


async def test_a_full_disk_is_told_and_the_connection_stays_good(files: Files) -> None:
    """Early: not only once everything was sent."""

    async def too_much(writing: Writing) -> None:
        for _ in range(4096):
            await writing.write(bytes(1 << 16))

    async with files.create("/small/big") as writing:
        assert await refused(too_much(writing)) == "no_space"
        assert writing.count < 32 << 20
    await files.remove("/small/big")
    assert (await files.write("/small/fits", b"x" * 1000)).size == 1000


async def test_names_that_are_no_text_come_back_as_they_were(files: Files) -> None:
    """Bytes of a name are the guest's."""
    await files.write(STRANGE, b"odd")
    assert STRANGE in await listed(files, "/tmp")
    assert await content(files, STRANGE) == b"odd"
    assert (await files.stat(STRANGE)).path == STRANGE


# --- what is no file -------------------------------------------------------------------------------------------------


async def test_fifos_devices_and_directories_hang_nobody(files: Files, guest: FilesRoot) -> None:
    """Refused at once, also for writing; character devices are read and written."""
    os.mkfifo(guest.path("/tmp/fifo"), 0o666)
    guest.path("/tmp/fifo").chmod(0o666)
    for path, reason in (("/tmp/fifo", "not_a_file"), ("/tmp", "is_a_directory")):
        assert await refused(content(files, path)) == reason
        assert await refused(files.write(path, b"x" * 1_000_000)) == reason
    assert (await files.stat("/tmp/fifo")).type is EntryType.FIFO
    assert await content(files, "/dev/null") == b""
    await files.write("/dev/null", b"x" * 1_000_000)
    assert await content(files, "/dev/zero", 0, 100_000) == bytes(100_000)


async def test_errors_say_what_is_wrong(files: Files) -> None:
    """Each with a reason a client can act on."""
    await files.write("/tmp/file", b"x")
    await files.make_symlink("/tmp/loop", "loop")
    assert await refused(files.stat("/tmp/missing")) == "no_such_file"
    assert await refused(content(files, "/tmp/missing")) == "no_such_file"
    assert await refused(files.write("/tmp/missing/x", b"")) == "no_such_file"
    assert await refused(files.stat("/tmp/file/x")) == "not_a_directory"
    assert await refused(files.write("/tmp/file/x/y", b"", parents=True)) == "not_a_directory"
    assert await refused(listed(files, "/tmp/file")) == "not_a_directory"
    assert await refused(files.make_directory("/tmp/file")) == "file_exists"
    assert await refused(content(files, "/tmp/loop")) == "symlink_loop"
    assert await refused(files.stat("/tmp/" + "x" * 300)) == "bad_path"
    for path in ("", "relative", "/nul\0", "/" + "x" * 5000):
        assert await refused(files.stat(path)) == "bad_path"
    assert await refused(files.remove("/")) == "bad_path"
    assert await refused(files.remove("/tmp/..", recursive=True)) == "bad_path"


# --- who asks --------------------------------------------------------------------------------------------------------


async def test_a_connection_is_the_user_it_names_and_nobody_more(files: Files, guest: FilesRoot) -> None:
    """Really dropped ids: what the user may not, the connection may not."""
    assert (files.account.uid, files.account.gid, files.account.home) == (USER, USER, "/home/user")
    guest.path("/root/secret").write_text("root's")
    guest.path("/root").chmod(0o700)
    guest.path("/home/other/secret").write_text("other's")
    assert await refused(content(files, "/root/secret")) == "permission_denied"
    assert await refused(content(files, "/home/other/secret")) == "permission_denied"
    assert await refused(files.write("/etc/passwd", b"x")) == "permission_denied"
    assert await refused(files.change("/tmp", uid=USER)) == "permission_denied"
    await files.write("/home/user/mine", b"x")
    assert await refused(files.change("/home/user/mine", uid=OTHER)) == "permission_denied"
    assert (await files.change("/home/user/mine", gid=GROUP)).group == "staff"
    async with await guest.open(str(OTHER)) as other:
        assert await content(other, "/home/other/secret") == b"other's"


async def test_users_are_looked_up_in_the_guest(files: Files, guest: FilesRoot) -> None:
    """By name and number; unknown owners are numbers, and a change of the accounts is seen."""
    assert (await files.look_up("other")).home == "/home/other"
    assert (await files.look_up("0")).name == "root"
    assert await refused(files.look_up("nobody-at-all")) == "no_such_user"
    assert await refused(guest.open("nobody-at-all")) == "no_such_user"
    guest.path("/tmp/strange-owner").write_text("")
    os.chown(guest.path("/tmp/strange-owner"), 4321, 8765)
    entry = await files.stat("/tmp/strange-owner")
    assert (entry.owner, entry.group) == ("4321", "8765")
    with guest.path("/etc/passwd").open("a") as accounts:
        accounts.write("late:x:4321:4321::/:/bin/sh\n")
    assert (await files.stat("/tmp/strange-owner")).owner == "late"


async def test_a_small_file_takes_one_exchange(root: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once its user is known: who that is, the request, its content and its end go at once, and one answer comes."""
    sent = 0
    send = FileSocket.send

    async def counted(self: FileSocket, *parts: bytes) -> None:
        nonlocal sent
        sent += 1
        await send(self, *parts)

    async def write(account: Account) -> str:
        await root.write(f"{account.home}/once", b"x" * 1000, uid=account.uid, gid=account.gid)
        return f"{account.home}/once"

    async def read(account: Account) -> bytes:
        return await content(root, f"{account.home}/once")

    monkeypatch.setattr(FileSocket, "send", counted)
    assert (await root.stat(await root.with_account("user", write))).owner == "user"
    sent = 0
    await root.with_account("user", write)
    assert await root.with_account("user", read) == b"x" * 1000
    assert sent == 2


async def test_a_user_who_has_become_another_is_seen_before_anything_is_done(root: Files, guest: FilesRoot) -> None:
    """What counts on an account is not done for another one, but again, for the one that it is now."""

    async def write(account: Account) -> str:
        await root.write(f"{account.home}/mine", b"x", uid=account.uid, gid=account.gid)
        return f"{account.home}/mine"

    async def look(account: Account) -> str:
        return (await root.stat(account.home)).path

    accounts = guest.path("/etc/passwd")
    before = accounts.read_text()
    for home in ("first", "second"):
        guest.path(f"/tmp/{home}").mkdir()
    accounts.write_text(f"{before}moving:x:{USER}:{USER}::/tmp/first:/bin/sh\n")
    assert await root.with_account("moving", write) == "/tmp/first/mine"
    guest.path("/tmp/first/mine").unlink()
    accounts.write_text(f"{before}moving:x:{OTHER}:{OTHER}::/tmp/second:/bin/sh\n")
    assert await root.with_account("moving", write) == "/tmp/second/mine"
    assert guest.path("/tmp/second/mine").stat().st_uid == OTHER
    assert not guest.path("/tmp/first/mine").exists()
    accounts.write_text(f"{before}moving:x:{OTHER}:{OTHER}::/tmp/first:/bin/sh\n")
    assert await root.with_account("moving", look) == "/tmp/first"
    accounts.write_text(before)
    assert await refused(root.with_account("moving", look)) == "no_such_user"


async def test_a_closed_connection_leaves_no_child(guest: FilesRoot) -> None:
    """Nor does one that is closed in the middle of a transfer."""
    for _ in range(5):
        connection = await guest.open()
        async with connection.open("/dev/zero") as reading:
            assert await reading.piece()
            connection.close()
    until_sync(lambda: guest.children() == [], timeout_s=30)
