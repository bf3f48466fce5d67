"""Ranges and conditions of HTTP downloads (RFC 9110, sections 13 and 14). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime, parsedate_to_datetime
from functools import lru_cache

from sandpty.server.files.times import moment
from sandpty.terminal.files import Entry

_ONE_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.ASCII)
_NS = 10**9
CONDITIONS = ("If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range")


@dataclass(frozen=True, slots=True)
class Range:
    """`length` bytes from `offset` of a file of `size`."""

    offset: int
    length: int
    size: int

    @property
    def header(self) -> str:
        return f"bytes {self.offset}-{self.offset + self.length - 1}/{self.size}"


class UnsatisfiableError(Exception):
    """Every byte that was asked for lies behind the end: 416."""


def asks_for_part(headers: Mapping[str, str]) -> bool:
    """Whether a request must be answered from the file as it is: no coding changes what its offsets mean."""
    return "Range" in headers or any(name in headers for name in CONDITIONS)


def parse_range(header: str | None, size: int) -> Range | None:
    """None: the whole file, also for several ranges at once and for what is no range. Raises UnsatisfiableError."""
    match = _ONE_RANGE.fullmatch(header or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:  # the last so many bytes
        wanted = min(int(last), size)
        if wanted == 0:
            raise UnsatisfiableError
        return Range(size - wanted, wanted, size)
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    if start >= size:
        raise UnsatisfiableError
    return Range(start, end - start + 1, size)


def entity_tag(entry: Entry) -> str:
    """Changes whenever the content may have."""
    return f'"{entry.inode:x}-{entry.size:x}-{entry.modified_ns:x}"'


def last_modified(entry: Entry) -> str:
    return _date_of(entry.modified_ns // _NS)


@lru_cache(maxsize=256)
def _date_of(second: int) -> str:
    return format_datetime(moment(second * _NS), usegmt=True)


def _date(header: str | None) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(header or "")
    except (ValueError, TypeError):
        return None
    return parsed if parsed.tzinfo is not None else None


def _names(header: str, tag: str) -> bool:
    return header.strip() == "*" or tag in (item.strip().removeprefix("W/") for item in header.split(","))


def condition_status(headers: Mapping[str, str], entry: Entry) -> int:
    """200 to go on, 304 or 412 when the request's conditions say so; in the order of RFC 9110, 13.2.2."""
    tag = entity_tag(entry)
    modified = moment(entry.modified_ns).replace(microsecond=0)
    if (wanted := headers.get("If-Match")) is not None:
        if not _names(wanted, tag):
            return 412
    elif (since := _date(headers.get("If-Unmodified-Since"))) is not None and modified > since:
        return 412
    if (known := headers.get("If-None-Match")) is not None:
        return 304 if _names(known, tag) else 200
    if (since := _date(headers.get("If-Modified-Since"))) is not None and modified <= since:
        return 304
    return 200


def range_holds(headers: Mapping[str, str], entry: Entry) -> bool:
    """Whether `If-Range`, where there is one, still names this file."""
    wanted = headers.get("If-Range")
    if wanted is None:
        return True
    if wanted.lstrip().startswith(('"', "W/")):
        return wanted.strip() == entity_tag(entry)
    return _date(wanted) == moment(entry.modified_ns).replace(microsecond=0)
