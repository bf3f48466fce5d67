"""Terminals over the native dialect: attach from anywhere, lose nothing, type exactly once."""

from __future__ import annotations

import hashlib
import signal
import struct
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sandpty.wire import frames
from sandpty.wire.frames import AgentErrorCode, ExitReason, FrameType, Gap, ProcessFlags, Resized, Stream
from tests.e2e.native import Box, sandbox
from tests.server_fixture import RunningServer
from tests.waiting import until


@pytest_asyncio.fixture(scope="module")
async def box(server: RunningServer) -> AsyncIterator[Box]:
    """One sandbox for this file; every test starts processes of its own."""
    async with sandbox(server) as made:
        yield made


async def test_attached_tells_what_was_attached_to(box: Box) -> None:
    """Process, pid, offsets, window size, flags and input count are in the first frame."""
    process = await box.terminal("sh", "-c", "printf ready; read line", pty={"cols": 100, "rows": 30})
    async with box.attach(process) as terminal:
        await terminal.until(b"ready")
    async with box.attach(process, "from=offset&value=2") as terminal:
        info = terminal.info
        assert (info.process, info.start, info.end, info.cols, info.rows, info.input) == (process, 2, 5, 100, 30, 0)
        assert info.flags == ProcessFlags.PTY | ProcessFlags.RUNNING | ProcessFlags.STDIN_OPEN | ProcessFlags.MAY_WRITE
        assert info.pid == (await box.process(process))["pid"]


async def test_from_chooses_where_reading_begins(box: Box) -> None:
    """offset, tail, end: each begins exactly there; a tail longer than the log begins at 0."""
    process = await box.start("sh", "-c", "printf 0123456789; read go; printf abc")
    await until(lambda: _log_end(box, process, 10))
    expected = {
        "from=offset": (0, b"0123456789abc"),
        "from=offset&value=7": (7, b"789abc"),
        "from=offset&value=10": (10, b"abc"),
        "from=tail&value=4": (6, b"6789abc"),
        "from=tail&value=4000": (0, b"0123456789abc"),
        "from=tail": (10, b"abc"),
        "from=end": (10, b"abc"),
        "from=OFFSET&value=9": (9, b"9abc"),
    }
    attached = {query: box.attach(process, query) for query in expected}
    views = {query: await view.__aenter__() for query, view in attached.items()}
    await views["from=end"].type(b"\n")
    for query, (start, data) in expected.items():
        await views[query].until_exit()
        assert (query, views[query].info.start, bytes(views[query].data)) == (query, start, data)
    for view in attached.values():
        await view.__aexit__(None, None, None)


async def _log_end(box: Box, process: int, end: int) -> bool:
    return bool((await box.process(process))["log_end"] >= end)


async def test_continue_begins_where_the_last_attachment_stopped(box: Box) -> None:
    """Law 6: what was said while nobody listened is delivered once, to a client without offsets too."""
    process = await box.start("cat")
    async with box.attach(process, "from=continue") as first:
        await first.type(b"one")
        await first.until(b"one")
        await until(lambda: _log_end(box, process, 3))
    async with box.attach(process, "from=end&mode=ro", acks=False) as typist:
        assert typist.info.start == 3
    async with box.attach(process, "from=end") as typist:
        await typist.type(b"two")
        await until(lambda: _log_end(box, process, 6))
    async with box.attach(process) as whole:
        await whole.until(b"onetwo")
    async with box.attach(process, "") as last:  # continue is the default
        assert last.info.start in (3, 6)


async def test_a_second_simultaneous_viewer_with_continue_sees_only_what_is_new(box: Box) -> None:
    """While another attachment is live, `continue` is the end."""
    process = await box.start("cat")
    async with box.attach(process) as first:
        await first.type(b"before")
        await first.until(b"before")
        async with box.attach(process, "from=continue") as second:
            assert second.info.start == 6
            await first.type(b"after")
            await second.until(b"after")
            assert second.data == b"after"


