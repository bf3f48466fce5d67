"""The verbs of wire/templates.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from sandpty.supervisor.template_records import TemplateRecords
from sandpty.wire.templates import Template, TemplateArgs, TemplatesArgs

Verb = Callable[[msgspec.Raw], Awaitable[Any]]


class DeleteArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str


def template_verbs(records: TemplateRecords) -> dict[str, Verb]:
    """By name."""

    async def templates(raw: msgspec.Raw) -> dict[str, Sequence[Template]]:
        return {"templates": records.list(msgspec.json.decode(raw, type=TemplatesArgs))}

    async def template(raw: msgspec.Raw) -> Template:
        return records.get(msgspec.json.decode(raw, type=TemplateArgs))

    async def save(raw: msgspec.Raw) -> Template:
        return records.save(msgspec.json.decode(raw, type=Template))

    async def delete(raw: msgspec.Raw) -> dict[str, Any]:
        records.delete(msgspec.json.decode(raw, type=DeleteArgs).id)
        return {}

    return {"templates": templates, "template": template, "save_template": save, "delete_template": delete}
