"""`keys.json`: whose API keys this data directory knows. Only their hashes; root's file (0600), replaced atomically.

A key belongs to a team, and a team owns sandboxes. The first key, which `sandpty serve` makes, is also kept in clear in
`api_key`, for the commands of this machine's root; its team owns what there was before there were teams.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from sandpty import config
from sandpty.config import DataDir
from sandpty.supervisor import ssh_keys
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import KeyHash, first_team, key_hash

DEFAULT_TEAM = "default"
FIRST_NAME = "first"
_TEAM_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_SHOWN_CHARACTERS = 8


class Key(msgspec.Struct, kw_only=True):
    """`shown`: the key's first characters, so that a person knows it again. Times are unix seconds, 0 for never."""

    id: str
    name: str
    team: str
    hash: str
    shown: str
    created_at: float
    revoked_at: float = 0.0
    ssh_keys: list[str] = []  # `TYPE BASE64 COMMENT`


class Content(msgspec.Struct, kw_only=True):
    """The whole file. `teams`: names by id."""

    version: int = 1
    default_team: str = ""
    teams: dict[str, str] = {}
    keys: list[Key] = []

    def active(self) -> list[Key]:
        return [key for key in self.keys if not key.revoked_at]

    def hashes(self) -> list[KeyHash]:
        """What the server is told: the keys that count."""
        return [
            KeyHash(
                id=key.id,
                name=key.name,
                team=key.team,
                team_name=self.teams[key.team],
                hash=key.hash,
                ssh_keys=tuple(ssh_keys.without_comment(line) for line in key.ssh_keys),
            )
            for key in self.active()
            if key.team in self.teams
        ]


