"""The journal: what became of sandboxes, on disk, bounded."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import msgspec
import pytest

from sandpty import config
from sandpty.supervisor.ended import Ended
from sandpty.supervisor.journal import Journal
from sandpty.wire.verbs import HistoryArgs, Limits, Sandbox


def sandbox(id_: str = "ione", owner: str = "acme") -> Sandbox:
    """A sandbox as the supervisor tells of it."""
    return Sandbox(
        id=id_,
        template="base",
        state="running",
        tier="crun",
        started_at=1.0,
        end_at=2.0,
        on_timeout="kill",
        limits=Limits(),
        internet=True,
        owner=owner,
        annotations={},
        socket="",
        boot_id="",
    )


def kinds(journal: Journal, **args: object) -> list[str]:
    """What became of sandboxes of acme."""
    return [entry.kind for entry in journal.read(HistoryArgs(owner="acme", **args)).entries]  # type: ignore[arg-type]


def test_a_sandboxs_life_is_told_in_order_by_every_later_supervisor(tmp_path: Path) -> None:
    """Changes that are nobody's history are left out."""
    journal = Journal(tmp_path)
    for event, reason in (
        ("changed", ""),
        ("changed", "deadline set"),
        ("changed", "paused to disk"),
        ("changed", "resumed"),
        ("changed", "annotated"),
        ("ended", "timeout"),
    ):
        journal.record(event, sandbox(), reason)
    assert kinds(Journal(tmp_path)) == ["created", "paused", "resumed", "ended"]
    entries = Journal(tmp_path).read(HistoryArgs(owner="acme")).entries
    assert (entries[1].reason, entries[3].reason) == ("paused to disk", "timeout")
    assert len({entry.id for entry in entries}) == 4


def test_nobody_is_told_of_others_sandboxes(tmp_path: Path) -> None:
    """By owner, always; by sandbox where asked, also when its id is in somebody else's lines."""
    journal = Journal(tmp_path)
    journal.record("changed", sandbox("ione"), "")
    journal.record("changed", sandbox("itwo"), "")
    journal.record("changed", sandbox("acme", "umbrella"), "")
    assert [entry.sandbox for entry in journal.read(HistoryArgs(owner="acme")).entries] == ["ione", "itwo"]
    assert [entry.sandbox for entry in journal.read(HistoryArgs(owner="acme", sandbox="itwo")).entries] == ["itwo"]
    assert kinds(journal, sandbox="acme") == []
    assert kinds(journal, sandbox='"') == []


def test_a_range_of_time_and_the_newest_of_many(tmp_path: Path) -> None:
    """Both ends inclusive."""
    journal = Journal(tmp_path)
    for reason in ("", "paused", "resumed"):
        journal.record("changed", sandbox(), reason)
    first, second, third = (entry.at for entry in journal.read(HistoryArgs(owner="acme")).entries)
    assert kinds(journal, since=second) == ["paused", "resumed"]
    assert kinds(journal, until=second) == ["created", "paused"]
    assert kinds(journal, since=first, until=third, limit=2) == ["paused", "resumed"]
    assert kinds(journal, limit=0) == kinds(journal, limit=-1) == []


def test_ended_sandboxes_are_remembered_without_what_they_were_told_in_confidence(tmp_path: Path) -> None:
    """By every later supervisor, the newest last; torn lines cost only themselves; only ends count."""
    secret = {"env": {"PASSWORD": "hunter2"}, "token": "hunter2", "metadata": {"who": "me"}}
    for number in range(3):
        one = msgspec.structs.replace(sandbox(f"i{number}"), annotations=secret, ended="killed")
        Ended(tmp_path).record("ended", one, "killed")
        Ended(tmp_path).record("changed", one, "")
    path = tmp_path / "ended.jsonl"
    assert b"hunter2" not in path.read_bytes()
    with path.open("ab") as file:
        file.write(b'\n{"sandbox": {"id"')
    found = Ended(tmp_path).read()
    assert [item.sandbox.id for item in found] == ["i0", "i1", "i2"]
    assert (found[0].sandbox.annotations, found[0].sandbox.ended) == ({"metadata": {"who": "me"}}, "killed")


def test_it_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files; the oldest events go."""
    monkeypatch.setattr(config, "JOURNAL_BYTES", 2000)
    journal = Journal(tmp_path)
    for at in range(100):
        journal.record("changed", sandbox(f"i{at:020d}"), "")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * 2000
    found = [entry.sandbox for entry in journal.read(HistoryArgs(owner="acme")).entries]
    assert found == [f"i{at:020d}" for at in range(100 - len(found), 100)]
    assert len(found) > 5


def test_who_reads_while_it_is_written_misses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the moment when the new file takes the old one's place."""
    monkeypatch.setattr(config, "JOURNAL_BYTES", 2000)
    journal = Journal(tmp_path)
    begun, ending = threading.Event(), threading.Event()
    holes: list[list[int]] = []

    def look() -> None:
        while not ending.is_set():
            numbers = [int(entry.sandbox) for entry in journal.read(HistoryArgs(owner="acme")).entries]
            if numbers != list(range(numbers[0], numbers[0] + len(numbers)) if numbers else ()):
                holes.append(numbers)
            begun.set()

    reader = threading.Thread(target=look)
    reader.start()
    begun.wait(30)
    for number in range(3000):
        journal.record("changed", sandbox(str(number)), "")
    ending.set()
    reader.join()
    assert holes == []


def test_torn_lines_cost_only_themselves(tmp_path: Path) -> None:
    """A power cut in the middle of a line."""
    journal = Journal(tmp_path)
    journal.record("changed", sandbox(), "")
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'\n{"owner":"acme","id\n\xff\xfe acme\n{"owner":"acme","at":1')
    journal.record("ended", sandbox(), "killed")
    assert kinds(journal) == ["created", "ended"]


def test_a_disk_that_is_full_costs_history_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log, however often it happens."""
    journal = Journal(tmp_path / "missing")
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            journal.record("changed", sandbox(), "")
    assert len(caplog.records) == 1
    assert kinds(journal) == []
