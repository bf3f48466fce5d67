"""What is made for sandboxes in advance."""

from __future__ import annotations

import os

from sandpty.isolation.idmap import IdRange
from sandpty.isolation.namespaces import Nursery


def test_no_program_that_the_supervisor_starts_gets_at_what_is_made_for_sandboxes() -> None:
    """Neither their namespaces nor the launchers' sockets, which would keep those alive after the supervisor's end."""
    nursery = Nursery()
    try:
        made = nursery.make(IdRange(1_000_000, 65_536))
        launcher = nursery.launcher()
        held = [made.user, made.network, launcher._order.fileno(), launcher.pidfd]
        assert not any(map(os.get_inheritable, held))
        made.close()
        launcher.close()
    finally:
        nursery.close()
