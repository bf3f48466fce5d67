"""scp and sftp: files of a sandbox by OpenSSH's own clients, and by asyncssh's where those cannot be made to."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncssh
import httpx
import pytest

from sandpty import config
from tests.e2e.ssh_client import TIMEOUT_S, Client, client_of
from tests.server_fixture import RunningServer
from tests.waiting import until, until_still

BIG_BYTES = 20_000_000


@pytest.fixture(scope="module")
def ssh(ssh_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """OpenSSH for the key of this machine."""
    return client_of(ssh_server, tmp_path_factory.mktemp("ssh"))


@pytest.fixture(scope="module")
def box(ssh: Client) -> Iterator[str]:
    """A sandbox, as ssh names it."""
    made = ssh.cli("create").stdout.strip()
    yield f"{made}@sandpty"
    ssh.cli("kill", made)


@asynccontextmanager
async def sftp(ssh: Client, box: str, words: str = "") -> AsyncIterator[asyncssh.SFTPClient]:
    """Another client, which asks for what one tells it."""
    async with (
        asyncssh.connect(
            "127.0.0.1",
            ssh.port,
            username=box.partition("@")[0] + words,
            password=ssh.server.api_key,
            known_hosts=None,
            config=None,
            client_keys=None,
        ) as connection,
        connection.start_sftp_client() as client,
    ):
        yield client


@pytest.mark.parametrize("option", ["-s", "-O"], ids=["sftp", "scp"])
def test_a_big_file_is_the_same_on_both_sides(ssh: Client, box: str, tmp_path: Path, option: str) -> None:
    """20 MB there and back, by both protocols that scp knows."""
    here, back = tmp_path / "here", tmp_path / "back"
    data = os.urandom(1_000_000) * (BIG_BYTES // 1_000_000)
    here.write_bytes(data)
    ssh.out(option, str(here), f"{box}:big-file", program="scp")
    assert hashlib.sha256(data).hexdigest().encode() in ssh.out(box, "sha256sum big-file")
    ssh.out(option, f"{box}:big-file", str(back), program="scp")
    assert back.read_bytes() == data


@pytest.mark.parametrize("option", ["-s", "-O"], ids=["sftp", "scp"])
def test_trees_go_there_and_back(ssh: Client, box: str, tmp_path: Path, option: str) -> None:
    """With their modes and times; a file nobody may write included."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a").write_text("one")
    (tree / "a").chmod(0o444)
    (tree / "sub" / "run.sh").write_text("two")
    (tree / "sub" / "run.sh").chmod(0o750)
    os.utime(tree / "a", (1_000_000_000, 1_000_000_000))
    name = f"tree{option}"
    ssh.out("-rp", option, str(tree), f"{box}:{name}", program="scp")
    assert ssh.out(
        box, f"cd ./{name} && stat -c '%n %a %Y %U' a && stat -c '%n %a' sub/run.sh && cat a sub/run.sh"
    ) == (b"a 444 1000000000 user\nsub/run.sh 750\nonetwo")
    ssh.out("-rp", option, f"{box}:./{name}", str(tmp_path / "back"), program="scp")
    assert (tmp_path / "back" / "sub" / "run.sh").read_text() == "two"
    assert (tmp_path / "back" / "a").stat().st_mtime == 1_000_000_000


def test_sftp_does_what_its_manual_says(ssh: Client, box: str, tmp_path: Path) -> None:
    """Every command that changes or shows something; the batch ends at the first that fails."""
    (tmp_path / "x").write_text("content")
    (tmp_path / "longer").write_text("content, and more")
    (tmp_path / "resumed").write_text("cont")
    batch = tmp_path / "batch"
    batch.write_text(
        f"""pwd
mkdir manual
put {tmp_path}/x manual/x
chmod 600 manual/x
rename manual/x manual/y
symlink y manual/link
ln manual/y manual/hard
ls -l manual
df manual
get manual/link {tmp_path}/got
put -f {tmp_path}/x manual/y
reput {tmp_path}/longer manual/y
reget manual/y {tmp_path}/resumed
rm manual/link
rm manual/hard
rm manual/y
rmdir manual
-ls manual
"""
    )
    done = ssh.run("-b", str(batch), box, program="sftp")
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode()
    assert "Remote working directory: /home/user" in said
    assert "-rw-------    2 user     user            7" in said
    assert "lrwxrwxrwx    1 user     user" in said
    assert "%Capacity" in said
    assert (tmp_path / "got").read_text() == "content"
    assert (tmp_path / "resumed").read_text() == "content, and more"
    assert b"manual" in done.stderr
    assert b"not found" in done.stderr


