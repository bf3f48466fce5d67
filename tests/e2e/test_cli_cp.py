"""`sandpty cp`: both ways, trees, modes and links; a sandbox that means harm writes nothing outside of the target."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from sandpty import AsyncClient
from sandpty.cli.copying import Copying
from sandpty.cli.cp import Place, parse_place
from sandpty.cli.local_tree import check_name
from sandpty.sdk._async.files import AsyncFiles
from sandpty.wire.errors import SandptyError
from tests.e2e.cli_fixture import Cli
from tests.e2e.tmux import Tmux
from tests.server_fixture import RunningServer, sandpty
from tests.waiting import until_sync


@pytest.fixture(scope="module")
def cli(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """One home for this file."""
    return Cli(server, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def box(cli: Cli) -> Iterator[str]:
    """One sandbox for this file."""
    with cli.sandbox() as made:
        yield made


def sh(cli: Cli, box: str, script: str, user: str = "user") -> str:
    """A line of shell in the sandbox."""
    return cli.out("exec", "--user", user, box, "--", "sh", "-ec", script)


def tree_of(root: Path) -> dict[str, Any]:
    """Everything below: modes with contents or link texts. Names are bytes."""
    found = {}
    for directory, names, files in os.walk(os.fsencode(root)):
        for name in names + files:
            path = os.path.join(directory, name)
            about = os.lstat(path)
            content: Any = None
            if stat.S_ISLNK(about.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(about.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            mode = 0 if stat.S_ISLNK(about.st_mode) else about.st_mode
            found[os.fsdecode(path).removeprefix(f"{root}/")] = (mode, content)
    return found


def test_a_tree_comes_back_as_it_went(cli: Cli, box: str, tmp_path: Path) -> None:
    """Contents, modes, symlinks that lead anywhere, empty directories, any name; into a directory, and as a new one."""
    source = tmp_path / "tree"
    (source / "deep/er/est").mkdir(parents=True)
    (source / "empty").mkdir(mode=0o700)
    for number in range(40):
        (source / "deep" / f"{number}").write_bytes(os.urandom(1000 * number))
    for name, mode in (("run", 0o755), ("secret", 0o600), ("two\nlines", 0o644), ("100%41 é", 0o640)):
        (source / name).write_text(name)
        (source / name).chmod(mode)
    Path(os.fsdecode(os.fsencode(source) + b"/\xff\xfe")).write_bytes(b"raw")
    (source / "readonly").mkdir()
    (source / "readonly" / "x").write_text("x")
    (source / "readonly").chmod(0o555)
    for name, text in (("up", "../../../etc/passwd"), ("nowhere", "no such"), ("inside", "run"), ("dir", "deep/er")):
        (source / name).symlink_to(text)
    os.mkfifo(source / "fifo")
    done = cli.run("cp", "-r", str(source), f"{box}:")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("skipped") == 1
    assert "fifo" in done.stderr
    (source / "fifo").unlink()
    assert sh(cli, box, "stat -c %a tree/run tree/secret tree/readonly; readlink tree/up").split() == [
        "755",
        "600",
        "555",
        "../../../etc/passwd",
    ]
    summary = json.loads(cli.out("cp", "-r", f"{box}:tree", str(tmp_path / "back"), "--json"))
    assert tree_of(tmp_path / "back") == tree_of(source)
    assert (summary["directories"], summary["symlinks"], summary["failed"]) == (6, 4, [])
    (tmp_path / "into").mkdir()
    cli.out("cp", "-r", f"{box}:tree", str(tmp_path / "into"))
    cli.out("cp", "-r", f"{box}:tree", str(tmp_path / "into"))  # again, over what is there
    assert tree_of(tmp_path / "into" / "tree") == tree_of(source)
    cli.out("cp", "-r", f"{source}/.", f"{box}:/tmp")  # the contents
    assert sh(cli, box, "cat /tmp/run") == "run"


def test_single_files_go_where_cp_would_put_them(cli: Cli, box: str, tmp_path: Path) -> None:
    """Into a directory, under a name, through a symlink, to a device; several into one directory."""
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    cli.out("cp", str(tmp_path / "a"), str(tmp_path / "b"), f"{box}:/tmp/")
    cli.out("cp", str(tmp_path / "a"), f"{box}:/tmp/c")
    assert sh(cli, box, "cat /tmp/a /tmp/b /tmp/c") == "aba"
    cli.out("cp", f"{box}:/tmp/b", str(tmp_path / "a"))
    assert (tmp_path / "a").read_text() == "b"
    (tmp_path / "link").symlink_to("a")
    cli.out("cp", f"{box}:/tmp/c", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").read_text() == "a"
    cli.out("cp", f"{box}:/tmp/c", os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    cli.out("cp", f"{box}:/tmp/b", f"{tmp_path}")
    assert (tmp_path / "b").read_text() == "b"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".sandpty-")]


def test_a_dash_is_the_content_of_one_file(cli: Cli, box: str) -> None:
    """From stdin, to stdout, bytes as they are."""
    raw = bytes(range(256)) * 1000
    command = sandpty("cp", "-", f"{box}:/tmp/piped")
    subprocess.run(command, input=raw, env=cli.env, check=True, timeout=60)
    back = subprocess.run(
        sandpty("cp", f"{box}:/tmp/piped", "-"), env=cli.env, check=True, timeout=60, stdout=subprocess.PIPE
    )
    assert back.stdout == raw


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("BOX:/nowhere", "x"), 1, "/nowhere"),
        (("nowhere", "BOX:"), 1, "nowhere"),
        (("BOX:/etc", "x"), 1, "-r"),
        (("/etc/passwd", "BOX:/etc/x"), 77, "Permission denied"),
        (("/etc/passwd", "BOX:/no/such/"), 1, "no directory"),
        (("BOX:/etc/passwd", "/no/such/x"), 1, "/no/such"),
        (("a", "b"), 2, "ID:PATH"),
        (("BOX:a", "BOX:b"), 2, "ID:PATH"),
        (("BOX:a", "-", "b"), 2, "ID:PATH"),
        (("i00000000000000000000:/x", "y"), 1, "i00000000000000000000"),
    ],
)
def test_what_is_wrong_is_one_line(
    cli: Cli, box: str, tmp_path: Path, *, words: tuple[str, ...], status: int, text: str
) -> None:
    """With its own status; nothing is left behind."""
    done = subprocess.run(
        sandpty("cp", *(word.replace("BOX", box) for word in words)),
        cwd=tmp_path,
        env=cli.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr.count("\n")) == (status, 1), done.stderr
    assert text in done.stderr
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_copied_does_not_stop_the_rest(cli: Cli, box: str, tmp_path: Path) -> None:
    """It is named, and the status is 1. Set-id bits stay behind."""
    sh(cli, box, "mkdir -p /tmp/mixed && cd /tmp/mixed && echo 1 > a && echo 2 > b && mkfifo c", "root")
    sh(cli, box, "cd /tmp/mixed && chmod 0600 a && chmod 6755 b", "root")
    done = cli.run("cp", "-r", f"{box}:/tmp/mixed", str(tmp_path / "got"))
    assert done.returncode == 1
    assert "failed: /tmp/mixed/a" in done.stderr
    assert "skipped: /tmp/mixed/c: a fifo" in done.stderr
    assert tree_of(tmp_path / "got") == {"b": (stat.S_IFREG | 0o755, b"2\n")}
    assert cli.run("cp", "-r", "-u", "root", f"{box}:/tmp/mixed", str(tmp_path / "all")).returncode == 0
    assert (tmp_path / "all" / "a").read_bytes() == b"1\n"


def test_links_of_an_earlier_copy_lead_nowhere(cli: Cli, box: str, tmp_path: Path) -> None:
    """First a link to a directory outside, then a directory of that name with a file in it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    sh(cli, box, f"mkdir -p /tmp/evil && cd /tmp/evil && ln -s {outside} d && ln -s {outside}/file f && echo x > g")
    cli.out("cp", "-r", f"{box}:/tmp/evil", str(tmp_path / "got"))
    assert (tmp_path / "got" / "d").is_symlink()
    sh(cli, box, "cd /tmp/evil && rm d f && mkdir d && echo theirs > d/file && echo theirs > f")
    done = cli.run("cp", "-r", f"{box}:/tmp/evil/.", str(tmp_path / "got"))
    assert done.returncode == 1
    assert (outside / "file").read_text() == "mine"
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (tmp_path / "got" / "f").read_text() == "theirs\n"  # in the link's place, not through it
    for name in ("d", "f"):  # the same when the link has the name of what is copied
        (tmp_path / "into").mkdir(exist_ok=True)
        (tmp_path / "into" / name).symlink_to(outside if name == "d" else outside / "file")
    done = cli.run("cp", "-r", f"{box}:/tmp/evil/d", str(tmp_path / "into"))
    assert "symlink" in done.stderr
    cli.out("cp", f"{box}:/tmp/evil/f", str(tmp_path / "into"))
    assert (tmp_path / "into" / "f").read_text() == "theirs\n"
    assert (outside / "file").read_text() == "mine"
    assert [path.name for path in outside.iterdir()] == ["file"]


