"""Lists of sandboxes: filters, order, pages."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from sandpty.server.dialects.e2b.errors import HttpError
from sandpty.server.dialects.e2b.listing import Page, Query, parse_metadata, parse_rfc3339, rfc3339, select
from sandpty.wire.verbs import Limits, Sandbox, State


def _sandbox(name: str, started_at: float, state: State = "running", **metadata: str) -> Sandbox:
    return Sandbox(
        id=name,
        template="base",
        state=state,
        tier="process",
        started_at=started_at,
        end_at=started_at + 300,
        on_timeout="kill",
        limits=Limits(),
        internet=True,
        owner="me",
        annotations={"metadata": metadata, "template": "alias"},
        socket="",
        boot_id="",
    )


A, B, C = _sandbox("a", 100.25, x="1"), _sandbox("b", 200.5, "paused", x="1", y="2"), _sandbox("c", 300.75)
ALL = [A, B, C]


def _names(**raw: str) -> list[str]:
    return [sandbox.id for sandbox in select(ALL, Query.parse(raw))[0]]


def test_the_newest_come_first_and_paused_ones_are_shown() -> None:
    """E2B's defaults."""
    assert _names() == ["c", "b", "a"]
    assert _names(order="asc") == ["a", "b", "c"]


def test_states_are_a_comma_separated_list() -> None:
    """One parameter, as both SDKs send it."""
    assert _names(state="running") == ["c", "a"]
    assert _names(state="paused") == ["b"]
    assert _names(state="running,paused") == ["c", "b", "a"]


def test_all_pairs_of_metadata_must_match() -> None:
    """Exact values, not substrings."""
    assert _names(metadata="x=1") == ["b", "a"]
    assert _names(metadata="x=1&y=2") == ["b"]
    assert _names(metadata="x=11") == []


@pytest.mark.parametrize("pairs", [{"a b": "c&d"}, {"k": "100% =&+?/é"}, {"a": "b", "c": ""}, {"x+y": "1+1"}])
def test_metadata_survives_the_sdks_triple_encoding(pairs: dict[str, str]) -> None:
    """Each part once, the whole once by the SDK; the third layer is HTTP's."""
    inner = "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in pairs.items())
    once_more = "&".join(
        f"{quote(key, safe='')}={quote(value, safe='')}"
        for key, value in (item.split("=", 1) for item in inner.split("&"))
    )
    assert parse_metadata(once_more) == pairs


def test_the_metadata_as_it_was_seen_on_the_wire() -> None:
    """`{"a b": "c&d"}` arrives so from Python and JavaScript, after the query parser."""
    assert parse_metadata("a%2520b=c%2526d") == {"a b": "c&d"}


def test_a_sandbox_matches_a_filter_by_its_own_start() -> None:
    """Inclusive to the microsecond that was printed."""
    started = 1732142723.0374139
    box = _sandbox("z", started)
    own = rfc3339(started)
    assert own == "2024-11-20T22:45:23.037413Z"
    assert select([box], Query.parse({"startedAfter": own}))[0] == [box]
    assert select([box], Query.parse({"startedAfter": rfc3339(started + 1)}))[0] == []


@pytest.mark.parametrize("text", ["2026-11-20T22:32:03.037413Z", "2026-11-20T23:32:03.037413+01:00"])
def test_times_are_rfc3339_with_any_offset(text: str) -> None:
    """Also when the + came through the query as a space."""
    assert parse_rfc3339(text) == parse_rfc3339("2026-11-20T22:32:03.037413")
    assert parse_rfc3339(text.replace("+", " ")) == parse_rfc3339(text)


def test_templates_are_found_by_id_and_by_the_name_asked_for() -> None:
    """What info shows as templateID or alias matches; anything else finds nothing."""
    assert _names(template="base") == ["c", "b", "a"]
    assert _names(template="alias") == ["c", "b", "a"]
    assert _names(template="other") == []


def test_pages_show_everything_once_in_both_orders() -> None:
    """The token is there exactly while there is more; a sandbox gone meanwhile breaks nothing."""
    for order in ("asc", "desc"):
        seen: list[str] = []
        token: str | None = None
        while True:
            raw = {"limit": "1", "order": order} | ({"nextToken": token} if token else {})
            page, token = select(ALL, Query.parse(raw))
            seen += [sandbox.id for sandbox in page]
            if token is None:
                break
        assert sorted(seen) == ["a", "b", "c"]
    page, token = select(ALL, Query.parse({"limit": "1"}))
    assert token is not None
    assert [item.id for item in select([A], Query.parse({"nextToken": token}))[0]] == ["a"]


def test_sandboxes_of_the_same_instant_are_not_lost_between_pages() -> None:
    """The id breaks the tie."""
    twins = [_sandbox("p", 5.0), _sandbox("q", 5.0), _sandbox("r", 5.0)]
    page, token = select(twins, Query.parse({"limit": "2"}))
    rest, end = select(twins, Query.parse({"limit": "2", "nextToken": token or ""}))
    assert [item.id for item in page + rest] == ["r", "q", "p"]
    assert end is None


@pytest.mark.parametrize(
    "raw",
    [
        {"state": "ended"},
        {"order": "up"},
        {"limit": "0"},
        {"limit": "101"},
        {"limit": "-1"},
        {"limit": "ten"},
        {"limit": "000000001000000"},
        {"nextToken": "!!"},
        {"nextToken": "eA=="},
        {"startedAfter": "yesterday"},
    ],
)
def test_parameters_that_mean_nothing_are_bad_requests(raw: dict[str, str]) -> None:
    """400 with a text, not an empty list."""
    with pytest.raises(HttpError) as caught:
        Query.parse(raw)
    assert caught.value.status == 400


def test_a_token_survives_its_round_trip() -> None:
    """Opaque, but ours."""
    page = Page.of(C)
    assert Page.parse(page.token()) == page
