"""Hyperbrowser's unmodified Node SDK: every check of js/hyperbrowser.mjs, each in a Node of its own."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.conftest import VENDOR_JS

CHECKS = Path(__file__).parent / "js" / "hyperbrowser.mjs"
NAMES = re.findall(r"^  (?:async )?'([^']+)'", CHECKS.read_text(encoding="utf-8"), re.M)


@pytest.fixture(scope="module")
def script() -> Iterator[Path]:
    """The checks below the SDK, because Node looks for packages upwards from the script."""
    assert (VENDOR_JS / "node_modules" / "@hyperbrowser").is_dir(), "scripts/setup --test installs the SDKs"
    with tempfile.TemporaryDirectory(prefix="checks-", dir=VENDOR_JS) as directory:
        copy = Path(directory) / CHECKS.name
        copy.write_bytes(CHECKS.read_bytes())
        yield copy


@pytest.mark.parametrize("name", NAMES)
def test_javascript(script: Path, name: str) -> None:
    """The check does not throw."""
    done = subprocess.run(["node", str(script), name], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