async def test_a_screenful_shows_the_present_screen(box: Box) -> None:
    """Replay from `screen` begins at the last clear, or at the alternate screen of a full-screen program."""
    process = await box.terminal(
        "sh", "-c", r"seq 1 200; printf '\033[2J\033[Hnow'; read a; printf '\033[?1049halt'; read b"
    )
    async with box.attach(process) as whole:
        await whole.until(b"now")
        async with box.attach(process, "from=screen") as view:
            await view.until(b"now")
            assert view.data.startswith(b"\x1b[2J")
        await whole.type(b"\r")
        await whole.until(b"alt")
        async with box.attach(process, "from=screen") as view:
            await view.until(b"alt")
            assert view.data.startswith(b"\x1b[?1049h")


async def test_an_offset_beyond_the_end_is_refused(box: Box) -> None:
    """Nobody can wait for bytes that may never be: bad_argument."""
    process = await box.start("sleep", "100")
    assert await box.refused(process, "from=offset&value=1") == 400
    assert await box.refused(process, f"from=offset&value={2**63}") == 400


@pytest.mark.parametrize(
    "query",
    [
        "from=beginning",
        "from=",
        "mode=wr",
        "mode=",
        "from=offset&value=-1",
        "from=offset&value=1.5",
        "from=offset&value=abc",
        f"from=offset&value={2**63 + 1}",
        f"from=offset&value={'9' * 5000}",
        "window=-1",
        f"window={2**31 + 1}",
        "stall_ms=4294967296",
        "from=offset&value=%D9%A1",
    ],
)
async def test_a_query_that_makes_no_sense_is_a_bad_request(box: Box, query: str) -> None:
    """Whatever is wrong with a parameter, it is said before the upgrade."""
    process = await box.start("sleep", "100")
    assert await box.refused(process, query) == 400


async def test_two_viewers_see_the_same_bytes_and_either_may_type(box: Box) -> None:
    """Output, echo and window size reach everybody who looks."""
    process = await box.terminal("sh", "-c", "printf ready; cat")
    async with box.attach(process) as one, box.attach(process) as two:
        await one.until(b"ready")
        await two.until(b"ready")
        await one.type(b"from one\r")
        await two.until(b"from one\r\nfrom one\r\n")
        await two.type(b"from two\r")
        await one.until(b"from two\r\nfrom two\r\n")
        await one.until_offset(two.position)
        await two.until_offset(one.position)
        assert one.data == two.data
        await one.resize(120, 40)
        assert await two.until_frame(Resized) == Resized(120, 40)
        assert one.sizes == []


async def test_a_viewer_may_look_but_not_touch(box: Box) -> None:
    """mode=ro: input, resize, signal and close are answered with read_only, and nothing happens to the process."""
    process = await box.terminal("sh", "-c", "printf ready; cat")
    async with box.attach(process, "from=offset&mode=ro") as viewer:
        await viewer.until(b"ready")
        assert not viewer.info.flags & ProcessFlags.MAY_WRITE
        await viewer.type(b"rm -rf /\r")
        await viewer.resize(1, 1)
        await viewer.signal(9)
        await viewer.send(FrameType.CLOSE_STDIN)
        await viewer.round_trip()
        assert [error.code for error in viewer.errors] == [AgentErrorCode.READ_ONLY] * 4
        found = await box.process(process)
        assert (found["running"], found["cols"], found["rows"], found["log_end"]) == (True, 80, 24, 5)


async def test_resize_keeps_its_place_among_inputs(box: Box) -> None:
    """Law 5: a program that asks for its size after each line sees the sizes in the order they were sent."""
    process = await box.terminal("sh", "-c", "stty -echo; printf ready; while read x; do stty size; done")
    async with box.attach(process) as terminal:
        await terminal.until(b"ready")
        for cols in range(50, 70):
            await terminal.resize(cols, 10)
            await terminal.type(b"\r")
            await terminal.until(f"10 {cols}\r\n".encode())
        sizes = [line for line in bytes(terminal.data[5:]).split(b"\r\n") if line]
        assert sizes == [f"10 {cols}".encode() for cols in range(50, 70)]


