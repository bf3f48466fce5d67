"""Times of files as clients want them. A guest sets them as it likes, so they are clamped to what a date can say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST_NS = -62_135_596_800 * 10**9  # 0001-01-01, where protobuf's timestamps and Python's dates begin
_LATEST_NS = 253_402_300_799 * 10**9  # 9999-12-31T23:59:59
_SECONDS_KEPT = 1024  # as text: the files of a directory are often of one moment


def _clamped(nanoseconds: int) -> int:
    return max(_EARLIEST_NS, min(nanoseconds, _LATEST_NS))


def moment(nanoseconds: int) -> datetime:
    """Nanoseconds since 1970 as a date in UTC, to the microsecond."""
    return _EPOCH + timedelta(microseconds=_clamped(nanoseconds) // 1000)


def rfc3339(nanoseconds: int) -> str:
    """The same as text with all nine digits: `2026-11-20T22:32:03.037413000Z`."""
    seconds, rest = divmod(_clamped(nanoseconds), 10**9)
    return f"{_second(seconds)}.{rest:09d}Z"


@lru_cache(maxsize=_SECONDS_KEPT)
def _second(seconds: int) -> str:
    return moment(seconds * 10**9).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
