"""The laws of terminals (docs/reference/agent-protocol.md) through the whole stack, one by one."""

from __future__ import annotations

import asyncio
import signal
import struct
import time
from collections.abc import AsyncIterator

import pytest_asyncio

from sandpty.wire.frames import ExitReason, FrameType, InputAck, Output
from tests.e2e.native import Box, Terminal, sandbox
from tests.server_fixture import RunningServer
from tests.waiting import pace, until

NEVER = "stall_ms=4294967295"


@pytest_asyncio.fixture(scope="module")
async def box(server: RunningServer) -> AsyncIterator[Box]:
    """One sandbox for this file."""
    async with sandbox(server) as made:
        yield made


async def log_end(box: Box, process: int) -> int:
    """How much a process has said."""
    end: int = (await box.process(process))["log_end"]
    return end


async def test_law_1_an_offset_means_the_same_byte_to_everybody_for_ever(box: Box) -> None:
    """Law 1: whatever attachment, whenever, from wherever: the byte at an offset is that byte."""
    process = await box.start("sh", "-c", "read go; seq 1 100000; read go; seq 1 1000")
    expected = b"".join(b"%d\n" % number for number in (*range(1, 100_001), *range(1, 1001)))
    first_end = len(expected) - sum(len(str(number)) + 1 for number in range(1, 1001))
    async with box.attach(process) as whole:
        await whole.type(b"\n")
        await whole.until_offset(first_end)
        for offset in (0, 1, 65_535, 65_536, 65_537, 300_000, first_end - 1, first_end):
            async with box.attach(process, f"from=offset&value={offset}") as view:
                await view.until_offset(first_end)
                assert bytes(view.data) == expected[offset:first_end]
        await whole.type(b"\n")
        await whole.until_exit()
        assert bytes(whole.data) == expected


async def test_law_2_a_reader_that_fell_behind_is_told_exactly_what_it_missed(box: Box) -> None:
    """Law 2: contiguous output, one GAP that names the missing bytes, contiguous output again."""
    process = await box.start("sh", "-c", "read go; seq 1 1000000")
    expected = b"".join(b"%d\n" % number for number in range(1, 1_000_001))
    async with box.attach(process, "from=offset&window=8192&stall_ms=100") as stuck, box.attach(process) as fast:
        await fast.type(b"\n")
        await fast.until_exit()
        assert bytes(fast.data) == expected
        await stuck.until_offset(1)
        while stuck.exit is None:
            await stuck.send(FrameType.ACK, struct.pack("<Q", stuck.position))
            await stuck.receive()
        (gap,) = stuck.gaps
        missed = gap.end - gap.start
        assert missed > 1_000_000
        assert bytes(stuck.data) == expected[: gap.start] + expected[gap.end :]


async def test_law_3_exit_is_last_and_a_grandchild_delays_it_only_for_a_moment(box: Box) -> None:
    """Law 3: what a descendant says right after its parent's end is delivered; one that stays is not waited for."""
    process = await box.terminal("sh", "-c", "trap '' HUP; (sleep 0.2; echo late; sleep 1000) & echo early; exit 3")
    started = time.monotonic()
    async with box.attach(process) as terminal:
        exit_ = await terminal.until_exit()
    assert time.monotonic() - started < 5
    assert bytes(terminal.data) == b"early\r\nlate\r\n"
    assert (exit_.value, exit_.end) == (3, len(terminal.data))


async def test_law_4_a_terminal_survives_a_frozen_sandbox_and_cut_connections(box: Box, server: RunningServer) -> None:
    """Law 4: the stream dies, in silence or not; by offset nothing is lost, by input offset nothing typed twice."""
    async with sandbox(server) as own:
        process = await own.terminal("sh", "-c", "stty -echo; printf ready; cat")
        async with own.attach(process) as terminal:
            await terminal.until(b"ready")
            await terminal.type(b"one\r", 0)
            await terminal.until_frame(InputAck)
            await terminal.until(b"one\r\n")
            position = terminal.position
            assert (await own.api.post(f"{own.path}/pause")).status_code == 200
            await terminal.until_closed()
        assert (await own.api.post(f"{own.path}/resume")).status_code == 200
        async with own.attach(process, f"from=offset&value={position}") as terminal:
            assert terminal.info.input == 4
            await terminal.type(b"one\rtwo\r", 0)
            await terminal.until(b"two\r\n")
            assert bytes(terminal.data) == b"two\r\n"


