"""The codec of files connections: what arrives is decoded, or raises FrameError and nothing else."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable

import pytest

from sandpty.wire import file_frames
from sandpty.wire.file_types import Entry, EntryType, WatchEvent, WatchEventType
from sandpty.wire.frames import FrameError


def text(value: bytes) -> bytes:
    """A string of the protocol."""
    return struct.pack("<I", len(value)) + value


def entry_bytes(path: bytes = b"a/b", kind: int = 1, mode: int = 0o644, strings: int = 2) -> bytes:
    """An entry as the agent says it."""
    head = struct.pack("<BBIIQIIqqQIB", kind, kind, mode, mode, 5, 1000, 1000, 7, -8, 9, 1, 3)
    texts = [path, b"user", b"staff", b"link", b"/target"]
    lengths = struct.pack("<6I", *map(len, texts), strings)
    return head + lengths + b"".join(texts) + b"".join(text(b"%d" % number) for number in range(min(strings, 512)))


ENTRY = Entry(
    path="/base/a/b",
    type=EntryType.FILE,
    mode=0o644,
    size=5,
    uid=1000,
    gid=1000,
    owner="user",
    group="staff",
    modified_ns=7,
    accessed_ns=-8,
    inode=9,
    links=1,
    target_type=EntryType.FILE,
    target_mode=0o644,
    link_text="link",
    target="/target",
    metadata={"0": "1"},
)
COUNT = struct.pack("<I", 1)
EVENT = b"\1" + text(b"a/b") + b"\1" + entry_bytes()
GOOD: dict[str, tuple[Callable[[bytes], object], bytes, object]] = {
    "entries": (lambda raw: file_frames.decode_entries(raw, "/base/"), COUNT + entry_bytes(), [ENTRY]),
    "events": (
        lambda raw: file_frames.decode_events(raw, "/base/"),
        COUNT + EVENT,
        [WatchEvent(WatchEventType.CREATE, "a/b", ENTRY)],
    ),
    "text": (file_frames.decode_text, text(b"/x\xff"), "/x\udcff"),
    "size": (file_frames.decode_size, struct.pack("<QQ", 3, 4), (3, 4)),
    "number": (file_frames.decode_number, struct.pack("<Q", 3), 3),
    "file error": (file_frames.decode_file_error, struct.pack("<I", 2) + text(b"no"), (2, "no")),
    "error": (file_frames.decode_error, struct.pack("<H", 2) + text(b"no"), (2, "no")),
    "account": (
        file_frames.decode_account,
        struct.pack("<II", 1, 2) + text(b"user") + text(b"/home"),
        file_frames.Account(1, 2, "user", "/home"),
    ),
}


@pytest.mark.parametrize(("decode", "raw", "value"), GOOD.values(), ids=list(GOOD))
def test_a_frame_is_decoded_whole_or_not_at_all(decode: Callable[[bytes], object], raw: bytes, value: object) -> None:
    """Every cut and every byte too much is a FrameError."""
    assert decode(raw) == value
    for length in range(len(raw)):
        with pytest.raises(FrameError):
            decode(raw[:length])
    with pytest.raises(FrameError):
        decode(raw + b"x")


@pytest.mark.parametrize(
    "raw",
    [
        COUNT + entry_bytes(kind=8),
        COUNT + entry_bytes(mode=0o10000),
        COUNT + entry_bytes(strings=3),
        COUNT + entry_bytes(strings=514),
        struct.pack("<I", 0xFFFF_FFFF) + entry_bytes(),
    ],
)
def test_an_entry_that_cannot_be_is_refused(raw: bytes) -> None:
    """Types, modes, numbers of strings."""
    with pytest.raises(FrameError):
        file_frames.decode_entries(raw, "/")


def test_random_bytes_raise_frame_error_and_nothing_else() -> None:
    """A seeded fuzzer over every decoder."""
    random_ = random.Random(7)
    for decode, raw, _ in GOOD.values():
        for _ in range(2_000):
            changed = bytearray(raw)
            for _ in range(random_.randint(1, 4)):
                changed[random_.randrange(len(changed))] = random_.choice((0, 1, 0x7F, 0x80, 0xFF))
            with contextlib.suppress(FrameError):
                decode(bytes(changed))


def test_an_entry_says_its_name_and_permissions() -> None:
    """As `ls -l` would; the root's name is a slash."""
    assert (ENTRY.name, ENTRY.permissions, ENTRY.is_directory) == ("b", "-rw-r--r--", False)
    raw = COUNT + entry_bytes(b"", kind=2, mode=0o1777)
    (root,) = file_frames.decode_entries(raw, "/")
    assert (root.name, root.permissions, root.is_directory) == ("/", "drwxrwxrwt", True)