def test_progress_is_shown_to_people(cli: Cli, box: str, person: Tmux) -> None:
    """A bar with the whole size on a terminal; the copy is there afterwards."""
    sh(cli, box, "head -c 20000000 /dev/zero > /tmp/bar")
    person.type(cli.line("cp", f"{box}:/tmp/bar", str(cli.home / "bar")))
    until_sync(lambda: "19.1/19.1 MiB" in person.screen(), 30, "the bar")
    assert (cli.home / "bar").stat().st_size == 20_000_000


# --- a server, or an agent behind it, that lies -----------------------------------------------------------------------


def entry(path: str, kind: str = "file", link: str | None = None) -> dict[str, Any]:
    """What a listing says."""
    return {
        "path": path,
        "name": path.rpartition("/")[2],
        "type": kind,
        "size": 4,
        "mode": "4777",
        "permissions": "",
        "uid": 0,
        "gid": 0,
        "owner": "",
        "group": "",
        "modified_at": "",
        "modified_ns": 0,
        "link_text": link,
        "target": None,
        "target_type": None,
        "metadata": {},
    }


@dataclass
class Liar:
    """Says that /d is a directory with these entries, and that every file holds `evil`."""

    entries: list[dict[str, Any]]
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def lying(liar: Liar) -> Iterator[str]:
    """Its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        headers_: ClassVar[dict[str, str]] = {}

        def do_GET(self) -> None:
            liar.asked.append(self.path)
            if "/stat" in self.path:
                body = json.dumps(entry("/d", "directory")).encode()
            elif "/list" in self.path:
                body = b"".join(json.dumps(each).encode() + b"\n" for each in liar.entries)
            else:
                body = b"evil"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Sandpty-Mode", "4777")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    "entries",
    [
        [entry("/d/../x")],
        [entry("/d/..", "directory"), entry("/d/../x")],
        [entry("/x")],
        [entry("/d//x")],
        [entry("/d/")],
        [entry("/d/.", "directory")],
        [entry("/d/x/y")],
        [entry("/d/x%00y")],
        [entry("/d/s", "symlink", "OUT"), entry("/d/s/x")],
        [entry("/d/s", "symlink", "OUT"), entry("/d/s", "directory"), entry("/d/s/x")],
        [entry("/d/s", "directory"), entry("/d/s", "symlink", "OUT"), entry("/d/s/x")],
        [entry("/d/s", "symlink", "OUT/x"), entry("/d/s")],
        [entry("/d/s"), entry("/d/s", "symlink", "OUT/x"), entry("/d/s")],
        [entry("/d/x"), entry("/d/x/y", "directory"), entry("/d/x/y/z")],
    ],
    ids=lambda entries: " ".join(each["path"] + each["type"][0] for each in entries),
)
async def test_whatever_is_said_to_be_there_nothing_lands_outside(
    tmp_path: Path, entries: list[dict[str, Any]]
) -> None:
    """Names that are none, links first or last, a thing twice: only the target may change, and no set-id bit is set."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for each in entries:
        if each["link_text"]:
            each["link_text"] = each["link_text"].replace("OUT", str(outside))
    with lying(Liar(entries)) as url:
        async with AsyncClient(url, "k") as client:
            files = AsyncFiles(client, "sandbox")
            copying = Copying(
                files, user=None, recursive=True, on_size=lambda size: None, on_bytes=lambda path, count: None
            )
            with contextlib.suppress(SandptyError, OSError):
                await copying.download("/d", tmp_path / "got")
    assert os.listdir(outside) == []
    assert set(os.listdir(tmp_path)) <= {"outside", "got"}
    for path, (mode, _) in tree_of(tmp_path / "got").items():
        assert not mode & 0o7000, path


