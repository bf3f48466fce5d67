"""Cutting bytes between UTF-8 characters, for dialects whose clients decode each chunk for itself. Pure."""

from __future__ import annotations


def incomplete_tail(data: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character whose rest is missing: 0 to 3."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80 or byte >= 0xF8:
            return 0
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < needed else 0
    return 0