async def test_numbered_input_is_typed_exactly_once_over_lost_connections(box: Box) -> None:
    """Law 4: a client that sends again whatever was not acknowledged types every byte once, in order."""
    total = 200_000
    script = f"stty raw -echo; printf ready; head -c {total} | sha256sum"
    process = await box.terminal("sh", "-c", script)
    data = bytes(range(1, 251)) * (total // 250)
    position, said = 0, 0
    while said < total:
        async with box.attach(process, f"from=offset&value={position}") as terminal:
            if position == 0:
                await terminal.until(b"ready")
            position = terminal.position
            said = terminal.info.input
            for at in range(said, min(said + 60_000, total), 3_000):
                await terminal.type(data[at : at + 3_000], at)
            if said < total:
                await terminal.until_frame(frames.InputAck)
                said = terminal.input_acked
            position = terminal.position
            terminal.cut()  # what was sent but not yet acknowledged may or may not have arrived
    async with box.attach(process) as terminal:
        assert (await terminal.until_exit()).value == 0
        assert hashlib.sha256(data).hexdigest().encode() in terminal.data


async def test_input_below_the_known_offset_is_ignored_and_beyond_it_refused(box: Box) -> None:
    """Law 4: sent twice is typed once; a hole is bad_argument and typed not at all."""
    process = await box.start("cat")
    async with box.attach(process) as terminal:
        await terminal.type(b"abc", 0)
        await terminal.type(b"abc", 0)
        await terminal.type(b"bcdef", 1)
        await terminal.type(b"hole", 100)
        await terminal.type(b"g", 6)
        await terminal.until(b"abcdefg")
        await terminal.round_trip()
        assert terminal.input_acked == 7
        assert [error.code for error in terminal.errors] == [AgentErrorCode.BAD_ARGUMENT]
        await terminal.send(FrameType.CLOSE_STDIN)
        await terminal.until_exit()
        assert terminal.data == b"abcdefg"


async def test_after_an_overrun_a_gap_names_exactly_what_is_missing(box: Box) -> None:
    """Laws 2 and 6: the log keeps the newest bytes, and a late reader learns what is gone."""
    size, log = 300_000, 65_536
    script = f"head -c {size} /dev/zero | tr '\\0' a; printf end"
    process = await box.start("sh", "-c", script, log_bytes=log)
    assert (await box.wait(process))["end"] == size + 3
    async with box.attach(process) as terminal:
        await terminal.until_exit()
    assert terminal.gaps == [Gap(0, size + 3 - len(terminal.data))]
    assert len(terminal.data) >= log - 4096
    assert terminal.data.endswith(b"aaaend")
    async with box.attach(process, f"from=offset&value={size}") as terminal:
        await terminal.until_exit()
    assert (terminal.gaps, bytes(terminal.data)) == ([], b"end")


async def test_who_comes_late_learns_everything(box: Box) -> None:
    """Law 6: output and exit status of an ended process are kept, for every way of asking."""
    process = await box.start("sh", "-c", "echo out; echo err >&2; exit 7")
    assert await box.wait(process) == {"code": 7, "signal": None, "reason": "exited", "core_dumped": False, "end": 8}
    for _ in range(2):
        async with box.attach(process) as terminal:
            exit_ = await terminal.until_exit()
        assert (exit_.signalled, exit_.value, exit_.reason, exit_.end) == (False, 7, ExitReason.EXITED, 8)
        assert terminal.streams == {Stream.STDOUT: b"out\n", Stream.STDERR: b"err\n"}
        assert not terminal.info.flags & ProcessFlags.RUNNING
    found = await box.process(process)
    assert (found["running"], found["exit"]["code"], found["log_end"]) == (False, 7, 8)


async def test_stdout_and_stderr_keep_their_order(box: Box) -> None:
    """Law 1: one log, one count, a stream tag on every chunk."""
    script = "for i in 1 2 3 4 5; do echo out$i; sleep 0.02; echo err$i >&2; sleep 0.02; done"
    process = await box.start("sh", "-c", script)
    async with box.attach(process) as terminal:
        await terminal.until_exit()
    expected = b"".join(f"out{i}\nerr{i}\n".encode() for i in range(1, 6))
    assert bytes(terminal.data) == expected
    assert bytes(terminal.streams[Stream.STDOUT]) == b"out1\nout2\nout3\nout4\nout5\n"


async def test_bytes_that_are_no_text_come_through_unchanged(box: Box) -> None:
    """Every byte value, in both directions, over a raw terminal."""
    process = await box.terminal("sh", "-c", "stty raw -echo; printf ready; head -c 2560")
    everything = bytes(range(256)) * 10
    async with box.attach(process) as terminal:
        await terminal.until(b"ready")
        await terminal.type(everything)
        await terminal.until_exit()
    assert bytes(terminal.data) == b"ready" + everything


async def test_a_reader_of_its_own_acknowledgements_gets_everything(box: Box) -> None:
    """With `window` the client says what it has: small window, many megabytes, not a byte lost or repeated."""
    process = await box.start("sh", "-c", "read go; seq 1 300000")
    expected = b"".join(b"%d\n" % number for number in range(1, 300_001))
    async with box.attach(process, "from=offset&window=65536&stall_ms=4294967295", acks=True) as terminal:
        await terminal.type(b"\n")
        await terminal.until_exit()
    assert terminal.gaps == []
    assert hashlib.sha256(terminal.data).digest() == hashlib.sha256(expected).digest()


async def test_a_window_that_is_never_opened_holds_the_output(box: Box) -> None:
    """No ACK, no more than the window; one ACK, and it goes on."""
    process = await box.start("sh", "-c", "seq 1 100000")
    async with box.attach(process, "from=offset&window=4096&stall_ms=4294967295") as terminal:
        await terminal.until_offset(1)
        await terminal.round_trip()
        held = terminal.position
        assert held <= 4096
        await terminal.round_trip()
        assert terminal.position == held
        await terminal.send(FrameType.ACK, struct.pack("<Q", held))
        await terminal.until_offset(held + 1)


async def test_an_acknowledgement_of_what_was_never_sent_changes_nothing(box: Box) -> None:
    """A lying client harms nobody: the next `continue` does not begin in the future."""
    process = await box.start("cat")
    async with box.attach(process, "from=offset&window=4096") as terminal:
        await terminal.send(FrameType.ACK, struct.pack("<Q", 2**64 - 1))
        await terminal.send(FrameType.ACK, struct.pack("<Q", 1_000_000))
        await terminal.type(b"hello")
        await terminal.until(b"hello")
    async with box.attach(process, "from=continue") as terminal:
        assert terminal.info.start <= 5


async def test_a_signal_by_frame_ends_the_foreground_job_only(box: Box) -> None:
    """SIGNAL to the group is Ctrl-C's way: the job dies, the shell goes on with its variables."""
    process = await box.terminal("bash", "--norc", "-i")
    async with box.attach(process) as terminal:
        await terminal.type(b"PS1=; X=kept; echo rea''dy; sleep 1000\r")
        await terminal.until(b"ready\r\n")
        await until(lambda: _foreground(box, process))
        await terminal.signal(signal.SIGINT)
        await terminal.type(b"echo $X $?\r")
        await terminal.until(b"kept 130")
        await terminal.signal(signal.SIGKILL, target=2)
        exit_ = await terminal.until_exit()
        assert (exit_.signalled, exit_.value, exit_.reason) == (True, 9, ExitReason.KILLED)


async def _foreground(box: Box, process: int) -> bool:
    """Whether the shell's sleep runs in the foreground."""
    answer = await box.api.get(f"{box.path}/processes")
    return bool(answer.json()["processes"])


async def test_an_attachment_ends_when_its_sandbox_is_killed(server: RunningServer) -> None:
    """Every viewer is told at once."""
    async with sandbox(server) as own:
        process = await own.terminal("cat")
        async with own.attach(process) as one, own.attach(process, "mode=ro") as two:
            assert (await own.api.delete(own.path)).status_code == 204
            assert (await one.until_closed()).code in (4503, 4502, 1000)
            assert (await two.until_closed()).code in (4503, 4502, 1000)
        assert await own.refused(process) == 404