async def test_law_5_sizes_and_lines_arrive_in_the_order_they_were_sent(box: Box) -> None:
    """Law 5: resize, line, resize, line, each line answered before the next: never a size out of turn."""
    process = await box.terminal("sh", "-c", "stty -echo; printf ready; while read x; do stty size; done")
    async with box.attach(process) as terminal:
        at = await terminal.until(b"ready")
        for number in range(1, 31):
            await terminal.resize(number, number + 1)
            await terminal.type(b"\r")
            at = await terminal.until(f"{number + 1} {number}\r\n".encode(), at)


async def test_law_6_a_detached_program_never_waits_for_a_reader(box: Box) -> None:
    """Law 6: five megabytes to nobody, and it ends; the newest log_bytes and the exit status are there."""
    process = await box.terminal("sh", "-c", "seq 1 700000; exit 5")
    exit_ = await box.wait(process)
    assert (exit_["code"], exit_["end"]) == (5, sum(len(str(number)) + 2 for number in range(1, 700_001)))
    async with box.attach(process) as terminal:
        await terminal.until_exit()
    assert terminal.gaps[0].start == 0
    assert terminal.gaps[0].end == exit_["end"] - len(terminal.data)
    assert len(terminal.data) > 1_000_000
    assert terminal.data.endswith(b"699999\r\n700000\r\n")


async def test_law_7_a_slow_reader_alone_loses_nothing(box: Box) -> None:
    """Law 7: the program is held to the pace of its only reader, however slow; its log is smaller than that."""
    process = await box.start("sh", "-c", "read go; seq 1 300000")
    async with box.attach(process, f"from=offset&window=16384&{NEVER}") as slow:
        await slow.type(b"\n")
        while slow.exit is None:
            if isinstance(await slow.receive(), Output) and slow.position % 7 == 0:
                await pace(0.001, "a slow reader")
            await slow.send(FrameType.ACK, struct.pack("<Q", slow.position))
    assert slow.gaps == []
    assert bytes(slow.data) == b"".join(b"%d\n" % number for number in range(1, 300_001))


async def test_law_7_a_dead_reader_holds_the_program_no_longer_than_stall(box: Box) -> None:
    """Law 7: a viewer that takes nothing pauses the program for stall_ms, then it runs on."""
    process = await box.start("sh", "-c", "read go; seq 1 300000")
    async with box.attach(process, "from=offset&window=4096&stall_ms=500") as dead:
        await dead.type(b"\n")
        started = time.monotonic()
        await box.wait(process)
        assert 0.4 < time.monotonic() - started < 4


async def test_law_7_a_stuck_reader_costs_a_fast_one_nothing(box: Box) -> None:
    """Law 7: beside a viewer that takes nothing a reader gets everything, without a pause of stall_ms."""
    process = await box.start("sh", "-c", "read go; seq 1 300000")
    async with box.attach(process, f"from=offset&window=4096&{NEVER}"), box.attach(process) as fast:
        await fast.type(b"\n")
        started = time.monotonic()
        await fast.until_exit()
        assert time.monotonic() - started < 5
        assert fast.gaps == []


async def stale_after_interrupt(terminal: Terminal, bytes_per_s: float) -> tuple[float, int]:
    """Read at a rate, press Ctrl-C after a while; seconds until the prompt, and bytes received until then."""
    loop = asyncio.get_running_loop()
    due, pressed, before = loop.time(), 0.0, 0
    seen = len(terminal.data)
    while True:
        await terminal.receive()
        due = max(due, loop.time() - 0.01) + (len(terminal.data) - seen) / bytes_per_s
        if pressed and terminal.data.find(b"prompt>", max(0, seen - 10)) >= 0:
            return loop.time() - pressed, len(terminal.data) - before
        seen = len(terminal.data)
        if not pressed and seen > 1_000_000:
            await terminal.type(b"\x03")
            pressed, before = loop.time(), seen
        if due > loop.time():
            await pace(due - loop.time(), "a client on a slow line")


