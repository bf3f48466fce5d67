"""What a Tab may complete to: asked of the server, quickly; nothing when it does not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from sandpty.sdk import AsyncClient

ANSWER_TIMEOUT_S = 2.0  # a person is waiting at a prompt


def complete_sandboxes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """IDs of sandboxes, those that stand on the line already left out."""
    named = ctx.params.get(param.name or "")
    named = named if isinstance(named, tuple) else ()

    async def found(client: AsyncClient) -> Iterable[CompletionItem]:
        from sandpty.cli.sandboxes import printable

        return [
            CompletionItem(each.id, help=printable(f"{each.template} {each.state} {' '.join(each.metadata.values())}"))
            for each in await client.list_sandboxes()
            if each.id not in named
        ]

    return _ask(ctx, incomplete, found)


def complete_terminals(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Pids of the terminals of the sandbox on the line."""

    async def found(client: AsyncClient) -> Iterable[CompletionItem]:
        from sandpty.cli.attaching import running_terminals
        from sandpty.cli.sandboxes import printable

        return [
            CompletionItem(str(each.pid), help=printable(" ".join(each.argv)))
            for each in await running_terminals(client, ctx.params["sandbox_id"])
        ]

    return _ask(ctx, incomplete, found)


def _ask(ctx: click.Context, incomplete: str, found: Callable[[AsyncClient], object]) -> list[CompletionItem]:
    import asyncio

    from sandpty.cli.connection import find_server, run_async
    from sandpty.sdk import AsyncClient

    async def asked() -> list[CompletionItem]:
        server = find_server(ctx.params.get("url"), ctx.params.get("data_dir"))
        async with asyncio.timeout(ANSWER_TIMEOUT_S), AsyncClient(server.url, server.api_key) as client:
            items: Iterable[CompletionItem] = await found(client)  # type: ignore[misc]
            return [each for each in items if each.value.startswith(incomplete)]

    try:
        return run_async(asked())
    except Exception:  # whatever it is, a prompt is no place to say it
        return []
