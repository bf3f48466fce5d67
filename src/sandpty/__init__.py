"""Self-hosted sandboxes whose interactive terminals never lose a byte: the client of a sandpty server.

    from sandpty import Sandbox

    with Sandbox() as sandbox:                                   # killed at the end
        print(sandbox.commands.run("uname -a").stdout)
        sandbox.files.write("notes.txt", "hello")
        terminal = sandbox.pty.create(cols=80, rows=24, on_data=lambda data: print(data.decode(), end=""))
        sandbox.pty.send_stdin(terminal.pid, b"cat notes.txt; exit\\n")
        print(terminal.wait().exit_code)

Where the server is and its key come from SANDPTY_URL and SANDPTY_API_KEY (`eval "$(sandpty env)"` sets both), or from
`url=` and `api_key=`.

Sandbox, AsyncSandbox      where programs begin: pty, commands, files, terminal; one blocks, the other is awaited
Client, AsyncClient        below it: the native protocol, request by request
Terminal, AsyncTerminal    a program's output read from an offset, across lost connections
SandptyError               every error is one; `reason.name` says what exactly, `reason.hint` which knob to turn

`python -m pydoc sandpty.Sandbox` shows one of them; docs/reference/sdk.md is the tour.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandpty.sdk import *  # noqa: F403

__version__ = "0.1.0"
_SDK = "sandpty.sdk"


def __getattr__(name: str) -> Any:
    """The SDK's names, loaded when the first is asked for: the other programs of this package need none of it."""
    if name.startswith("_") or not name[0].isupper():  # a submodule, looked for before it is imported
        raise AttributeError(f"module 'sandpty' has no attribute {name!r}")
    return getattr(import_module(_SDK), name)


def __dir__() -> list[str]:
    return ["__version__", *import_module(_SDK).__all__]