async def test_law_8_ctrl_c_gets_through_a_flood_at_once(box: Box) -> None:
    """Law 8: a client that takes 2 MB/s sees the prompt soon after Ctrl-C, and little of what is stale."""
    process = await box.terminal("bash", "--norc", "-i", env={"PS1": "prompt>"})
    async with box.attach(process, "from=offset&window=131072", acks=True) as terminal:
        await terminal.until(b"prompt>")
        waited: list[float] = []
        for _ in range(3):
            terminal.data.clear()
            await terminal.type(b"yes abcdefghijklmnopqrstuvwxyz0123456789\r")
            seconds, stale = await stale_after_interrupt(terminal, 2_000_000)
            waited.append(seconds)
            assert stale < 384 * 1024
        assert min(waited) < 0.4, waited


async def test_law_8_a_signal_by_request_ends_a_flood_that_nobody_reads(box: Box) -> None:
    """Law 8: also while the terminal's only client is stuck."""
    process = await box.terminal("yes")
    async with box.attach(process) as stuck:
        stuck.socket._response.connection.transport.pause_reading()  # type: ignore[union-attr]
        await until(lambda: log_grew(box, process))
        assert (await box.signal(process, signal.SIGINT, "group")).status_code == 204
        assert (await box.wait(process))["signal"] == signal.SIGINT
        stuck.cut()


async def log_grew(box: Box, process: int) -> bool:
    """Whether a process has said something."""
    return await log_end(box, process) > 0


async def test_law_7_whoever_types_too_much_holds_only_himself(box: Box) -> None:
    """Laws 6 and 7: more input than a program takes waits with its typist; others see on, and a signal gets through."""
    process = await box.terminal("sh", "-c", "stty raw -echo; printf ready; exec yes")
    # It says itself how far it has read, and it reads nothing more: what its sockets hold would make it the fastest.
    query = "from=offset&stall_ms=200&window=131072"
    seen = f"from=offset&{NEVER}"
    async with box.attach(process, query, acks=True) as typist, box.attach(process, seen) as viewer:
        await typist.until(b"ready")
        for _ in range(64):
            await typist.type(b"x" * 8192)
        await viewer.until_offset(16 * 1024 * 1024)
        assert (await box.signal(process, "KILL")).status_code == 204
        await viewer.until_exit()
        await typist.until_exit()
    assert viewer.gaps == []


async def test_law_9_nothing_of_a_tree_is_left_after_its_kill(box: Box) -> None:
    """Law 9: 204 comes when all is reaped: a flood of forks included, and the terminal's viewers get EXIT."""
    script = "f() { while :; do (setsid sleep 87654 &) ; sleep 0.01; done; }; f & f & printf ready; f"
    process = await box.terminal("bash", "-c", script)
    async with box.attach(process) as terminal:
        await terminal.until(b"ready")
        assert (await box.signal(process, "KILL", "tree")).status_code == 204
        assert (await terminal.until_exit()).reason is ExitReason.KILLED
    listed = await box.start("sh", "-c", "for i in /proc/[0-9]*; do tr '\\0' ' ' < $i/cmdline; echo; done 2>/dev/null")
    async with box.attach(listed) as terminal:
        await terminal.until_exit()
        assert b"sandpty-agent" in terminal.data
        assert b"sleep 87654 \n" not in terminal.data


async def test_law_10_a_process_starts_with_a_clean_slate(box: Box) -> None:
    """Law 10: SIGPIPE, SIGINT and SIGQUIT do what they do by default, in a session and terminal of its own."""
    process = await box.start("sh", "-c", "yes | head -1; kill -s INT $$; echo still here")
    async with box.attach(process) as terminal:
        exit_ = await terminal.until_exit()
        assert (exit_.signalled, exit_.value) == (True, signal.SIGINT)
        assert terminal.data == b"y\n"
    process = await box.terminal("sh", "-c", "tty; ps -o pid=,sid=,tpgid= -p $$ | tr -s ' '")
    async with box.attach(process) as terminal:
        await terminal.until_exit()
        tty, ids = terminal.data.split(b"\r\n")[:2]
        assert tty.startswith(b"/dev/pts/")
        assert len({int(number) for number in ids.split()}) == 1