class KeyFile:
    """The keys of one data directory. Every method is one step: reads what is there, under the lock where it writes."""

    def __init__(self, data: DataDir) -> None:
        self._data = data

    def read(self) -> Content | None:
        """None when there is no file yet. Raises SandptyError bad_argument when it cannot be read or understood."""
        try:
            return msgspec.json.decode(self._data.keys.read_bytes(), type=Content)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            reason = "forbidden" if isinstance(error, PermissionError) else "bad_argument"
            raise SandptyError(reason, f"{self._data.keys} cannot be read: {error}") from error

    def ensure_first(self, key: str) -> None:
        """Make `key` (of `api_key`) one of the default team. Raises forbidden when it was revoked."""
        with self._changing() as content:
            known = next((each for each in content.keys if each.hash == key_hash(key)), None)
            if known is not None and known.revoked_at:
                raise SandptyError("forbidden", f"the key in {self._data.api_key} was revoked; remove that file")
            if not content.default_team:
                content.default_team = first_team(key)
                content.teams[content.default_team] = DEFAULT_TEAM
            if known is None:
                content.keys.append(_record(key, content.default_team, FIRST_NAME))

    def add(self, team_name: str, name: str) -> tuple[str, Key]:
        """A new key, in clear for the only time, and what is kept of it. The team is made when it is new."""
        check_names(team_name, name)
        with self._changing() as content:
            if len(content.active()) >= config.KEYS_MAX:
                raise SandptyError("limit", f"there are {config.KEYS_MAX} keys already")
            team = next((id_ for id_, given in content.teams.items() if given == team_name), None)
            if team is None:
                team = secrets.token_hex(8)
                content.teams[team] = team_name
                if team_name == DEFAULT_TEAM and not content.default_team:
                    content.default_team = team
            key = new_key()
            record = _record(key, team, name or f"key-{len(content.keys) + 1}")
            content.keys.append(record)
        return key, record

    def revoke(self, wanted: str) -> Key:
        """By id, by key or by a name that only one key has. Raises bad_argument."""
        with self._changing() as content:
            found = _the_one(content, wanted)
            found.revoked_at = time.time()
            found.ssh_keys = []
            revoked = [key for key in content.keys if key.revoked_at]
            for old in revoked[: -config.KEYS_REVOKED_KEPT]:
                content.keys.remove(old)
            self._forget_clear(found)
            return found

    def add_ssh_key(self, wanted: str, line: str) -> tuple[Key, str]:
        """Let the owner of a public key log in for an API key (by id, key or name); the key and the line that is kept.

        Raises bad_argument, conflict, limit.
        """
        line = ssh_keys.checked(line)
        with self._changing() as content:
            key = _the_one(content, wanted)
            blob = ssh_keys.without_comment(line)
            for other in content.active():
                if blob in map(ssh_keys.without_comment, other.ssh_keys):
                    raise SandptyError("conflict", f"API key {other.id} ({other.name}) has this SSH key already")
            if len(key.ssh_keys) >= config.SSH_KEYS_PER_KEY:
                raise SandptyError("limit", f"an API key has at most {config.SSH_KEYS_PER_KEY} SSH keys")
            key.ssh_keys.append(line)
            return key, line

    def remove_ssh_key(self, wanted: str) -> tuple[Key, str]:
        """By its fingerprint, as `ssh-keygen -l` writes it, or its line. Returns whose it was. Raises bad_argument."""
        with self._changing() as content:
            for key in content.active():
                for line in key.ssh_keys:
                    if wanted.strip() in (ssh_keys.fingerprint(line), line, ssh_keys.without_comment(line)):
                        key.ssh_keys.remove(line)
                        return key, line
        raise SandptyError("bad_argument", "no API key has this SSH key; `sandpty keys list-ssh` shows all")

    def _forget_clear(self, key: Key) -> None:
        """A revoked key is of no use in `api_key` either: the next `sandpty serve` makes another."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if key_hash(self._data.api_key.read_text().strip()) == key.hash:
                self._data.api_key.unlink()

    @contextmanager
    def _changing(self) -> Iterator[Content]:
        """What is there, to be changed in place; written when the block ends without an error."""
        try:
            lock = os.open(self._data.root / "keys.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise SandptyError("forbidden", f"the keys of {self._data.root} are its owner's to change") from error
        except OSError as error:
            raise SandptyError("bad_argument", f"{self._data.root} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self.read() or Content()
            before = msgspec.json.encode(content)
            yield content
            if msgspec.json.encode(content) != before:
                _replace(self._data.keys, msgspec.json.format(msgspec.json.encode(content)) + b"\n")
        finally:
            os.close(lock)


def _the_one(content: Content, wanted: str) -> Key:
    """By id, by key or by a name that only one key has. Raises bad_argument."""
    found = [key for key in content.active() if wanted == key.id or key_hash(wanted) == key.hash]
    found = found or [key for key in content.active() if key.name == wanted]
    if len(found) != 1:
        what = f"{len(found)} keys have" if found else "no key has"
        raise SandptyError("bad_argument", f"{what} the id or name {wanted[:40]!r}; `sandpty keys list` shows all")
    return found[0]


def check_names(team_name: str, name: str) -> None:
    """Raises bad_argument."""
    if not _TEAM_NAME.fullmatch(team_name):
        message = f"{team_name[:40]!r} is no name for a team: 1 to 40 of a-z, 0-9, - and _, not beginning with - or _"
        raise SandptyError("bad_argument", message)
    if len(name) > config.KEY_NAME_CHARACTERS or not name.isprintable():
        raise SandptyError("bad_argument", f"a key's name is at most {config.KEY_NAME_CHARACTERS} printable characters")


def new_key() -> str:
    """`e2b_` and 40 hex digits: what E2B's tools expect a key to look like."""
    return "e2b_" + secrets.token_hex(20)


def _record(key: str, team: str, name: str) -> Key:
    shown = key[:_SHOWN_CHARACTERS] + "..." if len(key) >= 2 * _SHOWN_CHARACTERS else "..."
    return Key(
        id="k" + secrets.token_hex(4), name=name, team=team, hash=key_hash(key), shown=shown, created_at=time.time()
    )


def _replace(path: Path, body: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise SandptyError("no_space", f"{path} cannot be written: {error.strerror}") from error
