"""keys.json: what is kept of API keys, and how it changes."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from sandpty import config
from sandpty.config import DataDir
from sandpty.server.auth import Authenticator
from sandpty.supervisor.key_file import KeyFile
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import first_team, key_hash

FIRST = "e2b_" + "5a" * 20


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    """The keys of a data directory that has its first one."""
    (tmp_path / "api_key").write_text(FIRST + "\n")
    keys = KeyFile(DataDir(tmp_path))
    keys.ensure_first(FIRST)
    return keys


def test_the_first_key_keeps_the_team_it_always_had(file: KeyFile) -> None:
    """Sandboxes of a server from before there were teams are still its own."""
    content = file.read()
    assert content is not None
    assert [(key.team, key.name) for key in content.active()] == [(first_team(FIRST), "first")]
    assert content.teams == {first_team(FIRST): "default"}
    assert Authenticator(FIRST).principal(FIRST).id == first_team(FIRST)
    file.ensure_first(FIRST)
    assert file.read() == content, "saying it again changes nothing"


def test_another_first_key_joins_the_default_team(file: KeyFile) -> None:
    """Whoever replaces `api_key` by a key of his own still has his sandboxes."""
    file.ensure_first("e2b_mine")
    content = file.read()
    assert content is not None
    assert {key.team for key in content.active()} == {first_team(FIRST)}


def test_keys_are_kept_as_hashes_in_a_file_of_the_owner_alone(file: KeyFile, tmp_path: Path) -> None:
    """Nobody learns a key from the disk."""
    key, record = file.add("acme", "ci")
    text = (tmp_path / "keys.json").read_text()
    assert key not in text
    assert FIRST not in text
    assert record.hash == key_hash(key)
    assert key_hash(key) in text
    assert os.stat(tmp_path / "keys.json").st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.new"))


def test_a_team_is_known_by_its_name(file: KeyFile) -> None:
    """Two keys of one name's team share it; another name is another team."""
    one, two, other = (file.add(team, "")[1].team for team in ("acme", "acme", "umbrella"))
    assert one == two != other
    assert file.add("default", "")[1].team == first_team(FIRST)


@pytest.mark.parametrize("by", ["id", "name", "key"])
def test_a_key_is_revoked_by_its_id_its_name_or_itself(file: KeyFile, by: str) -> None:
    """And stays in the list of those that were revoked."""
    key, record = file.add("acme", "ci")
    revoked = file.revoke({"id": record.id, "name": "ci", "key": key}[by])
    assert revoked.id == record.id
    content = file.read()
    assert content is not None
    assert record.id not in [each.id for each in content.active()]
    assert record.id in [each.id for each in content.keys if each.revoked_at]
    with pytest.raises(SandptyError):
        file.revoke(record.id)


def test_a_name_that_two_keys_have_revokes_neither(file: KeyFile) -> None:
    """An error that says so."""
    file.add("acme", "ci")
    file.add("acme", "ci")
    with pytest.raises(SandptyError, match="2 keys have"):
        file.revoke("ci")


def test_the_first_key_once_revoked_is_gone_from_the_disk(file: KeyFile, tmp_path: Path) -> None:
    """`sandpty env` no longer prints it, and putting it back does not bring it back."""
    file.revoke("first")
    assert not (tmp_path / "api_key").exists()
    with pytest.raises(SandptyError, match="was revoked"):
        file.ensure_first(FIRST)


@pytest.mark.parametrize("team", ["", "Acme", "a b", "../x", "-x", "x" * 41])
def test_a_teams_name_is_a_plain_word(file: KeyFile, team: str) -> None:
    """It becomes part of snapshots' names."""
    with pytest.raises(SandptyError, match="no name for a team"):
        file.add(team, "")


def test_a_broken_file_is_an_error_and_left_alone(file: KeyFile, tmp_path: Path) -> None:
    """Nobody's keys are thrown away because one byte is wrong."""
    (tmp_path / "keys.json").write_text("{")
    for act in (file.read, lambda: file.add("acme", ""), lambda: file.revoke("first")):
        with pytest.raises(SandptyError, match="cannot be read"):
            act()
    assert (tmp_path / "keys.json").read_text() == "{"


def test_many_at_once_lose_no_key(file: KeyFile, tmp_path: Path) -> None:
    """The lock holds between threads as between processes."""
    threads = [threading.Thread(target=KeyFile(DataDir(tmp_path)).add, args=("acme", f"n{at}")) for at in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    names = {key["name"] for key in json.loads((tmp_path / "keys.json").read_text())["keys"]}
    assert names == {"first", *(f"n{at}" for at in range(20))}


def test_records_of_revoked_keys_do_not_pile_up(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten."""
    monkeypatch.setattr(config, "KEYS_REVOKED_KEPT", 3)
    for at in range(5):
        file.revoke(file.add("acme", f"n{at}")[1].id)
    content = file.read()
    assert content is not None
    assert [key.name for key in content.keys] == ["first", "n2", "n3", "n4"]
