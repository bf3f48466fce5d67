"""sandpty: self-hosted sandboxes whose interactive terminals never lose a byte.

`from sandpty import Sandbox` is where programs begin; see sandpty.sdk.
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
