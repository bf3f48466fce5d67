"""Builds `base` in the background when it is missing, and switches to it."""

from __future__ import annotations

import logging
from pathlib import Path

from sandpty.supervisor.pool import Pool
from sandpty.templates.catalog import Catalog

log = logging.getLogger(__name__)


async def follow_base(templates: Path, catalog: Catalog, pool: Pool) -> None:
    """Returns when `base` is in use or has failed."""
