"""`sandpty port`: ports of a sandbox as ports of this machine."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandpty.cli.connection import find_server, run_async, sandbox_argument, server_options
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from sandpty.cli.connection import Server

PORT_MOST = 65535


class PortPair(click.ParamType[tuple[int, int]]):
    """GUEST_PORT[:LOCAL]."""

    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        matched = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", value, re.ASCII)
        guest, local = (int(matched[1]), int(matched[2] or matched[1])) if matched else (0, 0)
        if not 1 <= guest <= PORT_MOST or local > PORT_MOST:
            return self.fail(f"{value!r} is not GUEST_PORT[:LOCAL], like 8000, 8000:9000 or 8000:0", param, ctx)
        return guest, local


@click.command()
@server_options
@click.option(
    "--address",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen on this machine. Whoever can connect there reaches the sandbox.",
)
@sandbox_argument
@click.argument("ports", metavar="GUEST_PORT[:LOCAL]...", nargs=-1, required=True, type=PortPair())
def port(
    *, url: str | None, data_dir: Path | None, address: str, sandbox_id: str, ports: tuple[tuple[int, int], ...]
) -> None:
    """Forward ports of a sandbox to this machine.

    What listens in the sandbox is reached through the server, on the sandbox's loopback too. LOCAL is the port here,
    the same unless told; 0 takes a free one. Prints a line for each port, and carries any number of connections until
    Ctrl-C, or until the sandbox ends.

    \b
    Examples:
      sandpty port i0123456789abcdefghi 8000            then http://localhost:8000/
      sandpty port i0123456789abcdefghi 5432:15432 6379:0
    """
    raise SystemExit(run_async(_forward(find_server(url, data_dir), sandbox_id, address, ports)))


async def _forward(server: Server, sandbox_id: str, address: str, ports: tuple[tuple[int, int], ...]) -> int:
    import asyncio

    from sandpty.cli.signals import ending_signals
    from sandpty.sdk import AsyncClient, PortForward

    gone: asyncio.Future[SandptyError] = asyncio.get_running_loop().create_future()

    def on_error(error: SandptyError) -> None:
        if error.reason.name in ("no_such_sandbox", "sandbox_ended", "unauthenticated"):
            if not gone.done():
                gone.set_result(error)
            return
        click.echo(f"sandpty: {' '.join(error.message.split())}", err=True)

    async with AsyncClient(server.url, server.api_key) as client, AsyncExitStack() as stack:
        await client.get_sandbox(sandbox_id)
        for guest_port, local_port in ports:
            forward = PortForward(client, sandbox_id, guest_port, local_port, host=address, on_error=on_error)
            await stack.enter_async_context(forward)
            click.echo(f"{_shown(address)}:{forward.port} -> {sandbox_id}:{guest_port}")
        with ending_signals() as ending:
            await asyncio.wait((gone, ending), return_when=asyncio.FIRST_COMPLETED)
    if gone.done():
        raise gone.result()
    return 0


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address
