"""Which sandboxes a list shows, in which order, page by page. Pure."""

from __future__ import annotations

import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import unquote_plus

from sandpty import config
from sandpty.server.dialects.e2b.errors import bad_request
from sandpty.wire.verbs import Sandbox

T = TypeVar("T")
_STATES = frozenset(("running", "paused"))


def rfc3339(unix_s: float) -> str:
    """Microseconds, UTC: what E2B sends. Cut, not rounded, so that a filter by the printed value still matches."""
    return datetime.fromtimestamp(_micros(unix_s) / 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _micros(unix_s: float) -> int:
    return math.floor(unix_s * 1_000_000)


def parse_rfc3339(text: str) -> float:
    """Unix seconds. Raises HttpError 400."""
    try:
        moment = datetime.fromisoformat(text.strip().replace(" ", "+"))  # a bare + in a query is a space
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise bad_request(f"not an RFC 3339 time: {text[:64]!r}") from error


def parse_metadata(text: str) -> dict[str, str]:
    """`k=v&k2=v2` whose keys and values are percent-encoded once more than the query they came in.

    The SDKs encode each key and value, join them, encode the whole, and their HTTP layer encodes again; the query
    parser took off one layer. E2B decodes the query string and then each part, so both layers come off here.
    """
    pairs: dict[str, str] = {}
    for item in text.split("&"):
        if not item:
            continue
        key, _, value = item.partition("=")
        pairs[unquote_plus(unquote_plus(key))] = unquote_plus(unquote_plus(value))
    return pairs


@dataclass(frozen=True, slots=True, order=True)
class Page:
    """Where the last page ended. Ordered by time, then id."""

    started_us: int
    sandbox_id: str

    def token(self) -> str:
        return urlsafe_b64encode(f"{self.started_us}__{self.sandbox_id}".encode()).decode()

    @classmethod
    def at(cls, unix_s: float, id_: str) -> Page:
        return cls(_micros(unix_s), id_)

    @classmethod
    def of(cls, sandbox: Sandbox) -> Page:
        return cls.at(sandbox.started_at, sandbox.id)

    @classmethod
    def parse(cls, token: str) -> Page:
        """Raises HttpError 400."""
        try:
            started, _, sandbox_id = urlsafe_b64decode(token.encode()).decode().partition("__")
            return cls(int(started), sandbox_id)
        except ValueError as error:
            raise bad_request("nextToken is not one of ours") from error


def parse_limit(given: str | None, name: str = "limit", usual: int = config.LIST_PAGE_MAX) -> int:
    """Items per page. Raises HttpError 400."""
    limit = str(usual) if given is None else given
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 9 and 1 <= int(limit) <= config.LIST_PAGE_MAX):
        raise bad_request(f"{name} goes from 1 to {config.LIST_PAGE_MAX}, not {limit[:64]!r}")
    return int(limit)


def newest_first(items: list[tuple[Page, T]], limit: str | None, token: str | None) -> tuple[list[T], str | None]:
    """A page of items with their places, and the token of the next one if there is more. Raises HttpError 400."""
    return page_of(items, parse_limit(limit), token)


def page_of(
    items: list[tuple[Page, T]], most: int, token: str | None, *, descending: bool = True
) -> tuple[list[T], str | None]:
    """As `newest_first`, or the other way round. Raises HttpError 400."""
    after = Page.parse(token) if token else None
    left = (item for item in items if after is None or (item[0] < after if descending else item[0] > after))
    found = sorted(left, key=lambda item: item[0], reverse=descending)
    page = found[:most]
    return [item for _, item in page], page[-1][0].token() if len(found) > len(page) else None


@dataclass(frozen=True, slots=True)
class Query:
    """The parameters of GET /v2/sandboxes."""

    metadata: dict[str, str]
    states: frozenset[str]
    newest_first: bool = True
    started_after_s: float | None = None
    template: str | None = None
    limit: int = config.LIST_PAGE_MAX
    after: Page | None = None

    @classmethod
    def parse(cls, raw: dict[str, str]) -> Query:
        """Raises HttpError 400 on a parameter that means nothing."""
        states = frozenset(item for item in raw.get("state", "").split(",") if item) or _STATES
        if not states <= _STATES:
            raise bad_request(f"state is a list of running and paused, not {raw['state'][:64]!r}")
        order = raw.get("order", "desc")
        if order not in ("asc", "desc"):
            raise bad_request(f"order is asc or desc, not {order[:64]!r}")
        after = raw.get("startedAfter")
        token = raw.get("nextToken")
        return cls(
            metadata=parse_metadata(raw.get("metadata", "")),
            states=states,
            newest_first=order == "desc",
            started_after_s=parse_rfc3339(after) if after else None,
            template=raw.get("template") or None,
            limit=parse_limit(raw.get("limit")),
            after=Page.parse(token) if token else None,
        )

    def matches(self, sandbox: Sandbox) -> bool:
        metadata = sandbox.annotations.get("metadata", {})
        return (
            sandbox.state in self.states
            and all(metadata.get(key) == value for key, value in self.metadata.items())
            and (self.template is None or self.template in (sandbox.template, sandbox.annotations.get("template")))
            and (self.started_after_s is None or _micros(sandbox.started_at) >= _micros(self.started_after_s))
        )


def select(sandboxes: list[Sandbox], query: Query) -> tuple[list[Sandbox], str | None]:
    """The page that the query asks for, and the token of the next one if there is more."""

    def place(sandbox: Sandbox) -> tuple[int, str]:
        return _micros(sandbox.started_at), sandbox.id

    found = sorted(filter(query.matches, sandboxes), key=place, reverse=query.newest_first)
    if query.after is not None:
        last = (query.after.started_us, query.after.sandbox_id)
        found = [item for item in found if (place(item) < last if query.newest_first else place(item) > last)]
    page = found[: query.limit]
    return page, Page.of(page[-1]).token() if len(found) > len(page) else None
