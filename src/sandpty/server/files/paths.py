"""Paths as clients write them: `~`, relative to home, any bytes. Pure; the guest's kernel resolves what comes out."""

from __future__ import annotations

import posixpath

from sandpty.terminal.files import Account
from sandpty.wire.errors import SandptyError

PATH_BYTES_MAX = 4095  # PATH_MAX without its NUL


def expand(path: str, account: Account, base: str = "") -> str:
    """An absolute path: `~` and `~/x` are the account's home, relative ones lie below `base` (default: home).

    An absolute path stays as it is, so that `..` after a symlink means what the kernel makes of it; a relative one is
    cleaned. Raises bad_path for another user's `~`, a NUL, or more than PATH_BYTES_MAX.
    """
    home = account.home or "/"
    if path == "~" or path.startswith("~/"):
        whole = posixpath.normpath(f"{home}/{path[1:]}")
    elif path.startswith("~"):
        raise SandptyError("bad_path", f"cannot expand the home directory of another user: '{printable(path[:200])}'")
    elif path.startswith("/"):
        whole = path
    else:
        whole = posixpath.normpath(posixpath.join(base or home, path))
    if "\0" in whole:
        raise SandptyError("bad_path", "a path holds a NUL byte")
    if len(whole.encode("utf-8", "surrogateescape")) > PATH_BYTES_MAX:
        raise SandptyError("bad_path", f"a path is over {PATH_BYTES_MAX} bytes")
    return whole


def base_name(path: str) -> str:
    """The last component; `/` for the root."""
    return path.rstrip("/").rpartition("/")[2] or "/"


def printable(text: str) -> str:
    """A guest's bytes as text that fits into JSON: what is no UTF-8 becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
