"""Teams' secrets: kept here, in a file of root's, and told to nobody but the egress process, inside headers.

The rules for names and metadata are E2B's (its OpenAPI document).
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from sandpty import config
from sandpty.certificates.store import write
from sandpty.isolation.failures import failure
from sandpty.supervisor.service import OwnerArgs
from sandpty.wire.errors import SandptyError
from sandpty.wire.network_policy import HEADER_VALUE_BYTES_MAX, is_header_value
from sandpty.wire.secrets import Secret, SecretArgs, SecretList

_ID_PREFIX = "sec_"
_NAME = re.compile(r"[^{}\x00-\x1f\x7f-\x9f]+")
Changed = Callable[[str, str], Awaitable[None]]


class Kept(msgspec.Struct, frozen=True):
    owner: str
    value: str
    shown: Secret

    def __repr__(self) -> str:  # logs and tracebacks show it
        return f"Kept({self.shown.id!r}, ...)"


class _File(msgspec.Struct):
    secrets: list[Kept]


class TeamSecrets:
    """`changed` is called with an owner and a name whose value is another now, or gone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: dict[str, Kept] = {}  # by id
        self.changed: Changed | None = None

    def load(self) -> None:
        """Raises OSError, MsgspecError: then nobody's secrets are to be overwritten."""
        with contextlib.suppress(FileNotFoundError):
            for kept in msgspec.json.decode(self._path.read_bytes(), type=_File).secrets:
                self._kept[kept.shown.id] = kept

    def values(self, owner: str) -> dict[str, str]:
        """By name."""
        return {kept.shown.name: kept.value for kept in self._of(owner)}

    def table(self) -> dict[str, Callable[[msgspec.Raw], Awaitable[Any]]]:
        return {
            "secrets": self._list,
            "create_secret": self._create,
            "update_secret": self._update,
            "delete_secret": self._delete,
        }

    def _of(self, owner: str) -> list[Kept]:
        return [kept for kept in self._kept.values() if kept.owner == owner]

    def _find(self, args: SecretArgs) -> Kept:
        known = (args.reference, args.reference.lower())
        for kept in self._of(args.owner):
            if kept.shown.id == known[0] or kept.shown.name == known[1]:
                return kept
        raise SandptyError("no_such_secret", f"secret '{args.reference[:128]}' not found")

    async def _list(self, raw: msgspec.Raw) -> SecretList:
        owner = msgspec.json.decode(raw, type=OwnerArgs).owner
        return SecretList([kept.shown for kept in self._of(owner or "")])

    async def _create(self, raw: msgspec.Raw) -> Secret:
        args = msgspec.json.decode(raw, type=SecretArgs)
        name = args.reference.lower()
        if not _NAME.fullmatch(name) or len(name) > config.SECRET_NAME_CHARACTERS or name.startswith(_ID_PREFIX):
            text = f"a secret's name has up to {config.SECRET_NAME_CHARACTERS} characters, no braces or control"
            raise SandptyError("bad_argument", f"{text} characters, and does not begin with {_ID_PREFIX}")
        mine = self._of(args.owner)
        if any(kept.shown.name == name for kept in mine):
            raise SandptyError("conflict", f"there is a secret '{name}' already")
        if len(mine) >= config.SECRETS_PER_TEAM_MAX:
            raise SandptyError("limit", f"a team has {config.SECRETS_PER_TEAM_MAX} secrets at most")
        if len(self._kept) >= config.SECRETS_OF_ALL_MAX:
            raise SandptyError("limit", f"this host keeps {config.SECRETS_OF_ALL_MAX} secrets at most")
        now = time.time()
        new_id = _ID_PREFIX + uuid.uuid4().hex
        shown = Secret(id=new_id, name=name, version=1, metadata={}, created_at=now, updated_at=now)
        return await self._set(Kept(args.owner, args.value, shown), args.metadata)

    async def _update(self, raw: msgspec.Raw) -> Secret:
        args = msgspec.json.decode(raw, type=SecretArgs)
        before = self._find(args)
        shown = msgspec.structs.replace(before.shown, version=before.shown.version + 1, updated_at=time.time())
        return await self._set(Kept(args.owner, args.value, shown), args.metadata)

    async def _set(self, kept: Kept, metadata: dict[str, str] | None) -> Secret:
        if not kept.value or not is_header_value(kept.value):
            text = (
                f"a secret's value has 1 to {HEADER_VALUE_BYTES_MAX} bytes, no control characters and no spaces around"
            )
            raise SandptyError("bad_argument", f"{text} it: it is for headers")
        if metadata is not None:
            _check_metadata(metadata)
            kept = msgspec.structs.replace(kept, shown=msgspec.structs.replace(kept.shown, metadata=metadata))
        self._keep({**self._kept, kept.shown.id: kept})
        await self._tell(kept)
        return kept.shown

    async def _delete(self, raw: msgspec.Raw) -> dict[str, Any]:
        kept = self._find(msgspec.json.decode(raw, type=SecretArgs))
        self._keep({known: each for known, each in self._kept.items() if known != kept.shown.id})
        await self._tell(kept)
        return {}

    def _keep(self, secrets: dict[str, Kept]) -> None:
        """Raises no_space, runtime_failed, after which nothing has changed."""
        try:
            write(self._path, msgspec.json.encode(_File(list(secrets.values()))), 0o600)
        except OSError as error:
            raise failure("the secret could not be written down", error) from error
        self._kept = secrets

    async def _tell(self, kept: Kept) -> None:
        if self.changed is not None:
            await self.changed(kept.owner, kept.shown.name)


def _check_metadata(metadata: dict[str, str]) -> None:
    """Raises bad_argument."""
    sizes = [(len(key.encode()), len(value.encode())) for key, value in metadata.items()]
    if len(sizes) > 32 or any(key > 128 or value > 1024 for key, value in sizes) or sum(map(sum, sizes)) > 8192:
        text = "a secret's metadata has 32 entries at most, keys of 128 bytes, values of 1024, 8192 in all"
        raise SandptyError("bad_argument", text)
