"""Who asks. Keys are known by their hashes alone; a revoked key is refused, and what it has open is cut, at once."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import KeyHash, first_team, key_hash

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, after authentication. `id` is the team, which owns sandboxes; `key` is the key's id."""

    id: str
    team_name: str = "default"
    key: str = ""
    key_name: str = ""


@dataclass(frozen=True, slots=True)
class Revocation:
    """Keys that are no more, by id, and teams that have none left."""

    keys: frozenset[str]
    teams: frozenset[str]


class Authenticator:
    """Knows the first key, until the supervisor says which keys there are (`replace`)."""

    def __init__(self, api_key: str) -> None:
        self._keys: dict[str, KeyHash] = {}
        self._teams: frozenset[str] = frozenset()
        self._ssh_keys: dict[str, KeyHash] = {}
        self._open: dict[int, tuple[str, Callable[[], None]]] = {}  # by id(request), which is not hashable: key id, cut
        self.on_revoked: list[Callable[[Revocation], None]] = []
        team = first_team(api_key)
        self.replace([KeyHash(id="", name="first", team=team, team_name="default", hash=key_hash(api_key))])

    # --- who ---

    def principal(self, key: str | None) -> Principal:
        """Raises unauthenticated when the key is missing or wrong."""
        if not key:
            raise SandptyError("unauthenticated", "this request carries no API key")
        digest = key_hash(key)
        known = self._keys.get(digest)
        # Found by its hash: what the time of a look-up tells of a hash helps nobody to a key. Compared all the same.
        if known is None or not hmac.compare_digest(known.hash, digest):
            raise SandptyError("unauthenticated", "the API key is not one of this server's")
        return _principal(known)

    def principal_of_ssh_key(self, ssh_key: str) -> Principal:
        """Of a public key, `TYPE BASE64`; that its owner asks is for the caller to prove. Raises unauthenticated."""
        known = self._ssh_keys.get(ssh_key)
        if known is None:
            raise SandptyError("unauthenticated", "no API key has this SSH key")
        return _principal(known)

    def principal_of_key_id(self, key: str) -> Principal:
        """For who has proved by other means that he has this key. Raises unauthenticated."""
        for known in self._keys.values():
            if known.id == key:
                return _principal(known)
        raise SandptyError("unauthenticated", "the API key is not one of this server's any more")

    def key_ids(self) -> frozenset[str]:
        return frozenset(known.id for known in self._keys.values())

    def authenticate(self, request: web.Request) -> Principal:
        """Who asks with this request, which is cut should the key be revoked meanwhile. Raises unauthenticated."""
        principal = self.principal(request_key(request))
        self.when_revoked(request, principal, lambda: _abort(request))
        return principal

    def accept(self, request: web.Request, team: str, key: str) -> Principal:
        """For a request with a signed token: who is behind it, by the key it was given out for ("": the first one).

        The request is cut should that key be revoked meanwhile. Raises unauthenticated when it was already.
        """
        self.check_given(team, key)
        principal = Principal(team, key=key)
        self.when_revoked(request, principal, lambda: _abort(request))
        return principal

    def check_given(self, team: str, key: str) -> None:
        """Raises unauthenticated when the key that a token was given out for counts no more."""
        if not self.counts(team, key):
            raise SandptyError("unauthenticated", "the API key behind the token was revoked")

    def counts(self, team: str, key: str) -> bool:
        """Whether a token does that was given out to the team through this key ("": the first one)."""
        return self.has_key(key) if key else self.has_keys(team)

    def has_key(self, key: str) -> bool:
        """Whether the key with this id is still one of ours."""
        return any(known.id == key for known in self._keys.values())

    def has_keys(self, team: str) -> bool:
        """Whether the team still has a key: else the access tokens of its sandboxes are worth nothing either."""
        return team in self._teams

    def team_named(self, name: str) -> str | None:
        """The id of the team that is called so."""
        return next((known.team for known in self._keys.values() if known.team_name == name), None)

    # --- revocation ---

    def when_revoked(self, request: web.BaseRequest, principal: Principal, cut: Callable[[], None]) -> None:
        """Call `cut` (synchronously) instead of resetting the connection, should the key be revoked meanwhile."""
        self._open[id(request)] = (principal.key, cut)

    def middleware(self) -> Middleware:
        """Forgets requests that are done."""

        @web.middleware
        async def forgetting(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                return await handler(request)
            finally:
                self._open.pop(id(request), None)

        return forgetting

    def replace(self, keys: Sequence[KeyHash]) -> None:
        """These are the keys from now on. What was opened with one that is not among them is cut."""
        left = {key.id for key in keys}
        gone = frozenset(known.id for known in self._keys.values() if known.id and known.id not in left)
        teams = frozenset(key.team for key in keys)
        revocation = Revocation(gone, self._teams - teams)
        self._keys = {key.hash: key for key in keys}
        self._teams = teams
        self._ssh_keys = {ssh_key: key for key in keys for ssh_key in key.ssh_keys}
        for key, cut in list(self._open.values()):
            if key in gone:
                _call(cut)
        if gone or revocation.teams:
            log.info("keys revoked: %s", ", ".join(sorted(gone)) or "none")
            for callback in self.on_revoked:
                callback(revocation)


def _principal(known: KeyHash) -> Principal:
    return Principal(known.team, known.team_name, known.id, known.name)


def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _call(cut: Callable[[], None]) -> None:
    try:
        cut()
    except Exception:
        log.exception("cutting a request of a revoked key failed")


def request_key(request: web.Request) -> str | None:
    """The key of a request: `X-API-Key`, else `Authorization: Bearer`."""
    if key := request.headers.get("X-API-Key"):
        return key
    return bearer(request) or None


def bearer(request: web.Request) -> str:
    """The token of `Authorization: Bearer`, "" for none."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""
