"""Guest paths in JSON, where bytes cannot stand: text, with `%XX` for what is none.

A guest's names are bytes; in our programs they are `str` with surrogateescape. In JSON they are UTF-8 text in which
each byte that is no UTF-8, and each `%`, is written `%XX`. Nothing is lost, and ordinary names look as they are.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

_UNSAYABLE = re.compile("[%\udc80-\udcff]")


def path_to_text(path: str) -> str:
    """From `str` with surrogateescape to what JSON can hold."""
    return _UNSAYABLE.sub(lambda match: f"%{ord(match[0]) & 0xFF:02X}", path)


def path_from_text(text: str) -> str:
    """Back to `str` with surrogateescape. A `%` without two hex digits stands for itself."""
    return unquote_to_bytes(text).decode("utf-8", "surrogateescape") if "%" in text else text