def test_a_file_that_is_swapped_is_what_it_was_when_it_was_opened(cli: Cli, box: str, tmp_path: Path) -> None:
    """A directory, a link or a FIFO in its place, over and over: files, or errors that name them, and nothing hangs."""
    sh(cli, box, "mkdir -p /tmp/swap && cd /tmp/swap && for i in 1 2 3 4 5 6 7 8 9; do echo x > $i; done")
    swap = "cd /tmp/swap; while :; do rm -rf 5; mkfifo 5; rm -f 5; ln -s /etc/passwd 5; rm -f 5; mkdir 5; done"
    swapping = subprocess.Popen(sandpty("exec", "--no-stdin", box, "--", "sh", "-c", swap), env=cli.env)
    try:
        for number in range(3):
            done = cli.run("cp", "-r", f"{box}:/tmp/swap", str(tmp_path / str(number)))
            assert done.returncode in (0, 1), done.stderr
            assert set("12346789") <= set(os.listdir(tmp_path / str(number)))
    finally:
        swapping.terminate()
        swapping.wait(30)


def test_places_are_told_apart() -> None:
    """An ID, a colon, a path; drives and paths with colons are here."""
    assert parse_place("i0:/x") == Place("i0", "/x")
    assert parse_place("i0:") == Place("i0", "~")
    assert parse_place("i0:a:b\nc") == Place("i0", "a:b\nc")
    for local in ("./a:b", "/a:b", "C:\\x", "a", "-", "a b:c"):
        assert parse_place(local) == Place(None, local)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\0", "..\\x", "C:x", "con", "NUL.txt", "x.", "x ", "a\nb"])
def test_names_that_windows_cannot_have_are_refused_there(name: str) -> None:
    """A backslash would lead out of the directory; a device is no file."""
    with pytest.raises(SandptyError):
        check_name(name, windows=True)
