"""Giving up root is checked, not believed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sandpty.server.privileges import Account, PrivilegeError, preimport, verify_dropped

NOBODY = Account(61_980, 61_980, "61980")


def test_a_process_that_kept_something_is_refused() -> None:
    """The test's own process has another uid, and may gain privileges: it is no server."""
    with pytest.raises(PrivilegeError, match="uids are"):
        verify_dropped(NOBODY)


def test_everything_the_server_may_import_can_be_imported() -> None:
    """Once, in a process of its own: no module of ours fails, nor is one that others lack needed."""
    preimport()


def test_a_thread_that_stayed_root_is_found() -> None:
    """Capabilities are each thread's own: a thread from before the drop would keep them."""
    script = """
import threading
from sandpty.server.privileges import Account, PrivilegeError, drop_to
stay = threading.Event()
threading.Thread(target=stay.wait, daemon=True).start()
try:
    drop_to(Account(61980, 61980, "61980"))
except PrivilegeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "root could not be given up" in done.stdout
    assert "Cap" in done.stdout