async def test_files_are_read_and_written_anywhere(ssh: Client, box: str) -> None:
    """At any offset, in any order, several at once; what was written is there when it is asked for."""
    data = bytearray(os.urandom(3_000_000))
    async with sftp(ssh, box) as client:
        async with client.open("any", "w+b") as file:
            await file.write(bytes(data))
            for offset in (2_999_990, 5, 1_000_000, 1_000_004, 0):
                data[offset : offset + 4] = b"here"
                await file.write(b"here", offset)
            assert (await file.stat()).size == len(data)
            for offset, size in (
                (2_500_000, 10),
                (10, 300_000),
                (0, 100),
                (2_999_999, 50),
                (3_000_000, 5),
                (7, 1_000_000),
            ):
                assert await file.read(size, offset) == bytes(data[offset : offset + size])
            await file.truncate(1_234_567)
        assert await client.getsize("any") == 1_234_567
        async with client.open("any", "ab") as file:
            await file.write(b"end")
        files = [await client.open(f"many-{number}", "w+b") for number in range(12)]
        for turn in range(3):
            for number, file in enumerate(files):
                await file.write(f"{number}-{turn} ".encode())
        for number, file in enumerate(files):
            assert await file.read(-1, 0) == f"{number}-0 {number}-1 {number}-2 ".encode()
            await file.close()
    said = ssh.out(box, "tail -c 7 any | tail -c 3; ls many-* | wc -l; rm any many-*")
    assert said == b"end12\n"


async def test_a_name_is_bytes(ssh: Client, box: str) -> None:
    """Whatever bytes: what is no UTF-8 comes back as it was; a listing is complete."""
    name = b"\xff \xfe'\"\n"
    async with sftp(ssh, box) as client:
        await client.mkdir(b"names")
        async with client.open(b"names/" + name, "wb") as file:
            await file.write(b"x")
        names = set(await client.listdir(b"names"))
        assert names == {b".", b"..", name}
        await client.symlink(b"\xf0\n", b"names/link")
        assert await client.readlink(b"names/link") == b"\xf0\n"
        await client.rmtree(b"names")
    ssh.out(box, "mkdir many && cd many && seq 3000 | xargs touch")
    async with sftp(ssh, box) as client:
        assert len(await client.listdir("many")) == 3002


async def test_errors_are_said(ssh: Client, box: str) -> None:
    """As SFTP says them; a refused file is refused when it is opened."""
    async with sftp(ssh, box) as client:
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await client.open("nothing/here", "rb")
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await client.open("/etc/passwd", "wb")
        with pytest.raises(asyncssh.SFTPFailure):
            await client.mkdir("/tmp")
        with pytest.raises(asyncssh.SFTPFailure):
            await client.open("/dev", "rb")
        await client.mkdir("full")
        async with client.open("full/x", "wb"):
            pass
        with pytest.raises(asyncssh.SFTPFailure):
            await client.rmdir("full")
        with pytest.raises(asyncssh.SFTPFailure):
            await client.rename("full/x", ".profile")
        await client.posix_rename("full/x", "full/y")
        await client.rmtree("full")
    async with sftp(ssh, box, "+user=root") as root:
        assert (await root.stat("/root")).uid == 0
        assert await root.realpath(".") == "/root"
    async with sftp(ssh, box, "+ro") as viewer:
        assert await viewer.exists("/etc/passwd")
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await viewer.mkdir("viewers")
    with pytest.raises((asyncssh.Error, OSError)):
        async with asyncio.timeout(30), sftp(ssh, "inobody@x"):
            pass


def test_a_full_disk_fails_a_copy_and_is_said(ssh: Client, tmp_path: Path) -> None:
    """However late the guest's kernel says so: nobody is told that a file is there which is not."""
    made = httpx.post(
        f"{ssh.server.url}/v1/sandboxes",
        json={"limits": {"disk_mb": 64}},
        headers=ssh.server.headers,
        timeout=TIMEOUT_S,
    ).json()["id"]
    (tmp_path / "big").write_bytes(os.urandom(9_000_000))
    there = f"{made}@sandpty"
    ssh.out(there, "fallocate -l $(($(stat -f -c '%a * %S' .) - 3000000)) fill")
    for option in ("-s", "-O"):
        done = ssh.run(option, str(tmp_path / "big"), f"{there}:big", program="scp")
        assert done.returncode == 1
        assert b"No space left" in done.stderr, option
        ssh.out(there, "rm big")
    (tmp_path / "big").write_bytes(b"small")
    ssh.out(str(tmp_path / "big"), f"{there}:big", program="scp")
    ssh.cli("kill", made)


