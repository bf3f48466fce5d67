"""From what a kernel shows to E2B's results: fields by kind of content. Shapes: e2b_code_interpreter.models 2.11.5."""

from __future__ import annotations

import json
import math
from typing import Any

_FIELDS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}


def result(bundle: dict[str, Any], *, main: bool, quotes: str = "'") -> dict[str, Any]:
    """`main`: the value of the code's last expression, as opposed to something displayed on the way.

    quotes: what a string is shown in; it is taken away, as E2B does.
    """
    fields: dict[str, Any] = {"type": "result", "is_main_result": main}
    extra = {}
    for kind, value in bundle.items():
        name = _FIELDS.get(kind)
        if name is None:
            extra[kind] = value
        else:
            fields[name] = "".join(map(str, value)) if isinstance(value, list) and name != "json" else value
    text = fields.get("text")
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] and text[0] in quotes:
        fields["text"] = text[1:-1]  # a string is shown as what is in it
    if extra:
        fields["extra"] = extra
    return fields


def line(event: dict[str, Any]) -> bytes:
    """One line of the stream. NaN and infinities, which JSON does not have, become null."""
    try:
        return json.dumps(event, allow_nan=False).encode() + b"\n"
    except ValueError:
        return json.dumps(_finite(event), allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value