def test_only_files_are_copied(ssh: Client, box: str, tmp_path: Path) -> None:
    """Nothing waits for a FIFO or reads a device for ever; a loop of links ends; a file of /proc has an end."""
    ssh.out(box, "mkdir odd; cd odd; mkfifo fifo; ln -s . loop; echo x >file; ln -s file link; ln -s no dangling")
    for option, followed in (("-s", b"x\n"), ("-O", b"x\n")):
        for path in ("odd/fifo", "/dev/zero", "odd/dangling"):
            done = ssh.run(option, f"{box}:{path}", str(tmp_path / "not"), program="scp")
            assert done.returncode == 1, path
            assert done.stderr, path
        assert ssh.run(option, "/dev/null", f"{box}:odd/fifo", program="scp").returncode == 1
        back = tmp_path / f"odd{option}"
        assert ssh.run("-r", option, f"{box}:odd", str(back), program="scp").returncode == 1
        assert sorted(path.name for path in back.iterdir()) == ["file", "link"]
        assert (back / "link").read_bytes() == followed
    ssh.out("-s", f"{box}:/proc/version", str(tmp_path / "version"), program="scp")
    assert (tmp_path / "version").read_text().startswith("Linux")
    ssh.out(box, "rm -r odd")


async def test_files_left_open_keep_nobody_waiting(ssh: Client, box: str) -> None:
    """Clients may have many open, to a limit that is said; the sandbox's connections are for who uses them."""
    async with AsyncExitStack() as clients:
        for _ in range(config.FILE_CONNECTIONS_MAX // config.SFTP_STREAMS_MAX + 1):
            client = await clients.enter_async_context(sftp(ssh, box))
            for _ in range(config.SFTP_STREAMS_MAX):
                assert await (await client.open("/etc/passwd", "rb")).read(4) == b"root"
        for _ in range(config.SFTP_HANDLES_MAX - config.SFTP_STREAMS_MAX):
            last = await client.open("kept", "wb")
        with pytest.raises(asyncssh.SFTPFailure, match="too many open files"):
            await client.open("kept", "rb")
        await last.write(b"x")
        assert await client.getsize("kept") == 1
        await client.remove("kept")


async def test_what_the_server_copies_ends_with_its_client(ssh: Client, box: str) -> None:
    """`copy-data` of a device has no other end."""
    async with sftp(ssh, box) as client:
        source, target = await client.open("/dev/zero", "rb"), await client.open("grows", "wb")
        copying = asyncio.create_task(client.remote_copy(source, target))
        await until(lambda: _size(ssh, box) > 1_000_000, what="it grows")
        client._handler._writer.channel.get_connection().abort()
        await asyncio.gather(copying, return_exceptions=True)
    await until_still(lambda: _size(ssh, box), what="it grows no more")
    ssh.out(box, "rm grows")


def _size(ssh: Client, box: str) -> int:
    return int(ssh.out(box, "stat -c %s grows"))


def test_rsync_knows_what_has_changed(ssh: Client, box: str, tmp_path: Path) -> None:
    """There, there again with one file more, and back. The sandbox gets this machine's rsync: `base` has none."""
    program = shutil.which("rsync")
    assert program is not None
    libraries = re.findall(r"=> (/\S+)", subprocess.check_output(["ldd", program], text=True))
    own = [path for path in libraries if not re.search(r"/(libc|ld-linux[^/]*)\.so", path)]
    ssh.out(box, "mkdir -p rsync/lib")
    ssh.out(program, f"{box}:rsync/rsync", program="scp")
    ssh.out(*own, f"{box}:rsync/lib", program="scp")
    there = "env LD_LIBRARY_PATH=rsync/lib rsync/rsync"

    def rsync(*words: str) -> str:
        command = [program, "-a", "--stats", "-e", ssh.line(), f"--rsync-path={there}", *words]
        return subprocess.run(
            command, env=ssh.env, capture_output=True, text=True, check=True, timeout=TIMEOUT_S
        ).stdout

    (tmp_path / "tree").mkdir()
    for number in range(50):
        (tmp_path / "tree" / f"{number}").write_bytes(os.urandom(10_000))
    assert "regular files transferred: 50" in rsync(f"{tmp_path}/tree/", f"{box}:synced/")
    (tmp_path / "tree" / "one more").write_text("new")
    assert "regular files transferred: 1\n" in rsync(f"{tmp_path}/tree/", f"{box}:synced/")
    rsync(f"{box}:synced/", f"{tmp_path}/back/")
    for path in (tmp_path / "tree").iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
